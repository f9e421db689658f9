"""The store of learning histories: what a source algorithm saw and did while it learned, task by task.

One history is one task x one environment stream. A dataset is a directory::

    manifest.json                 what it is, and which of the files below count
    shards/00000.safetensors      an interval of steps of all histories
    state-00000.safetensors       where the collector stands after what is committed; only the newest is kept
    snapshots/000001250.safetensors   the source policies at that step, fp16
    learner.safetensors           the one learner of all tasks at its end, where there was one: others begin from it

The manifest is the commit point. A shard and its state are written whole, then the manifest that names
them replaces the old one; files that it does not name are leftovers of a kill, ignored by readers and
deleted by the next collector. So a kill at any moment costs the interval that was under way, no more.

A shard holds ``[H, T, ...]`` arrays (H histories, T steps of each): ``observations, actions`` (as executed),
``mean_actions`` (before exploration noise), ``rewards`` float32, ``terminated, truncated`` bool. The
observations in which its episodes ended, as many as there are, stand in one flat ``final_observations``
``[n, N_o]``, history after history; ``episode_counts`` ``[H]`` says how many belong to each.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from safetensors.numpy import save_file

from icrl_agents.atomic import write_atomically
from icrl_agents.errors import DatasetError
from icrl_agents.training.lock import DirectoryLock, writing
from icrl_agents.training.manifest import (
    MANIFEST_FILE,
    Manifest,
    Progress,
    Shard,
    Snapshot,
    StoredFile,
    check_content,
    check_sizes,
    difference,
    load_manifest,
    save_manifest,
    sha256_of,
)
from icrl_agents.training.shards import (
    FLAGS,
    PER_STEP,
    OpenShard,
    as_arrays,
    as_half,
    checked_arrays,
    load_arrays,
    step_shape,
)

__all__ = ["History", "HistoryDataset", "HistoryWriter", "Manifest", "Progress"]

LEARNER_FILE = "learner.safetensors"


@dataclass(frozen=True)
class History:
    """Whole episodes of one history; T steps in E episodes.

    Attributes:
        observations: ``[T, N_o]``; ``observations[t]`` is what ``actions[t]`` answered.
        actions: ``[T, N_a]`` as executed.
        mean_actions: ``[T, N_a]`` of the source, before its exploration noise.
        rewards: ``[T]``.
        terminated: ``[T]`` bool.
        truncated: ``[T]`` bool.
        final_observations: ``[E, N_o]``, the observation after each episode's last step.
        episode_ends: ``[E]``, the index after each episode's last step; the last is T.
    """

    observations: np.ndarray
    actions: np.ndarray
    mean_actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    final_observations: np.ndarray
    episode_ends: np.ndarray

    @property
    def episode_starts(self) -> np.ndarray:
        """``[E]``, the index of each episode's first step."""
        return np.concatenate([[0], self.episode_ends[:-1]]).astype(np.int64)[: len(self.episode_ends)]

    @property
    def returns(self) -> np.ndarray:
        """``[E]``, sum of rewards of each episode."""
        sums = np.concatenate([[0.0], np.cumsum(self.rewards, dtype=np.float64)])
        return sums[self.episode_ends] - sums[self.episode_starts]


_OWN = ("shards/*.safetensors", "snapshots/*.safetensors", "state-*.safetensors", LEARNER_FILE)
"""Files of a dataset, beside the manifest, which is there before any of them."""

_OF_RUNS = ("run.json", "config.json")
"""IDENTITY_FILE and CONFIG_FILE, of a training's and a checkpoint's folder; where they are defined imports torch."""


class HistoryWriter:
    """Writes a dataset, interval by interval. Use :meth:`create_or_resume`; close it or use it in ``with``.

    Args:
        directory: of the dataset; its manifest exists.
        manifest: the one on disk.
        lock: on the directory.
    """

    def __init__(self, directory: Path, manifest: Manifest, lock: DirectoryLock) -> None:
        self._directory = directory
        self._manifest = manifest
        self._lock = lock
        self._pending: list[Snapshot] = []  # taken at steps that are not committed yet

    @classmethod
    def create_or_resume(cls, directory: str | Path, manifest: Manifest) -> Self:
        """Begin a dataset, or go on with one that was interrupted.

        Args:
            directory: made if it does not exist.
            manifest: what to collect; its progress is not looked at.

        Raises:
            DatasetError: the directory holds another collection, is damaged anywhere, or another process writes in it.
                A collection that never came to record anything is replaced.
        """
        directory = Path(directory)
        lock = DirectoryLock(directory)
        try:
            writer = cls(directory, _begin(directory, manifest), lock)
            writer._delete_leftovers()
        except BaseException:
            lock.release()
            raise
        return writer

    @property
    def manifest(self) -> Manifest:
        """As last committed."""
        return self._manifest

    @property
    def directory(self) -> Path:
        """Of the dataset."""
        return self._directory

    @property
    def steps(self) -> int:
        """Committed steps per history."""
        return self._manifest.progress.steps

    @property
    def complete(self) -> bool:
        """Whether :meth:`finish` was called, now or by an earlier process."""
        return self._manifest.progress.complete

    def append(self, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """Commit the next T steps of every history, and where the collector stands after them.

        Args:
            arrays: ``observations`` ``[H, T, N_o]``, ``actions`` and ``mean_actions`` ``[H, T, N_a]``,
                ``rewards``, ``terminated`` and ``truncated`` ``[H, T]``, and ``final_observations``:
                ``[H, E, N_o]`` if every history ended E episodes, else flat ``[n, N_o]``, history after
                history.
            state: named arrays or tensors from which the collector can go on.

        Raises:
            DatasetError: arrays missing, of the wrong shape or not finite; the collection is complete; or the disk
                is full, and then what was committed before is whole.
        """
        if self.complete:
            raise DatasetError(f"{self._directory} is complete; nothing can be appended")
        shard_arrays = checked_arrays(arrays, self._manifest)
        steps = shard_arrays["rewards"].shape[1]
        progress = self._manifest.progress
        stored = self._write(f"shards/{len(progress.shards):05d}.safetensors", shard_arrays)
        done = progress.steps + steps
        taken = [s for s in self._pending if s.step <= done]
        self._pending = [s for s in self._pending if s.step > done]
        self._commit_state(
            state,
            steps=done,
            shards=(*progress.shards, Shard(**stored, steps=steps)),
            snapshots=(*progress.snapshots, *taken),
        )

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Commit where the collector stands before it has recorded anything, or between two shards.

        Args:
            state: as of :meth:`append`.

        Raises:
            DatasetError: the collection is complete, or the disk is full.
        """
        if self.complete:
            raise DatasetError(f"{self._directory} is complete; nobody goes on from a state")
        self._commit_state(state)

    def resume_state(self) -> dict[str, np.ndarray] | None:
        """The state that was committed last; None at the start and once complete.

        Raises:
            DatasetError: its file is damaged.
        """
        progress = self._manifest.progress
        if progress.state is None:
            return None
        path = self._directory / progress.state
        if progress.state_sha256 not in (None, sha256_of(path) if path.is_file() else ""):
            raise DatasetError(f"{path} is damaged: nobody can go on from it; collect in another directory")
        return load_arrays(path)

    def committed(self, last_steps: int) -> tuple[int, Iterator[dict[str, np.ndarray]]]:
        """What was recorded last, for collectors that go on from it.

        Args:
            last_steps: of each history, at least; whole shards are read.

        Returns:
            The steps before the first of these shards, and the arrays of each, oldest first, as they are stored.
        """
        shards = self._manifest.progress.shards
        first, before = len(shards), self.steps
        while first and before > self.steps - last_steps:
            first -= 1
            before -= shards[first].steps
        return before, (load_arrays(self._directory / shard.file) for shard in shards[first:])

    def save_snapshot(self, step: int, tensors: Mapping[str, Any]) -> None:
        """Keep the source policies as they are after ``step`` steps per history.

        Taken before the :meth:`append` that commits that step, a snapshot is committed with it, and no kill
        can come between. A step that already has a snapshot is left as it is.

        Args:
            step: steps per history so far.
            tensors: named arrays or tensors, first axis the task; floats are kept as fp16 where they fit, but for those
                whose names begin with ``observation_``.

        Raises:
            DatasetError: another first axis, a later step has a snapshot, or the disk is full.
        """
        known = [s.step for s in (*self._manifest.progress.snapshots, *self._pending)]
        if step in known:
            return
        if known and step < max(known):
            raise DatasetError(f"snapshot of step {step} comes after the one of step {max(known)}")
        arrays = {
            # what observations are divided by may be tiny: their mean has to be exact
            name: array if name.startswith("observation_") else as_half(array)
            for name, array in as_arrays(tensors).items()
        }
        tasks = len(self._manifest.tasks)
        for name, array in arrays.items():
            if array.shape[:1] != (tasks,):
                raise DatasetError(f"snapshot {name}: expected a first axis of {tasks} tasks, got {array.shape}")
        snapshot = Snapshot(**self._write(f"snapshots/{step:09d}.safetensors", arrays), step=step)
        if step <= self.steps:
            self._commit(snapshots=(*self._manifest.progress.snapshots, snapshot))
        else:
            self._pending.append(snapshot)

    def save_learner(self, tensors: Mapping[str, Any]) -> None:
        """Keep what one learner of all tasks knows at its end, so that others can go on from it."""
        stored = StoredFile(**self._write(LEARNER_FILE, as_arrays(tensors)))
        self._commit(learner=stored)

    def finish(self, final_returns: Sequence[float] | np.ndarray) -> None:
        """Mark the dataset complete; the collector's state is no longer needed and deleted.

        Args:
            final_returns: mean return of the finished source policy, per task.

        Raises:
            DatasetError: not one finite number a task, or the disk is full.
        """
        returns = tuple(float(value) for value in final_returns)
        if len(returns) != len(self._manifest.tasks) or not np.isfinite(returns).all():
            raise DatasetError(f"final_returns: expected {len(self._manifest.tasks)} finite numbers, got {returns}")
        state = self._manifest.progress.state
        pending, self._pending = self._pending, []
        snapshots = (*self._manifest.progress.snapshots, *pending)
        self._commit(complete=True, final_returns=returns, snapshots=snapshots, state=None, state_sha256=None)
        if state is not None:
            (self._directory / state).unlink()

    def close(self) -> None:
        """Let other processes write here. Safe to call twice."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, file: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        """Write arrays; the fields of the :class:`StoredFile` they became."""
        path = self._directory / file
        with writing(self._directory):
            write_atomically(path, lambda temporary: save_file(arrays, temporary))
        return {"file": file, "size": path.stat().st_size, "sha256": sha256_of(path)}

    def _commit_state(self, state: Mapping[str, Any], **changes: Any) -> None:
        """Commit a state in a file of a name that the one before, which is deleted then, does not have."""
        before = self._manifest.progress.state
        number = 0 if before is None else int(Path(before).stem.removeprefix("state-")) + 1
        stored = self._write(f"state-{number:05d}.safetensors", as_arrays(state))
        self._commit(**changes, state=stored["file"], state_sha256=stored["sha256"])
        if before is not None:
            (self._directory / before).unlink()

    def _commit(self, **changes: Any) -> None:
        progress = dataclasses.replace(self._manifest.progress, **changes)
        manifest = dataclasses.replace(self._manifest, progress=progress)
        with writing(self._directory):
            save_manifest(self._directory, manifest)
        self._manifest = manifest

    def _delete_leftovers(self) -> None:
        """Delete what a kill left: files of ours that the manifest does not name."""
        progress = self._manifest.progress
        named = {entry.file for entry in progress.files} | {progress.state}
        for pattern in _OWN:
            for path in self._directory.glob(pattern):
                if path.relative_to(self._directory).as_posix() not in named:
                    path.unlink()


class HistoryDataset:
    """Reads a dataset through the page cache: only what is asked for is loaded.

    Sizes are checked at once, checksums where a shard or snapshot is read for the first time: what comes out is what
    was written.

    Args:
        directory: of the dataset.
        require_complete: refuse a collection that has not finished.

    Raises:
        DatasetError: missing, damaged, truncated, of another format, or not complete.
    """

    def __init__(self, directory: str | Path, *, require_complete: bool = True) -> None:
        self._directory = Path(directory)
        self.manifest = load_manifest(self._directory)
        progress = self.manifest.progress
        if require_complete and not progress.complete:
            raise DatasetError(
                f"{directory} is not complete ({progress.steps} steps per history): "
                "the collect command that made it continues it"
            )
        check_sizes(self._directory, self.manifest)

    def __len__(self) -> int:
        return self.manifest.histories

    def task_index(self, history: int) -> int:
        """The position of a history's task in ``manifest.tasks``."""
        return self._index(history) // self.manifest.streams_per_task

    def task(self, history: int) -> Mapping[str, Any]:
        """The task of a history."""
        return self.manifest.tasks[self.task_index(history)]

    def episode_ends(self, history: int) -> np.ndarray:
        """``[E]``, the index after the last step of each whole episode of a history."""
        h = self._index(history)
        done = [shard["terminated"][h] | shard["truncated"][h] for shard in self._shards]
        return np.flatnonzero(np.concatenate([*done, np.zeros(0, bool)])) + 1

    def history(self, history: int, episodes: slice | Sequence[int] | None = None) -> History:
        """Load whole episodes of one history. Steps after the last whole episode are never part of it.

        Args:
            history: which, from 0.
            episodes: a slice, or episode indices in the order wanted; None is all.

        Raises:
            DatasetError: no such history or episode, or a shard is damaged.
        """
        h = self._index(history)
        ends = self.episode_ends(h)
        starts = np.concatenate([[0], ends])[: len(ends)]
        chosen = _chosen(slice(None) if episodes is None else episodes, len(ends))
        ranges = _merge(starts[chosen], ends[chosen])
        arrays = {name: self._read(name, h, ranges) for name in PER_STEP}
        none = np.zeros((0, self.manifest.observation_dim), np.float32)
        final = np.concatenate([none, *(shard.final_observations(h) for shard in self._shards)])
        return History(
            **arrays, final_observations=final[chosen], episode_ends=np.cumsum(ends[chosen] - starts[chosen])
        )

    def shard(self, index: int) -> dict[str, np.ndarray]:
        """The arrays of one shard as they are stored; episodes may be cut at its ends."""
        entry = self.manifest.progress.shards[index]
        check_content(self._directory, [entry])
        return load_arrays(self._directory / entry.file)

    @property
    def snapshot_steps(self) -> tuple[int, ...]:
        """Steps per history at which policy snapshots were taken, rising."""
        return tuple(snapshot.step for snapshot in self.manifest.progress.snapshots)

    def snapshot(self, index: int = -1) -> dict[str, np.ndarray]:
        """The source policies at one moment, floats as float32, the first axis the task.

        Args:
            index: into :attr:`snapshot_steps`; -1 is the last.

        Raises:
            DatasetError: there is no such snapshot, or its file is damaged.
        """
        snapshots = self.manifest.progress.snapshots
        if not -len(snapshots) <= index < len(snapshots):
            raise DatasetError(f"{self._directory} has {len(snapshots)} policy snapshots; there is no [{index}]")
        check_content(self._directory, [snapshots[index]])
        arrays = load_arrays(self._directory / snapshots[index].file)
        return {name: a.astype(np.float32) if a.dtype.kind == "f" else a for name, a in arrays.items()}

    def learner(self) -> dict[str, np.ndarray]:
        """What the one learner of all tasks knew at its end.

        Raises:
            DatasetError: every task had a learner of its own, or the file is damaged.
        """
        stored = self.manifest.progress.learner
        if stored is None:
            raise DatasetError(f"{self._directory} holds no learner of all tasks (source: {self.manifest.source})")
        check_content(self._directory, [stored])
        return load_arrays(self._directory / stored.file)

    def verify(self) -> None:
        """Read everything and compare with the checksums.

        Raises:
            DatasetError: naming the files whose content is not what was written.
        """
        check_content(self._directory, self.manifest.progress.files)

    @cached_property
    def _shards(self) -> list[OpenShard]:
        shards = self.manifest.progress.shards
        check_content(self._directory, shards)
        return [OpenShard(self._directory / shard.file, shard.steps, self.manifest) for shard in shards]

    def _index(self, history: int) -> int:
        if not 0 <= history < len(self):
            raise DatasetError(f"there are {len(self)} histories; there is no history {history}")
        return history

    def _read(self, name: str, h: int, ranges: list[tuple[int, int]]) -> np.ndarray:
        """Steps ``[start, stop)`` of each range of one history, one after the other."""
        parts: list[np.ndarray] = []
        for start, stop in ranges:
            offset = 0
            for shard in self._shards:
                first, last = max(start - offset, 0), min(stop - offset, shard.steps)
                if first < last:
                    parts.append(shard[name][h, first:last])
                offset += shard.steps
        if parts:
            return np.concatenate(parts)
        return np.zeros((0, *step_shape(name, self.manifest)), bool if name in FLAGS else np.float32)


def _begin(directory: Path, manifest: Manifest) -> Manifest:
    """The manifest to go on from: the one on disk if it is of the same collection, else a new one."""
    if not (directory / MANIFEST_FILE).exists():
        theirs = next((path for pattern in (*_OWN, *_OF_RUNS) for path in directory.glob(pattern)), None)
        if theirs is not None:
            raise DatasetError(f"{directory} holds {theirs.name} but no manifest.json; choose another directory")
        fresh = dataclasses.replace(manifest, progress=Progress())
        with writing(directory):
            save_manifest(directory, fresh)
        return fresh
    existing = load_manifest(directory)
    differing = difference(existing.identity(), manifest.identity())
    if differing and existing.progress == Progress() and not _parts(directory):  # it never came to record anything
        fresh = dataclasses.replace(manifest, progress=Progress())
        with writing(directory):
            save_manifest(directory, fresh)
        return fresh
    if differing:
        raise DatasetError(f"{directory} holds another collection, which differs in: {'; '.join(differing)}")
    check_content(directory, existing.progress.files)
    return existing


def _parts(directory: Path) -> set[str]:
    """Folders in that of a dataset that are not its own, as of runs under way that are to be merged into it."""
    return {path.name for path in directory.iterdir() if path.is_dir()} - {"shards", "snapshots"}


def _chosen(episodes: slice | Sequence[int], count: int) -> np.ndarray:
    """Indices of the episodes asked for, out of ``count``."""
    if isinstance(episodes, slice):
        return np.arange(count)[episodes]
    index = np.asarray(episodes, np.int64)
    if ((index < 0) | (index >= count)).any():
        raise DatasetError(f"the history has {count} whole episodes; asked for {index.tolist()}")
    return index


def _merge(starts: np.ndarray, ends: np.ndarray) -> list[tuple[int, int]]:
    """Ranges ``[start, end)``, neighbours that touch joined."""
    ranges: list[tuple[int, int]] = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if ranges and ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))
    return ranges

"""Minari datasets from ours, and ours from Minari's: an exchange format, not the store.

An episode there knows its task as the reset option that gave it, ``options={"task": ...}``, and has one observation
more than steps. The manifest travels in the dataset's own metadata, so what we export comes back as the same histories.
"""

import dataclasses
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from icrl_agents.config import from_dict
from icrl_agents.errors import DatasetError, MissingExtraError
from icrl_agents.training.histories import HistoryDataset, HistoryWriter, Manifest

SHARD_STEPS = 10_000
"""Steps of each history per shard of an imported dataset."""

LAST_EPISODES = 20
"""Whose mean stands for the final return of a task where nobody says what it is."""

_METADATA = "icrl_agents"  # key of the manifest in a Minari dataset's metadata


def export_minari(directory: str | Path, dataset_id: str, *, on_history: Callable[[int], None] | None = None) -> Path:
    """Write a dataset as a Minari dataset, where Minari keeps its own (``MINARI_DATASETS_PATH``).

    Steps after the last whole episode of a history, and policy snapshots, stay behind.

    Args:
        directory: of the dataset.
        dataset_id: for ``minari.load_dataset``, e.g. ``"icrl/reacher-goal/ppo-v0"``.
        on_history: called with the number of histories written so far.

    Returns:
        The Minari dataset's folder.

    Raises:
        MissingExtraError: Minari is not installed.
        DatasetError: the dataset is damaged or not complete, or Minari has one of that id or refuses it.
    """
    minari = _minari()
    source = HistoryDataset(directory)
    manifest = source.manifest
    version = manifest.mujoco_version
    given = json.loads(json.dumps(dataclasses.asdict(manifest)))
    given["progress"] = {"final_returns": given["progress"]["final_returns"]}
    path = Path(minari.storage.get_dataset_path(dataset_id))
    if path.exists():
        raise DatasetError(f"{path} exists: choose another id, or delete it with `minari delete`")
    try:
        with _asking_minari(f"{dataset_id!r} could not be made"):
            exported = minari.create_dataset_from_buffers(
                dataset_id,
                [],
                env=_spec(manifest),
                observation_space=spaces.Box(-np.inf, np.inf, (manifest.observation_dim,), np.float32),
                algorithm_name=manifest.source,
                description=f"Learning histories of {manifest.source}, task after task, made with icrl-agents.",
                requirements=["icrl-agents", "mujoco" if version == "unknown" else f"mujoco=={version}"],
            ).storage
            episodes = sum(len(source.episode_ends(h)) for h in range(len(source)))
            exported.update_metadata({_METADATA: {"manifest": given, "episodes": episodes}})
            for h in range(len(source)):
                _export_history(minari, exported, source, h)
                if on_history is not None:
                    on_history(h + 1)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return path


def import_minari(
    dataset: str | Path, directory: str | Path, *, env_id: str | None = None, task: Mapping[str, Any] | None = None
) -> HistoryDataset:
    """Make a dataset of learning histories from a Minari dataset.

    Episodes that follow each other with one task (and, where we exported them, of one stream) are one history. Where
    histories are of unequal length the shorter ones end earlier; where tasks have unequally many, a task stands in the
    manifest once for each of its histories. Where mean actions are not told, the executed ones stand for them.

    Args:
        dataset: a Minari id, present on this machine, or its folder.
        directory: of the dataset of ours.
        env_id: Gymnasium id; None is what the Minari dataset says.
        task: of all episodes; None is what the Minari dataset says.

    Returns:
        The complete dataset.

    Raises:
        MissingExtraError: Minari is not installed.
        DatasetError: no such Minari dataset; no task or environment known; observations or actions that are no vectors
            of real numbers; or the directory holds something else.
    """
    minari = _minari()
    with _asking_minari(f"{dataset} is no Minari dataset on this machine (`minari download ID` fetches one)"):
        local = isinstance(dataset, Path) or Path(dataset).is_dir()
        found = minari.MinariDataset(Path(dataset) / "data") if local else minari.load_dataset(str(dataset))
    for name, space in (("observations", found.observation_space), ("actions", found.action_space)):
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise DatasetError(f"{found.id}: {name} have to be vectors of real numbers, not of {space}")
    told = found.storage.metadata.get(_METADATA)
    if told is not None and told["episodes"] != found.total_episodes:
        raise DatasetError(f"{found.id} is not whole: expected {told['episodes']} episodes, got {found.total_episodes}")
    streams = _streams(found, task)
    manifest = _manifest(found, streams, env_id, task, told)
    with HistoryWriter.create_or_resume(directory, manifest) as writer:
        if not writer.complete:
            _import(found, streams, writer, None if told is None else told["manifest"]["progress"]["final_returns"])
    return HistoryDataset(directory)


@dataclass(frozen=True)
class _Stream:
    """Episodes of one task that follow each other.

    Attributes:
        task: theirs.
        episodes: first and one past the last of their indices in the Minari dataset.
        ends: ``[E]``, the step after each episode's last, counted from the first.
    """

    task: Mapping[str, Any]
    episodes: tuple[int, int]
    ends: np.ndarray


def _export_history(minari: Any, storage: Any, source: HistoryDataset, h: int) -> None:
    history, first = source.history(h), storage.total_episodes
    buffers = []
    for episode, (start, end) in enumerate(zip(history.episode_starts, history.episode_ends, strict=True)):
        steps = slice(start, end)
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                options={"task": dict(source.task(h))},
                observations=np.concatenate(
                    [history.observations[steps], history.final_observations[episode : episode + 1]]
                ),
                actions=history.actions[steps],
                rewards=history.rewards[steps],
                terminations=history.terminated[steps],
                truncations=history.truncated[steps],
                infos={"mean_actions": history.mean_actions[steps]},
            )
        )
    storage.update_episodes(buffers)
    storage.update_episode_metadata([{"history": h}] * len(buffers), range(first, first + len(buffers)))


def _streams(found: Any, task: Mapping[str, Any] | None) -> list[_Stream]:
    """The histories in a Minari dataset, those of a task beside each other."""
    metadata = list(found.storage.get_episode_metadata(found.episode_indices))
    labels, tasks, lengths = [], [], []
    for episode in metadata:
        own = task if task is not None else _plain(episode.get("options", {}).get("task"))
        if own is None:
            raise DatasetError(f"{found.id} does not tell which task its episodes are of: give the task")
        tasks.append(own)
        labels.append((json.dumps(own, sort_keys=True), int(episode.get("history", 0))))
        lengths.append(int(episode["total_steps"]))
    if not labels:
        raise DatasetError(f"{found.id} has no episodes")
    borders = [0, *(i for i in range(1, len(labels)) if labels[i] != labels[i - 1]), len(labels)]
    streams = [_Stream(tasks[a], (a, b), np.cumsum(lengths[a:b])) for a, b in pairwise(borders)]
    order = {label: i for i, (label, _) in reversed(list(enumerate(labels)))}  # of a task's first episode
    return sorted(streams, key=lambda stream: order[labels[stream.episodes[0]][0]])


def _manifest(
    found: Any, streams: Sequence[_Stream], env_id: str | None, task: Mapping[str, Any] | None, told: Any
) -> Manifest:
    keys = [json.dumps(stream.task, sort_keys=True) for stream in streams]
    counts = {key: keys.count(key) for key in keys}
    each = set(counts.values()).pop() if len(set(counts.values())) == 1 else 1
    changes: dict[str, Any] = {"tasks": tuple(s.task for s in streams[::each]), "streams_per_task": each}
    if env_id is not None:
        changes["env_id"] = env_id
    if told is not None:
        theirs = from_dict(Manifest, told["manifest"], where=f"{found.id}'s {_METADATA} metadata")
        changes["hyperparameters"] = {**theirs.hyperparameters, "imported_from": f"minari {found.id}"}
        return dataclasses.replace(theirs, **changes)
    spec = found.env_spec
    if env_id is None and spec is None:
        raise DatasetError(f"{found.id} does not tell which environment it is of: give its id")
    lengths = np.concatenate([np.diff(stream.ends, prepend=0) for stream in streams])
    metadata = found.storage.metadata
    return Manifest(
        mujoco_version="unknown",
        split="imported",
        split_hash="",
        subset="imported",
        episode_steps=int((spec.max_episode_steps if spec else None) or lengths.max()),
        observation_dim=found.observation_space.shape[0],
        action_dim=found.action_space.shape[0],
        source=f"minari {found.id}",
        hyperparameters={"algorithm": metadata.get("algorithm_name", "unknown"), "minari": found.minari_version},
        seed=0,
        env_options=_options(spec) if spec else {},
        **{"env_id": spec.id if spec else "", **changes},
    )


def _spec(manifest: Manifest) -> EnvSpec:
    """What makes the dataset's environment; the horizon is no argument of it."""
    options = dict(manifest.env_options)
    spec = gymnasium.spec(manifest.env_id)
    steps = options.pop("max_episode_steps", spec.max_episode_steps)
    return dataclasses.replace(spec, kwargs=options, max_episode_steps=steps)


def _options(spec: Any) -> dict[str, Any]:
    """What the environment was made with, as far as its id does not say it."""
    options = _plain(spec.kwargs)
    registered = gymnasium.registry.get(spec.id)
    if spec.max_episode_steps and (registered is None or spec.max_episode_steps != registered.max_episode_steps):
        options["max_episode_steps"] = spec.max_episode_steps
    return options


def _import(
    found: Any, streams: Sequence[_Stream], writer: HistoryWriter, final_returns: Sequence[float] | None
) -> None:
    manifest, steps = writer.manifest, max(int(stream.ends[-1]) for stream in streams)
    while writer.steps < steps:
        start = writer.steps
        stop = min(start + SHARD_STEPS, steps)
        parts = [_steps(found, stream, manifest, start, stop) for stream in streams]
        finals = np.concatenate([final for _, final in parts])
        arrays = {name: np.stack([arrays[name] for arrays, _ in parts]) for name in parts[0][0]}
        writer.append({**arrays, "final_observations": finals}, {})
    if final_returns is None or len(final_returns) != len(manifest.tasks):
        last = [_last_return(found, stream) for stream in streams]
        final_returns = np.reshape(last, (len(manifest.tasks), -1)).mean(1).tolist()
    writer.finish(final_returns)


def _steps(
    found: Any, stream: _Stream, manifest: Manifest, start: int, stop: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Steps ``[start, stop)`` of one history, zeros after its end, and the observations its episodes there end in."""
    length, n_o, n_a = stop - start, manifest.observation_dim, manifest.action_dim
    arrays = {
        "observations": np.zeros((length, n_o), np.float32),
        "actions": np.zeros((length, n_a), np.float32),
        "mean_actions": np.zeros((length, n_a), np.float32),
        "rewards": np.zeros(length, np.float32),
        "terminated": np.zeros(length, bool),
        "truncated": np.zeros(length, bool),
    }
    finals = [np.zeros((0, n_o), np.float32)]
    begins = np.concatenate([[0], stream.ends[:-1]])
    inside = np.flatnonzero((stream.ends > start) & (begins < stop))
    for episode, data in zip(inside, _episodes(found, stream, inside), strict=True):
        begin, end = int(begins[episode]), int(stream.ends[episode])
        there = slice(max(begin, start) - begin, min(end, stop) - begin)
        here = slice(begin + there.start - start, begin + there.stop - start)
        for name, values in data.items():
            if name != "final":
                arrays[name][here] = values[there]
        if end <= stop:
            finals.append(data["final"][None].astype(np.float32))
    return arrays, np.concatenate(finals)


def _episodes(found: Any, stream: _Stream, which: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """Episodes of a stream as our arrays, ``final`` being the observation after the last step.

    Raises:
        DatasetError: an episode that goes on after its end, or without its last observation.
    """
    for data in found.iterate_episodes(found.episode_indices[stream.episodes[0] + which]):
        steps = len(data.rewards)
        terminated, truncated = np.array(data.terminations, bool), np.array(data.truncations, bool)
        if len(data.observations) != steps + 1 or len(data.actions) != steps or not steps:
            raise DatasetError(
                f"{found.id}, episode {data.id}: expected a step at least, and one observation more than steps, got "
                f"{len(data.observations)} observations, {len(data.actions)} actions and {steps} rewards"
            )
        if (terminated | truncated)[:-1].any():
            raise DatasetError(f"{found.id}, episode {data.id} goes on after it terminated or was truncated")
        truncated[-1] |= not terminated[-1]  # it was recorded as an episode: something ended it
        means = (data.infos or {}).get("mean_actions")
        yield {
            "observations": data.observations[:-1],
            "actions": data.actions,
            "mean_actions": data.actions if means is None else means,
            "rewards": data.rewards,
            "terminated": terminated,
            "truncated": truncated,
            "final": data.observations[-1],
        }


def _last_return(found: Any, stream: _Stream) -> float:
    episodes = np.arange(len(stream.ends))[-LAST_EPISODES:]
    return float(np.mean([data["rewards"].sum() for data in _episodes(found, stream, episodes)]))


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays inside mappings as Python's."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


@contextmanager
def _asking_minari(failed: str) -> Iterator[None]:
    """Whatever stops Minari becomes a DatasetError; its advice about authors and links is not passed on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            yield
        except (ValueError, OSError, AssertionError, KeyError, gymnasium.error.Error) as error:
            raise DatasetError(f"{failed}: {str(error) or type(error).__name__}") from error


def _minari() -> Any:
    try:
        import h5py  # noqa: F401  what Minari stores in
        import minari
    except ImportError as error:
        raise MissingExtraError(str(error.name or "minari"), "minari") from None
    return minari

"""Histories from policy snapshots: what a source did while it learned, done again without learning.

The snapshots of a dataset act in order while a history proceeds, or the last one acts under noise that fades, as in
AD-ε (Zisman et al. 2023, arXiv 2312.12275), mixed in because these actions are continuous. Nothing is learned, so a
dataset takes minutes: with more streams, other noise, experts of other tasks, or, from a source that sees the task,
other tasks.

    K tasks, S streams of each, T steps, A action entries, N_o observation entries
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mujoco
import numpy as np
import torch

from icrl_agents.config import check_literals
from icrl_agents.envs import MetaVectorEnv, env_definition, split_names, task_split
from icrl_agents.errors import ConfigError, DatasetError
from icrl_agents.training.collection import collection_progress, evaluate_policies, make_rows, sampled_tasks
from icrl_agents.training.histories import HistoryDataset, HistoryWriter, Manifest
from icrl_agents.training.seeds import check_seed
from icrl_agents.training.sources.policies import (
    SnapshotPolicies,
    sees_privileged,
    snapshot_of_tasks,
    symmetries_of,
    turned_back,
)
from icrl_agents.training.sources.rollouts import told

REGENERATED = "regenerated"
"""The source of such a dataset, as its manifest names it."""

_INITIAL_STATES, _NOISE, _WRONG_EXPERTS, _TASKS = range(4)
"""Random streams under one seed."""


@dataclass(frozen=True)
class RegenerationConfig:
    """How to make histories from the snapshots of a dataset.

    Attributes:
        policy: ``"learning"``: all snapshots in order, each for an equal part of the history; ``"final"``: the last.
        noise: added to the policy's mean action. ``"source"``: normal, as wide as the source's own at that snapshot;
            ``"annealed"``: the action is ``(1 - ε) mean + ε u``, u uniform over the action space, where ε falls
            linearly from ``noise_scale`` to 0; ``"none"``.
        noise_scale: times the source's own width; or ε at the start, at most 1.
        annealed_until: part of the history after which annealed noise is 0.
        wrong_experts: probability with which the snapshot acts as if for another task, redrawn every
            ``wrong_expert_steps`` steps and for each stream. The recorded mean actions stay those of the right task.
        wrong_expert_steps: how long a wrong expert acts at a time.
        steps: of each history; None is as many as the snapshots' own.
        streams: histories of each task; None is as many as there.
        subset: tasks of this part of the split, several parts joined by "+"; None is the same tasks.
        sampled_tasks: so many tasks drawn from the environment's distribution instead.
        shard_steps: steps of each history per shard; a kill costs at most this many.
        seed: of everything.
    """

    policy: Literal["learning", "final"] = "learning"
    noise: Literal["source", "annealed", "none"] = "source"
    noise_scale: float = 1.0
    annealed_until: float = 1.0
    wrong_experts: float = 0.0
    wrong_expert_steps: int = 50
    steps: int | None = None
    streams: int | None = None
    subset: str | None = None
    sampled_tasks: int = 0
    shard_steps: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_literals(self)
        check_seed(self.seed)
        for name in ("wrong_expert_steps", "shard_steps", "steps", "streams"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is at least 1, got {value}")
        if not 0 <= self.wrong_experts <= 1:
            raise ConfigError(f"wrong_experts is a probability, got {self.wrong_experts}")
        if self.noise_scale < 0 or (self.noise == "annealed" and self.noise_scale > 1):
            raise ConfigError(f"noise_scale is at least 0, and at most 1 if annealed, got {self.noise_scale}")
        if not 0 < self.annealed_until <= 1:
            raise ConfigError(f"annealed_until is above 0 and at most 1, got {self.annealed_until}")
        if self.sampled_tasks < 0 or (self.sampled_tasks and self.subset is not None):
            raise ConfigError("take the tasks of a subset or so many sampled ones, not both")


def regenerate(
    parent: str | Path, directory: str | Path, config: RegenerationConfig, *, quiet: bool = False
) -> HistoryDataset:
    """Make histories from the snapshots of a dataset, or go on where that was interrupted.

    Args:
        parent: the dataset whose snapshots act.
        directory: of the new dataset.
        config: what to make.
        quiet: no progress bar.

    Returns:
        The complete dataset. Its one snapshot is the last of ``parent``, for the tasks at hand.

    Raises:
        ConfigError: wrong experts of a single task, or policies that see what the environment does not show.
        DatasetError: ``parent`` has no snapshots or is damaged, its learners cannot do other tasks, or the new
            directory holds another collection or is in use.
    """
    source = HistoryDataset(parent)
    if not source.snapshot_steps:
        raise DatasetError(f"{parent} has no policy snapshots (source: {source.manifest.source})")
    manifest = _manifest(source.manifest, config)
    if config.wrong_experts and len(manifest.tasks) < 2:
        raise ConfigError("experts of other tasks need at least two tasks")
    made = _Regeneration(source, manifest, config)  # before a directory begins: snapshots may be unfit
    with HistoryWriter.create_or_resume(directory, manifest) as writer:
        if not writer.complete:
            made.run(writer, quiet)
    return HistoryDataset(directory)


def _manifest(parent: Manifest, config: RegenerationConfig) -> Manifest:
    """What the new dataset says about itself; where it comes from is part of its identity."""
    tasks, subset = parent.tasks, parent.subset
    split, split_hash = parent.split, parent.split_hash
    if config.sampled_tasks:
        stream = np.random.SeedSequence([config.seed, _TASKS])  # others than sample_tasks draws by the same seed
        if parent.split in split_names(parent.env_id):
            tasks = tuple(sampled_tasks(task_split(parent.env_id, parent.split), config.sampled_tasks, stream))
        else:  # of an import, which holds nothing out
            tasks = tuple(env_definition(parent.env_id).sample_tasks(config.sampled_tasks, stream))
        subset = "sampled"
    elif config.subset is not None:
        named = task_split(parent.env_id, parent.split)
        tasks, subset = tuple(t for part in config.subset.split("+") for t in named.subset(part)), config.subset
        split_hash = named.content_hash
    return dataclasses.replace(
        parent,
        mujoco_version=mujoco.__version__,
        split=split,
        split_hash=split_hash,
        subset=subset,
        tasks=tasks,
        streams_per_task=config.streams or parent.streams_per_task,
        source=REGENERATED,
        hyperparameters={
            **dataclasses.asdict(config),
            "steps": config.steps or parent.progress.steps,
            "parent": {
                "digest": parent.digest(),
                "source": parent.source,
                "hyperparameters": dict(parent.hyperparameters),
                "seed": parent.seed,
            },
            "torch": torch.__version__,
        },
        seed=config.seed,
    )


class _Regeneration:
    """Acts with the snapshots of ``source`` and records; randomness depends on seed, task, stream and step alone."""

    def __init__(self, source: HistoryDataset, manifest: Manifest, config: RegenerationConfig) -> None:
        self._source, self._manifest, self._config = source, manifest, config
        self._steps = int(manifest.hyperparameters["steps"])
        self._shape = (len(manifest.tasks), manifest.streams_per_task)  # K, S
        self._env = make_rows(manifest.env_id, manifest.tasks, manifest.streams_per_task)
        bounds: Any = self._env.single_action_space
        self._low, self._high = bounds.low, bounds.high
        definition = env_definition(manifest.env_id)
        self._vectors = [
            np.stack([definition.task_vector(task) for task in tasks])
            for tasks in (source.manifest.tasks, manifest.tasks)
        ]
        self._chosen: list[int | None] = [
            source.manifest.tasks.index(task) if task in source.manifest.tasks else None for task in manifest.tasks
        ]
        self._loaded: tuple[int, SnapshotPolicies] | None = None
        if None in self._chosen and config.policy == "learning":
            for index in range(len(source.snapshot_steps)):  # a source that specialised can do others only before it
                self._tensors(index)
        self._privileged = sees_privileged(self._policies(0).seen_dim, definition)
        if config.noise == "source":
            self._policies(0).require_noise()

    def run(self, writer: HistoryWriter, quiet: bool) -> None:
        """From where the writer stands to the end."""
        env, rows = self._env, self._env.num_envs
        observations = _begin_or_resume(env, writer, self._config.seed, self._shape)
        start = writer.steps
        with collection_progress(quiet) as bar:
            shown = bar.add_task("regenerating", total=self._steps * rows, completed=start * rows, note="")
            while start < self._steps:
                stop = min(start + self._config.shard_steps, self._steps)
                arrays, observations = self._shard(start, stop, observations)
                if stop == self._steps:
                    writer.save_snapshot(stop, self._tensors(-1))
                state = {f"env.{name}": value for name, value in env.get_state().items()}
                writer.append(arrays, {**state, "observations": observations})
                per_episode = float(arrays["rewards"].mean()) * self._manifest.episode_steps
                bar.update(shown, completed=stop * rows, note=f"return {per_episode:8.2f}")
                if not bar.console.is_terminal and not quiet:
                    print(
                        f"{stop} of {self._steps} steps per history, return per episode {per_episode:.2f}", flush=True
                    )
                start = stop
        policies = SnapshotPolicies(self._tensors(-1), self._low, self._high)
        manifest = self._manifest
        returns = evaluate_policies(
            policies.act, manifest.env_id, list(manifest.tasks), manifest.seed, privileged=self._privileged
        )
        writer.finish(returns.mean(1))

    def _shard(self, start: int, stop: int, observations: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Steps ``[start, stop)`` of all histories, and the observations after them."""
        env, steps = self._env, stop - start
        rows, n_a = env.num_envs, self._manifest.action_dim
        seen = np.empty((rows, steps, self._manifest.observation_dim), np.float32)
        executed, means = (np.empty((rows, steps, n_a), np.float32) for _ in range(2))
        rewards = np.empty((rows, steps), np.float32)
        terminated, truncated = (np.empty((rows, steps), bool) for _ in range(2))
        finals: list[list[np.ndarray]] = [[] for _ in range(rows)]
        draws = self._draws(start, steps)
        for t in range(steps):
            seen[:, t] = observations
            known = told(seen[:, t], env.privileged) if self._privileged else seen[:, t]
            mean, action = self._act(start + t, known, draws[:, t])
            means[:, t], executed[:, t] = mean, action
            observations, rewards[:, t], terminated[:, t], truncated[:, t], info = env.step(executed[:, t])
            for row in np.flatnonzero(info.get("_final_obs", False)):
                finals[row].append(info["final_obs"][row])
        ended = [final for own in finals for final in own]
        arrays = {
            "observations": seen,
            "actions": executed,
            "mean_actions": means,
            "rewards": rewards,
            "terminated": terminated,
            "truncated": truncated,
            "final_observations": np.array(ended, np.float32).reshape(-1, seen.shape[2]),
        }
        return arrays, observations

    def _act(self, step: int, observations: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean actions of the right tasks' policies and the actions to execute, ``[H, A]`` each.

        Args:
            step: of the history.
            observations: ``[H, N_o]``, and behind them what is privileged, if the policies see that.
            draws: ``[H, A]``, normal or uniform in [0, 1) as the noise wants them.
        """
        tasks, streams = self._shape
        policies = self._policies(step)
        own, noise = (x.reshape(tasks, streams, -1) for x in (observations, draws))
        # Stream s of task k acts as task k + shifts[s]: within a stream every policy still has one row.
        policy = (np.arange(tasks)[:, None] + self._shifts(step // self._config.wrong_expert_steps)) % tasks  # [K, S]
        stream = np.arange(streams)[None]

        def by_policy(rows: np.ndarray) -> np.ndarray:
            """Rows ``[K, S, ...]`` of the histories at the policies that act there."""
            arranged = np.empty_like(rows)
            arranged[policy, stream] = rows
            return arranged

        if self._config.noise == "annealed":
            passed = step / (self._config.annealed_until * self._steps)
            epsilon = self._config.noise_scale * max(0.0, 1.0 - passed)
            acting = policies.act(by_policy(own))[policy, stream]
            action = (1 - epsilon) * acting + epsilon * (self._low + noise * (self._high - self._low))
        else:
            width = self._config.noise_scale if self._config.noise == "source" else None
            action = policies.act(by_policy(own), None if width is None else by_policy(width * noise))[policy, stream]
        flat = (len(observations), -1)
        return policies.act(own).reshape(flat), np.clip(action, self._low, self._high).reshape(flat)

    def _policies(self, step: int) -> SnapshotPolicies:
        """Who acts at a step of the history."""
        count = len(self._source.snapshot_steps)
        index = count - 1 if self._config.policy == "final" else step * count // self._steps
        if self._loaded is None or self._loaded[0] != index:
            self._loaded = (index, SnapshotPolicies(self._tensors(index), self._low, self._high))
        return self._loaded[1]

    def _tensors(self, index: int) -> dict[str, np.ndarray]:
        """A snapshot, first axis the task at hand."""
        snapshot = self._source.snapshot(index)
        chosen = [k for k in self._chosen if k is not None]
        if len(chosen) == len(self._chosen):
            return {name: tensor[chosen] for name, tensor in snapshot.items()}
        if not _is_symmetric(self._source.manifest):
            return snapshot_of_tasks(snapshot, *self._vectors)
        definition = env_definition(self._manifest.env_id)
        (known, tasks), (others, asked) = (symmetries_of(definition, vectors) for vectors in self._vectors)
        shared = turned_back(snapshot, [symmetry.inverse for symmetry in known])
        found = snapshot_of_tasks({name: tensor.numpy() for name, tensor in shared.items()}, tasks, asked)
        return {name: tensor.numpy() for name, tensor in turned_back(found, others).items()}

    def _draws(self, start: int, steps: int) -> np.ndarray:
        """Random numbers ``[H, T, A]`` of a shard, from each history's own stream."""
        tasks, streams = self._shape
        shape = (steps, self._manifest.action_dim)
        rngs = [
            np.random.default_rng([self._config.seed, _NOISE, k, s, start])
            for k in range(tasks)
            for s in range(streams)
        ]
        if self._config.noise == "annealed":
            return np.stack([rng.random(shape, np.float32) for rng in rngs])
        return np.stack([rng.standard_normal(shape, np.float32) for rng in rngs])

    def _shifts(self, segment: int) -> np.ndarray:
        """``[S]``, by how many tasks the expert of each stream is wrong in a segment; 0 where it is right."""
        tasks, streams = self._shape
        if not self._config.wrong_experts:
            return np.zeros(streams, np.int64)
        rng = np.random.default_rng([self._config.seed, _WRONG_EXPERTS, segment])
        wrong = rng.random(streams) < self._config.wrong_experts
        return wrong * rng.integers(1, tasks, streams)


def _is_symmetric(manifest: Manifest) -> bool:
    """Whether the source, of whom this may be a regeneration, saw and acted through symmetries."""
    hyperparameters = manifest.hyperparameters
    while "parent" in hyperparameters:
        hyperparameters = hyperparameters["parent"]["hyperparameters"]
    return bool(hyperparameters.get("symmetric", False))


def _begin_or_resume(env: MetaVectorEnv, writer: HistoryWriter, seed: int, shape: tuple[int, int]) -> np.ndarray:
    """The observations ``[H, N_o]`` to go on from."""
    rows = [
        int(np.random.SeedSequence([seed, _INITIAL_STATES, k, s]).generate_state(1)[0])
        for k in range(shape[0])
        for s in range(shape[1])
    ]
    observations, _ = env.reset(seed=rows)
    saved = writer.resume_state()
    if saved is None:
        return observations
    env.set_state({name.removeprefix("env."): v for name, v in saved.items() if name.startswith("env.")})
    return saved["observations"]

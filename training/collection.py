"""Collecting learning histories: task-parallel learners at work, every step recorded, resumable at every shard."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import mujoco
import numpy as np
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from icrl_agents.envs import MetaVectorEnv, env_definition, task_split
from icrl_agents.errors import ConfigError
from icrl_agents.training.histories import HistoryDataset, HistoryWriter, Manifest
from icrl_agents.training.sources.off_policy import OffPolicySource
from icrl_agents.training.sources.policies import SnapshotPolicies, snapshot_by_task
from icrl_agents.training.sources.ppo import PPOConfig, TaskParallelPPO
from icrl_agents.training.sources.rollouts import Recording, RolloutCollector
from icrl_agents.training.sources.sac import SACConfig

EVALUATION_EPISODES = 20
"""Episodes per task behind every mean return of a source policy."""


@dataclass(frozen=True)
class CollectionConfig:
    """What to collect.

    Attributes:
        env_id: Gymnasium id.
        split: named task split.
        subset: part of the split: train, val, test, or several joined by "+".
        steps_per_task: environment steps each learner takes, over all its streams.
        streams: environments each learner learns from; each gives one history.
        shard_steps: steps of each history per shard; a kill costs at most this many.
        snapshots: policies kept per learner, evenly spaced.
        seed: of everything.
        task_informed: one learner over all tasks whose policy sees the task vector, instead of one learner a task.
        ppo: the source algorithm's hyper-parameters.
        sac: those of SAC or DroQ, where that is the source algorithm instead.
    """

    env_id: str
    split: str = "paper"
    subset: str = "train"
    steps_per_task: int = 100_000
    streams: int = 5
    shard_steps: int = 1_000
    snapshots: int = 40
    seed: int = 0
    task_informed: bool = False
    ppo: PPOConfig = field(default_factory=PPOConfig)
    sac: SACConfig | None = None

    @property
    def steps(self) -> int:
        """Steps per history, a whole number of shards."""
        return self.steps_per_task // self.streams // self.shard_steps * self.shard_steps

    @property
    def interval(self) -> int:
        """Steps per history that the source takes at a time: a roll-out, or what divides a shard."""
        return self.ppo.n_steps if self.sac is None else math.gcd(self.shard_steps, 50)


class Source(Protocol):
    """Learners at work in the rows of one environment."""

    env: MetaVectorEnv

    def advance(self, steps: int) -> Recording:
        """Take so many steps in every row and learn from them."""

    def snapshot(self) -> dict[str, Tensor]:
        """The policies of all tasks."""

    def state(self) -> dict[str, Any]:
        """Everything that the next steps depend on and the recorded histories do not hold."""

    def resume(self, saved: Mapping[str, np.ndarray], writer: HistoryWriter) -> None:
        """Continue from what :meth:`state` gave and what was recorded until then."""


def collect(
    config: CollectionConfig,
    directory: str | Path,
    *,
    device: torch.device | str = "cpu",
    on_shard: Callable[[int], None] | None = None,
    quiet: bool = False,
) -> HistoryDataset:
    """Collect learning histories with task-parallel learners, or go on with a collection that was interrupted.

    Args:
        config: what to collect.
        directory: of the dataset.
        device: that SAC and DroQ learn on; PPO knows only the CPU.
        on_shard: called with the committed steps per history after every shard.
        quiet: no progress bar.

    Returns:
        The complete dataset.

    Raises:
        ConfigError: steps that do not divide, or a device that the source cannot use.
        DatasetError: the directory holds another collection, or another process writes there.
    """
    _check(config, torch.device(device))
    manifest = collection_manifest(config)
    with HistoryWriter.create_or_resume(directory, manifest) as writer:
        if not writer.complete:
            _collect(config, manifest, writer, torch.device(device), on_shard, quiet)
    return HistoryDataset(directory)


def _collect(
    config: CollectionConfig,
    manifest: Manifest,
    writer: HistoryWriter,
    device: torch.device,
    on_shard: Callable[[int], None] | None,
    quiet: bool,
) -> None:
    source = _begin_or_resume(config, manifest, writer, device)
    env, interval = source.env, config.interval
    every = max(1, config.steps // interval // config.snapshots) * interval
    steps = writer.steps
    with collection_progress(quiet) as bar:
        task = bar.add_task("collecting", total=config.steps * env.num_envs, completed=steps * env.num_envs, note="")
        while steps < config.steps:
            recordings: list[Recording] = []
            for _ in range(config.shard_steps // interval):
                recording = source.advance(interval)
                recordings.append(recording)
                steps += interval
                if steps % every == 0 or steps == config.steps:
                    writer.save_snapshot(steps, source.snapshot())
                per_episode = float(recording.arrays["rewards"].mean()) * manifest.episode_steps
                bar.update(task, completed=steps * env.num_envs, note=f"return {per_episode:8.2f}")
            writer.append(_joined(recordings), source.state())
            if not bar.console.is_terminal and not quiet:
                print(
                    f"{steps} of {config.steps} steps per history, return per episode {per_episode:.2f}",
                    flush=True,
                )
            if on_shard is not None:
                on_shard(steps)
    bounds = env.single_action_space
    policies = SnapshotPolicies(source.snapshot(), bounds.low, bounds.high)  # type: ignore[attr-defined]
    writer.finish(evaluate_policies(policies.act, config.env_id, list(manifest.tasks), config.seed).mean(1))


def evaluate_policies(
    act: Callable[[np.ndarray], np.ndarray],
    env_id: str,
    tasks: list[Any],
    seed: int,
    episodes: int = EVALUATION_EPISODES,
) -> np.ndarray:
    """Returns of policies without memory, one a task.

    Args:
        act: observations ``[tasks, episodes, N_o]`` to actions ``[tasks, episodes, A]``.
        env_id: Gymnasium id.
        tasks: K tasks.
        seed: of the initial states.
        episodes: of each task.

    Returns:
        ``[K, episodes]``, undiscounted.
    """
    env = make_rows(env_id, tasks, episodes)
    observations, _ = env.reset(seed=seed + 1_000_000)  # apart from the seeds that learners train with
    returns = np.zeros(env.num_envs)
    running = np.ones(env.num_envs, bool)
    while running.any():
        actions = act(observations.reshape(len(tasks), episodes, -1)).reshape(env.num_envs, -1)
        observations, rewards, terminated, truncated, _ = env.step(actions)
        returns += rewards * running
        running &= ~(terminated | truncated)
    return returns.reshape(len(tasks), episodes)


def make_rows(env_id: str, tasks: Any, rows_per_task: int) -> MetaVectorEnv:
    """A native vector environment with ``rows_per_task`` adjacent rows of each task."""
    rows = [task for task in tasks for _ in range(rows_per_task)]
    env = gymnasium.make_vec(env_id, num_envs=len(rows), tasks=rows).unwrapped
    assert isinstance(env, MetaVectorEnv)
    return env


def learner_seed(seed: int, learner: int) -> int:
    """The seed of one learner: it depends on no other learner."""
    return int(np.random.SeedSequence([seed, learner]).generate_state(1)[0])


class OnPolicySource:
    """PPO learners and the rows they act in, a :class:`Source`.

    Args:
        config: of the collection.
        env: rows in the order learner-major.
        observations: the rows' current observations ``[H, N_o]``.
        tasks: task vectors in the order of the rows ``[tasks, k]``.
        seeds: one a learner.
    """

    def __init__(
        self,
        config: CollectionConfig,
        env: MetaVectorEnv,
        observations: np.ndarray,
        tasks: np.ndarray,
        seeds: list[int],
    ) -> None:
        self.env = env
        self._tasks, self._informed = tasks, config.task_informed
        rows_per_learner = env.num_envs // len(seeds)
        self._learner = TaskParallelPPO(
            config.ppo,
            env.definition.observation_dim + (tasks.shape[1] if config.task_informed else 0),
            env.single_action_space.shape[0],  # type: ignore[index]
            seeds,
            rows_per_learner,
            iterations=config.steps // config.ppo.n_steps,
        )
        seen = np.repeat(tasks, config.streams, axis=0) if config.task_informed else None
        self._collector = RolloutCollector(env, self._learner, observations, seen)

    def advance(self, steps: int) -> Recording:
        """One roll-out, which is ``config.interval`` steps, and the updates from it."""
        rollout, recording = self._collector.collect()
        self._learner.update(rollout)
        return recording

    def snapshot(self) -> dict[str, Tensor]:
        """The policies of all tasks."""
        snapshot = self._learner.snapshot()
        return snapshot_by_task(snapshot, self._tasks) if self._informed else snapshot

    def state(self) -> dict[str, Any]:
        """Everything that the next steps depend on."""
        return {
            **{f"env.{name}": value for name, value in self.env.get_state().items()},
            **{f"ppo.{name}": value for name, value in self._learner.state_dict().items()},
            "observations": self._collector.observations,
        }

    def resume(self, saved: Mapping[str, np.ndarray], writer: HistoryWriter) -> None:
        """Continue from what :meth:`state` gave."""
        self.env.set_state({k.removeprefix("env."): v for k, v in saved.items() if k.startswith("env.")})
        self._learner.load_state_dict(
            {k.removeprefix("ppo."): torch.from_numpy(v.copy()) for k, v in saved.items() if k.startswith("ppo.")}
        )
        self._collector.observations = saved["observations"]


def _begin_or_resume(
    config: CollectionConfig, manifest: Manifest, writer: HistoryWriter, device: torch.device
) -> Source:
    env = make_rows(config.env_id, manifest.tasks, config.streams)
    tasks = np.stack([env.definition.task_vector(task) for task in manifest.tasks])
    seeds = [learner_seed(config.seed, k) for k in range(1 if config.task_informed else len(tasks))]
    rows = [
        int(np.random.SeedSequence([config.seed, k, s]).generate_state(1)[0])
        for k in range(len(tasks))
        for s in range(config.streams)
    ]
    observations, _ = env.reset(seed=rows)
    source: Source
    if config.sac is None:
        source = OnPolicySource(config, env, observations, tasks, seeds)
    else:
        source = OffPolicySource(
            config.sac,
            env,
            observations,
            tasks,
            seeds,
            config.steps,
            task_informed=config.task_informed,
            device=device,
        )
    saved = writer.resume_state()
    if saved is not None:
        source.resume(saved, writer)
    return source


def _joined(recordings: list[Recording]) -> dict[str, np.ndarray]:
    """Consecutive recordings as the arrays of one shard."""
    names = recordings[0].arrays
    arrays = {name: np.concatenate([r.arrays[name] for r in recordings], axis=1) for name in names}
    per_history = zip(*(r.final_observations for r in recordings), strict=True)
    return {**arrays, "final_observations": np.concatenate([end for ends in per_history for end in ends])}


def collection_manifest(config: CollectionConfig) -> Manifest:
    """What the dataset of a collection says about itself."""
    split = task_split(config.env_id, config.split)
    definition = env_definition(config.env_id)
    tasks = [task for part in config.subset.split("+") for task in split.subset(part)]
    probe = make_rows(config.env_id, tasks[:1], 1)
    algorithm = "PPO" if config.sac is None else config.sac.algorithm
    return Manifest(
        env_id=config.env_id,
        mujoco_version=mujoco.__version__,
        split=split.name,
        split_hash=split.content_hash,
        subset=config.subset,
        tasks=tuple(tasks),
        streams_per_task=config.streams,
        episode_steps=definition.horizon,
        observation_dim=definition.observation_dim,
        action_dim=int(np.prod(probe.single_action_space.shape or ())),
        source=f"task-informed {algorithm}" if config.task_informed else f"task-parallel {algorithm}",
        hyperparameters={
            **dataclasses.asdict(config.ppo if config.sac is None else config.sac),
            "steps_per_task": config.steps_per_task,
            "shard_steps": config.shard_steps,
            "snapshots": config.snapshots,
            "torch": torch.__version__,
        },
        seed=config.seed,
    )


def _check(config: CollectionConfig, device: torch.device) -> None:
    if config.sac is None and device.type != "cpu":
        raise ConfigError(f"PPO learns on the CPU, got device {str(device)!r}; SAC and DroQ take others")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no CUDA device here; take device 'cpu'")
    if config.shard_steps % config.interval:
        raise ConfigError(f"shard_steps {config.shard_steps} is no multiple of the roll-out's {config.interval} steps")
    if config.steps < 1:
        raise ConfigError(
            f"steps_per_task {config.steps_per_task} over {config.streams} streams is less than one shard of "
            f"{config.shard_steps} steps"
        )


def collection_progress(quiet: bool) -> Progress:
    """A bar whose tasks have a field ``note``; none where output is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
    )
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn())
    bar.disable = quiet or not bar.console.is_terminal  # a log file gets lines instead
    return bar

"""Collecting learning histories: task-parallel learners at work, every step recorded, resumable at every shard."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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

from icrl_agents.agent_inputs import make_of
from icrl_agents.envs import MetaVectorEnv, Task, TaskSplit, env_definition, task_split
from icrl_agents.errors import ConfigError
from icrl_agents.training.histories import HistoryDataset, HistoryWriter, Manifest
from icrl_agents.training.parallel import checked_device
from icrl_agents.training.seeds import check_seed, purpose_seed
from icrl_agents.training.shards import as_half
from icrl_agents.training.sources.consolidation import ConsolidationConfig, consolidate
from icrl_agents.training.sources.off_policy import OffPolicySource
from icrl_agents.training.sources.on_policy import OnPolicySource
from icrl_agents.training.sources.policies import SnapshotPolicies, snapshot_by_task, symmetries_of
from icrl_agents.training.sources.ppo import PPOConfig, TaskParallelPPO
from icrl_agents.training.sources.rollouts import Recording, told
from icrl_agents.training.sources.sac import SACConfig

SAMPLED = int.from_bytes(b"sampled")
"""Sets the random stream of sampled tasks apart from those that splits were drawn from."""

EVALUATION_EPISODES = 20
"""Episodes per task behind every mean return of a source policy."""


@dataclass(frozen=True)
class CollectionConfig:
    """What to collect.

    Attributes:
        env_id: Gymnasium id.
        split: named task split.
        subset: part of the split: train, val, test, "sampled:N" for N more of the distribution, drawn by the seed and
            none of val or test, or several joined by "+".
        steps_per_task: environment steps each learner takes, over all its streams.
        streams: environments each learner learns from; each gives one history.
        shard_steps: steps of each history per shard; a kill costs at most this many.
        snapshots: policies kept per learner, evenly spaced.
        seed: of everything.
        task_informed: one learner over all tasks whose policy sees the task vector, instead of one learner a task.
        privileged: let the policies of a task-informed PPO also see what the environment calls privileged, as where
            Pusher-Goal's object is by now.
        symmetric: let the policies of a task-informed PPO see and act through the symmetry of their tasks that the
            environment knows, as quarter turns of Ant-Dir's ant: all directions are learned as those of one quadrant.
        ppo: the source algorithm's hyper-parameters.
        specialise_steps_per_task: steps that follow, in which the one informed learner has become one learner a task;
            0 does without.
        specialise: hyper-parameters of those; its networks are as wide.
        consolidate: how the specialised policies become one again, which is told the task; by default they do not.
            It is the last snapshot, one step later than the last that was learned by reward.
        informed: directory of a dataset whose one learner of all tasks is specialised right away, instead of a new
            one's; ``steps_per_task`` is then 0.
        sac: hyper-parameters of SAC or DroQ, where that is the source algorithm instead of PPO.
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
    privileged: bool = False
    symmetric: bool = False
    ppo: PPOConfig = field(default_factory=PPOConfig)
    specialise_steps_per_task: int = 0
    specialise: PPOConfig | None = None
    consolidate: ConsolidationConfig = field(default_factory=ConsolidationConfig)
    informed: str | None = None
    sac: SACConfig | None = None

    @property
    def shared_steps(self) -> int:
        """Steps per history before learners specialise, a whole number of shards."""
        return self._whole_shards(self.steps_per_task)

    @property
    def steps(self) -> int:
        """Steps per history in all."""
        return self.shared_steps + self._whole_shards(self.specialise_steps_per_task)

    @property
    def interval(self) -> int:
        """Steps per history that learners take at a time: a roll-out, or what divides a shard."""
        return self.ppo.n_steps if self.sac is None else math.gcd(self.shard_steps, 50)

    def _whole_shards(self, steps_per_task: int) -> int:
        return steps_per_task // self.streams // self.shard_steps * self.shard_steps


OnRollout = Callable[[int, float], None]
"""Called with the steps per history so far and the mean return per episode of what came last."""


@dataclass(frozen=True)
class Interval:
    """The next steps of some tasks' histories, one shard of them.

    Attributes:
        arrays: what :meth:`HistoryWriter.append` takes.
        snapshots: the policies that are kept, by their step; first axis the task.
        state: where the learners and their environment rows stand after it. But for single numbers, the first axis is
            the learner or the row, task after task: the state of some tasks is a slice of the state of all.
        learner: what the one learner of all tasks knows, where it has come to its end.
    """

    arrays: Mapping[str, np.ndarray]
    snapshots: Mapping[int, Mapping[str, Any]]
    state: Mapping[str, Any]
    learner: Mapping[str, Any] | None = None


class Engine(Protocol):
    """Where the learners of a collection work: this process, or a cluster."""

    def check(self, config: CollectionConfig, manifest: Manifest) -> None:
        """Before anything is written.

        Raises:
            ConfigError: it cannot collect that.
        """

    def intervals(
        self,
        config: CollectionConfig,
        manifest: Manifest,
        writer: HistoryWriter,
        on_rollout: OnRollout,
    ) -> Iterator[Interval]:
        """Every interval that is left, of all histories, in order.

        Args:
            config: what to collect.
            manifest: of the dataset.
            writer: knows what was committed; nothing is written to it.
            on_rollout: called as it goes.
        """


class LocalEngine:
    """All learners in this process, as one batched program.

    Args:
        device: that SAC and DroQ learn on; PPO knows only the CPU.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = str(device)

    def check(self, config: CollectionConfig, manifest: Manifest) -> None:
        """See :meth:`Engine.check`."""
        if config.sac is None and self.device != "cpu":
            raise ConfigError(f"PPO learns on the CPU, got device {self.device!r}; SAC and DroQ take others")
        checked_device(self.device)

    def intervals(
        self,
        config: CollectionConfig,
        manifest: Manifest,
        writer: HistoryWriter,
        on_rollout: OnRollout,
    ) -> Iterator[Interval]:
        """See :meth:`Engine.intervals`."""
        source = Source(config, manifest, writer.resume_state(), writer.steps, writer=writer, device=self.device)
        while source.steps < config.steps:
            yield source.advance(on_rollout)


def collect(
    config: CollectionConfig,
    directory: str | Path,
    *,
    engine: Engine | None = None,
    on_shard: Callable[[int], None] | None = None,
    quiet: bool = False,
) -> HistoryDataset:
    """Collect learning histories with task-parallel learners, or go on with a collection that was interrupted.

    Args:
        config: what to collect.
        directory: of the dataset.
        engine: where the learners work; None is this process. It is no part of what is collected: another one may go
            on with the same dataset.
        on_shard: called with the committed steps per history after every shard.
        quiet: no progress bar.

    Returns:
        The complete dataset.

    Raises:
        ConfigError: steps that do not divide, or an engine that cannot collect this.
        DatasetError: the directory holds another collection, or another process writes there.
    """
    check_collection(config)
    manifest = collection_manifest(config)
    engine = engine or LocalEngine()
    engine.check(config, manifest)
    with HistoryWriter.create_or_resume(directory, manifest) as writer:
        if not writer.complete:
            _collect(config, engine, manifest, writer, on_shard, quiet)
    return HistoryDataset(directory)


def _collect(
    config: CollectionConfig,
    engine: Engine,
    manifest: Manifest,
    writer: HistoryWriter,
    on_shard: Callable[[int], None] | None,
    quiet: bool,
) -> None:
    rows = manifest.histories
    with collection_progress(quiet) as bar:
        task = bar.add_task("collecting", total=config.steps * rows, completed=writer.steps * rows, note="")

        def show(steps: int, per_episode: float) -> None:
            bar.update(task, completed=steps * rows, note=f"return {per_episode:8.2f}", per_episode=per_episode)

        for interval in engine.intervals(config, manifest, writer, show):
            for step, tensors in interval.snapshots.items():
                writer.save_snapshot(step, tensors)
            if interval.learner is not None:
                writer.save_learner(interval.learner)
            writer.append(interval.arrays, interval.state)
            if not bar.console.is_terminal and not quiet:
                per_episode = bar.tasks[task].fields["per_episode"]
                print(
                    f"{writer.steps} of {config.steps} steps per history, return per episode {per_episode:.2f}",
                    flush=True,
                )
            if on_shard is not None:
                on_shard(writer.steps)
    stored = HistoryDataset(writer.directory, require_complete=False)
    space: Any = make_rows(config.env_id, manifest.tasks[:1], 1).single_action_space
    final = stored.snapshot()
    if config.consolidate.rounds:
        final = _consolidated(config, manifest, stored, final, quiet)
        writer.save_snapshot(config.steps + 1, final)
    policies = SnapshotPolicies(final, space.low, space.high)
    returns = evaluate_policies(
        policies.act, config.env_id, list(manifest.tasks), config.seed, privileged=config.privileged
    )
    writer.finish(returns.mean(1))


def _consolidated(
    config: CollectionConfig, manifest: Manifest, stored: HistoryDataset, last: Mapping[str, np.ndarray], quiet: bool
) -> dict[str, np.ndarray]:
    """One policy of all tasks that was drawn to the last ones: a snapshot with one a task, rounded as it is stored."""
    env = make_rows(config.env_id, manifest.tasks, config.streams)
    space: Any = env.single_action_space
    vectors = np.stack([env.definition.task_vector(task) for task in manifest.tasks])
    informed = informed_snapshot(config.ppo, stored if config.informed is None else HistoryDataset(config.informed))
    with collection_progress(quiet) as bar:
        shown = bar.add_task("consolidating", total=config.consolidate.rounds, note="")

        def show(done: int, error: float) -> None:
            bar.update(shown, completed=done, note=f"error {error:.5f}")
            if not bar.console.is_terminal and not quiet and done % 25 == 0:
                print(f"{done} of {config.consolidate.rounds} rounds of consolidation, error {error:.5f}", flush=True)

        one = consolidate(
            config.consolidate,
            env,
            vectors,
            SnapshotPolicies(last, space.low, space.high),
            {**informed, "log_std": torch.from_numpy(last["log_std"].mean(0, keepdims=True))},
            purpose_seed(config.seed, "consolidation"),
            privileged=config.privileged,
            on_round=show,
        )
    by_task = {name: np.asarray(tensor.detach()) for name, tensor in snapshot_by_task(one, vectors).items()}
    rounded = {name: as_half(array).astype(np.float32) for name, array in by_task.items()}
    return {name: by_task[name] if name.startswith("observation_") else rounded[name] for name in by_task}


def informed_snapshot(config: PPOConfig, dataset: HistoryDataset) -> dict[str, Tensor]:
    """The policy of the one learner of all tasks that a dataset holds, first axis 1.

    Raises:
        DatasetError: every task had a learner of its own, or its file is damaged.
    """
    known = {name: torch.from_numpy(array.copy()) for name, array in dataset.learner().items()}
    learner = TaskParallelPPO(config, known["observation_mean"].shape[-1], dataset.manifest.action_dim, [0], 1, 1)
    learner.load_state_dict(known)
    return learner.snapshot()


class Source:
    """The learners of a collection, or of some of its tasks, the rows they act in, and where both stand.

    Args:
        config: of the collection.
        manifest: of its dataset.
        saved: the state to go on from; None begins.
        steps: per history that led there.
        part: positions of the tasks in the manifest; None is all. What a learner does depends on no other.
        num_threads: of the physics; 0 means all cores.
        writer: holds what was recorded, which off-policy learners go on from.
        device: that off-policy learners learn on.
    """

    def __init__(
        self,
        config: CollectionConfig,
        manifest: Manifest,
        saved: Mapping[str, np.ndarray] | None = None,
        steps: int = 0,
        part: range | None = None,
        num_threads: int = 0,
        *,
        writer: HistoryWriter | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._config, self._manifest, self.steps = config, manifest, steps
        self._part = range(len(manifest.tasks)) if part is None else part
        env = make_rows(config.env_id, [manifest.tasks[k] for k in self._part], config.streams, num_threads)
        tasks = np.stack([env.definition.task_vector(manifest.tasks[k]) for k in self._part])
        seeds = self._seeds(range(1) if config.task_informed else self._part)
        rows = [
            int(np.random.SeedSequence([config.seed, k, s]).generate_state(1)[0])
            for k in self._part
            for s in range(config.streams)
        ]
        observations, _ = env.reset(seed=rows)
        self._learners: OnPolicySource | OffPolicySource
        if config.sac is None:
            iterations = config.shared_steps // config.ppo.n_steps
            self._learners = OnPolicySource(
                config.ppo,
                env,
                observations,
                tasks,
                seeds,
                iterations,
                task_informed=config.task_informed,
                privileged=config.privileged,
                symmetric=config.symmetric,
            )
            if config.informed is not None:
                self._learners.begin_from(HistoryDataset(config.informed).learner())
            if saved is not None:
                if steps > config.shared_steps:
                    self._specialise(self._learners)
                self._learners.resume(saved)
        else:
            self._learners = OffPolicySource(
                config.sac,
                env,
                observations,
                tasks,
                seeds,
                config.steps,
                task_informed=config.task_informed,
                device=device,
            )
            if saved is not None:
                assert writer is not None
                self._learners.resume(saved, writer)

    def advance(self, on_rollout: OnRollout | None = None) -> Interval:
        """The next interval of every history, and learning from it. Its state is valid until the next call."""
        config, learners = self._config, self._learners
        on_policy = learners if isinstance(learners, OnPolicySource) else None
        if on_policy is not None and self.steps == config.shared_steps:
            self._specialise(on_policy)
        recordings: list[Recording] = []
        snapshots: dict[int, dict[str, Tensor]] = {}
        for _ in range(config.shard_steps // config.interval):
            recording = learners.advance(config.interval)
            recordings.append(recording)
            self.steps += config.interval
            if self._keeps_snapshot():
                snapshots[self.steps] = {name: tensor.clone() for name, tensor in learners.snapshot().items()}
            if on_rollout is not None:
                per_episode = float(recording.arrays["rewards"].mean()) * self._manifest.episode_steps
                on_rollout(self.steps, per_episode)
        ends = on_policy is not None and on_policy.shared and self.steps == config.shared_steps
        known = on_policy.learner.knowledge() if on_policy is not None and ends else None
        return Interval(_joined(recordings), snapshots, learners.state(), known)

    def _specialise(self, learners: OnPolicySource) -> None:
        """Let the informed learner become one learner a task."""
        config = self._config
        assert config.specialise is not None
        iterations = (config.steps - config.shared_steps) // config.specialise.n_steps
        learners.specialise(config.specialise, self._seeds(self._part), iterations)

    def _keeps_snapshot(self) -> bool:
        """Whether the policies as they are now are kept."""
        config = self._config
        every = max(1, config.steps // config.interval // config.snapshots) * config.interval
        return self.steps % every == 0 or self.steps == config.steps

    def _seeds(self, learners: range) -> list[int]:
        return [learner_seed(self._config.seed, k) for k in learners]


def evaluate_policies(
    act: Callable[[np.ndarray], np.ndarray],
    env_id: str,
    tasks: list[Any],
    seed: int,
    episodes: int = EVALUATION_EPISODES,
    *,
    privileged: bool = False,
) -> np.ndarray:
    """Returns of policies without memory, one a task.

    Args:
        act: what is seen ``[tasks, episodes, N_s]`` to actions ``[tasks, episodes, A]``.
        env_id: Gymnasium id.
        tasks: K tasks.
        seed: of the initial states.
        episodes: of each task.
        privileged: whether ``act`` sees behind the observation what the environment calls privileged, or that alone.

    Returns:
        ``[K, episodes]``, undiscounted.
    """
    env = make_rows(env_id, tasks, episodes)
    observations, _ = env.reset(seed=seed + 1_000_000)  # apart from the seeds that learners train with
    returns = np.zeros(env.num_envs)
    running = np.ones(env.num_envs, bool)
    while running.any():
        seen = told(observations, env.privileged) if privileged else observations
        actions = act(seen.reshape(len(tasks), episodes, -1)).reshape(env.num_envs, -1)
        observations, rewards, terminated, truncated, _ = env.step(actions)
        returns += rewards * running
        running &= ~(terminated | truncated)
    return returns.reshape(len(tasks), episodes)


def make_rows(
    env_id: str, tasks: Any, rows_per_task: int, num_threads: int = 0, options: Mapping[str, Any] | None = None
) -> MetaVectorEnv:
    """A native vector environment with ``rows_per_task`` adjacent rows of each task, and what else it is made with.

    Raises:
        ConfigError: options that are none of the environment's.
    """
    rows = [task for task in tasks for _ in range(rows_per_task)]
    own = {"num_envs": len(rows), "tasks": rows, "num_threads": num_threads}
    env = make_of(gymnasium.make_vec, env_id, options or {}, **own).unwrapped
    assert isinstance(env, MetaVectorEnv)
    return env


def learner_seed(seed: int, learner: int) -> int:
    """The seed of one learner: it depends on no other learner."""
    return int(np.random.SeedSequence([seed, learner]).generate_state(1)[0])


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
    tasks = tasks_of_subset(split, config.subset, config.seed)
    probe = make_rows(config.env_id, tasks[:1], 1)
    algorithm = "PPO" if config.sac is None else config.sac.algorithm
    extras: dict[str, Any] = {}
    if config.privileged:
        extras["privileged"] = True
    if config.symmetric:
        extras["symmetric"] = True
    if config.specialise is not None and config.specialise_steps_per_task:
        extras["specialise_steps_per_task"] = config.specialise_steps_per_task
        extras["specialise"] = dataclasses.asdict(config.specialise)
    if config.consolidate.rounds:
        extras["consolidate"] = dataclasses.asdict(config.consolidate)
    if config.informed is not None:
        extras["informed"] = HistoryDataset(config.informed).manifest.digest()
    return Manifest(
        env_id=config.env_id,
        mujoco_version=mujoco.__version__,
        split=split.name,
        split_hash=split.content_hash,
        subset=config.subset,
        tasks=tasks,
        streams_per_task=config.streams,
        episode_steps=definition.horizon,
        observation_dim=definition.observation_dim,
        action_dim=int(np.prod(probe.single_action_space.shape or ())),
        source=f"task-informed {algorithm}" if config.task_informed else f"task-parallel {algorithm}",
        hyperparameters={
            **dataclasses.asdict(config.ppo if config.sac is None else config.sac),
            **extras,
            "steps_per_task": config.steps_per_task,
            "shard_steps": config.shard_steps,
            "snapshots": config.snapshots,
            "torch": torch.__version__,
        },
        seed=config.seed,
    )


def tasks_of_subset(split: TaskSplit, subset: str, seed: int) -> tuple[Task, ...]:
    """What ``"train+sampled:140"`` means, see :class:`CollectionConfig`.

    Raises:
        UnknownNameError: no such part.
        ConfigError: tasks are sampled twice, or the distribution has not so many that the split does not hold out.
    """
    if subset.count("sampled:") > 1:
        raise ConfigError(f"tasks are sampled once, all together, got {subset!r}")
    return tuple(task for part in subset.split("+") for task in _tasks_of(part, split, seed))


def _tasks_of(part: str, split: TaskSplit, seed: int) -> Sequence[Task]:
    """The tasks of one part of a subset."""
    kind, _, count = part.partition(":")
    if kind != "sampled":
        return split.subset(part)
    if not count.isdecimal() or int(count) < 1:
        raise ConfigError(f"more tasks of the distribution are 'sampled:N', N at least 1, got {part!r}")
    return sampled_tasks(split, int(count), np.random.SeedSequence([seed, SAMPLED]))


def sampled_tasks(split: TaskSplit, wanted: int, stream: np.random.SeedSequence) -> Sequence[Task]:
    """So many tasks of the distribution that the split does not hold out for validation and test.

    Raises:
        ConfigError: the distribution hardly has other tasks.
    """
    held_out = [*split.val, *split.test]
    drawn = env_definition(split.env_id).sample_tasks(2 * wanted + 100, stream)  # the first are those of fewer draws
    kept = [task for task in drawn if task not in held_out][:wanted]
    if len(kept) < wanted:
        raise ConfigError(
            f"{len(drawn)} tasks drawn from the distribution of {split.env_id} gave {len(kept)} that split "
            f"{split.name!r} does not hold out for validation and test; expected {wanted}"
        )
    return kept


def check_collection(config: CollectionConfig) -> None:
    """Settings that do not go together.

    Raises:
        ConfigError: says which, and what was expected.
    """
    if config.shard_steps % config.interval:
        raise ConfigError(f"shard_steps {config.shard_steps} is no multiple of the roll-out's {config.interval} steps")
    if config.specialise_steps_per_task:
        if not config.task_informed or config.specialise is None or config.sac is not None:
            raise ConfigError("learners specialise from one task-informed PPO, by hyper-parameters of their own")
        if config.specialise.hidden != config.ppo.hidden:
            raise ConfigError(
                f"a specialised learner's networks are as wide as the informed one's {config.ppo.hidden}, "
                f"got {config.specialise.hidden}"
            )
        if config.specialise.n_steps != config.ppo.n_steps:
            raise ConfigError(
                f"a specialised learner's roll-outs have as many steps as the informed one's {config.ppo.n_steps}, "
                f"got {config.specialise.n_steps}"
            )
    if config.consolidate.rounds and not config.specialise_steps_per_task:
        raise ConfigError("policies are consolidated that had specialised: give specialise_steps_per_task")
    if config.privileged:
        if not config.task_informed or config.sac is not None:
            raise ConfigError("what is privileged is for the policies of a task-informed PPO")
        if not env_definition(config.env_id).privileged_dim:
            raise ConfigError(f"{config.env_id} calls nothing privileged: its task says all that observations hide")
    if config.symmetric:
        if not config.task_informed or config.sac is not None:
            raise ConfigError("symmetric is for the policies of a task-informed PPO")
        if config.privileged:
            raise ConfigError("a symmetry says nothing of what is privileged: symmetric or privileged, not both")
        if config.consolidate.rounds:
            raise ConfigError("symmetric policies are not consolidated: what they see and do is turned task by task")
        definition = env_definition(config.env_id)
        symmetries_of(definition, definition.task_vector(definition.sample_tasks(1, 0)[0])[None])
    check_informed(config)
    check_amount(config)


def check_informed(config: CollectionConfig) -> None:
    """An informed learner to begin from that is of another environment, or does not fit.

    Raises:
        ConfigError: says what it is, and what was expected.
        DatasetError: ``informed`` is no dataset.
    """
    if config.informed is None:
        return
    informed = HistoryDataset(config.informed)
    informed.learner()  # raises where there is none
    began = informed.manifest
    here = {
        "env_id": config.env_id,
        "privileged": config.privileged,
        "symmetric": config.symmetric,
        "hidden": list(config.ppo.hidden),
    }
    known = {
        "env_id": began.env_id,
        "privileged": began.hyperparameters.get("privileged", False),
        "symmetric": began.hyperparameters.get("symmetric", False),
        "hidden": list(began.hyperparameters.get("hidden", here["hidden"])),
    }
    if known != here:
        raise ConfigError(f"the learner of {config.informed} had {known}, this has {here}")


def check_amount(config: CollectionConfig) -> None:
    """A seed, and amounts that make at least one shard, which any source needs.

    Raises:
        ConfigError: says what was expected.
    """
    check_seed(config.seed)
    for name in ("streams", "shard_steps", "snapshots"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name}: expected at least 1, got {getattr(config, name)}")
    if config.specialise_steps_per_task < 0:
        raise ConfigError(f"specialise_steps_per_task: expected at least 0, got {config.specialise_steps_per_task}")
    if config.specialise_steps_per_task and config.steps == config.shared_steps:
        raise ConfigError(
            f"specialise_steps_per_task {config.specialise_steps_per_task} over {config.streams} streams is less than "
            f"one shard of {config.shard_steps} steps"
        )
    if config.shared_steps < 1 and config.informed is None:
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

"""A teacher that was not learned by trial and error: one policy that is told the goal, drawn to plans.

Only for Reacher-Goal, whose best reaches can be computed (:mod:`icrl_agents.training.sources.reach_planner`). Plans are
made from where episodes start, from anywhere, and then from where the policy itself goes, as in DAgger (arXiv
1011.0686): for its own goal, for another's, with noise. It learns what they do by squared error.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from icrl_agents.envs import MetaVectorEnv
from icrl_agents.envs.reacher_goal import GOAL_RADIUS
from icrl_agents.errors import ConfigError
from icrl_agents.training.collection import (
    CollectionConfig,
    check_amount,
    collection_manifest,
    collection_progress,
    evaluate_policies,
    make_rows,
)
from icrl_agents.training.histories import HistoryDataset, HistoryWriter
from icrl_agents.training.seeds import purpose_seed
from icrl_agents.training.sources.batched import BatchedMLP
from icrl_agents.training.sources.policies import SnapshotPolicies, snapshot_by_task
from icrl_agents.training.sources.reach_planner import BENT, STEPS, observe_arm, plan, step_arm
from icrl_agents.training.sources.rollouts import StepRecorder

PLANNED = "planned"
"""The source."""

_ENV_ID = "icrl/ReacherGoal-v0"
_LEARNED = STEPS - 5  # the last steps of a plan know that the episode ends, which no observation tells


@dataclass(frozen=True)
class PlannedConfig:
    """How one policy is drawn to plans.

    Attributes:
        rounds: of planning and learning.
        plans: of each round, half of them for the training goals and half for others of the disk, more of them near
            the base than there are.
        wild: part of the first round's that begin anywhere at any speed; the others begin where episodes do.
        wrong_goal: part of the later rounds' that begin where another goal's actions lead.
        noise: standard deviations of the noise on actions that lead there, one of which is drawn for each.
        updates: of each round, from all plans so far.
        batch_size: steps in each.
        learning_rate: of Adam's first update in a round, half of it in all but the first; it falls to 0 as a cosine.
        hidden: widths of the policy's hidden layers.

    Raises:
        ConfigError: a value that cannot be.
    """

    rounds: int = 3
    plans: int = 6_000
    wild: float = 0.3
    wrong_goal: float = 0.25
    noise: tuple[float, ...] = (0.0, 0.0, 0.03, 0.1, 0.3)
    updates: int = 6_000
    batch_size: int = 4_096
    learning_rate: float = 2e-3
    hidden: tuple[int, ...] = (256, 256, 256)

    def __post_init__(self) -> None:
        for name in ("rounds", "plans", "updates", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is at least 1, got {getattr(self, name)}")
        if not (0 <= self.wild <= 1 and 0 <= self.wrong_goal <= 1):
            raise ConfigError(f"wild and wrong_goal are from 0 to 1, got {self.wild} and {self.wrong_goal}")
        if not self.noise or not all(0 <= noise < math.inf for noise in self.noise):
            raise ConfigError(f"noise is at least one finite number of at least 0, got {self.noise}")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate is a finite number above 0, got {self.learning_rate}")
        if min(self.hidden, default=1) < 1:
            raise ConfigError(f"hidden: expected widths of at least 1, got {self.hidden}")


def collect_planned(
    planned: PlannedConfig, config: CollectionConfig, directory: str | Path, *, quiet: bool = False
) -> HistoryDataset:
    """Draw a policy to plans, and record what it does in every task. Interrupted, the same call goes on by rounds.

    Args:
        planned: how.
        config: environment, split, subset, ``steps_per_task``, streams and seed; its own algorithm is not looked at.
        directory: of the dataset.
        quiet: no progress bar.

    Returns:
        The complete dataset: one shard, one snapshot.

    Raises:
        ConfigError: an environment that nobody plans for, or steps that are less than one shard.
        DatasetError: the directory holds another collection, or another process writes there.
    """
    if config.env_id != _ENV_ID:
        raise ConfigError(f"plans are made for {_ENV_ID}, got {config.env_id}")
    check_amount(config)
    amount = {name: getattr(config, name) for name in ("steps_per_task", "shard_steps")}
    options = {**dataclasses.asdict(planned), **amount, "torch": torch.__version__}
    manifest = dataclasses.replace(collection_manifest(config), source="planned policy", hyperparameters=options)
    with HistoryWriter.create_or_resume(directory, manifest) as writer:
        if not writer.complete:
            _collect(planned, config, writer, list(manifest.tasks), quiet)
    return HistoryDataset(directory)


def _collect(
    planned: PlannedConfig, config: CollectionConfig, writer: HistoryWriter, tasks: list[Any], quiet: bool
) -> None:
    env = make_rows(_ENV_ID, tasks, config.streams)
    space: Any = env.single_action_space
    if not writer.steps:
        vectors = np.stack([env.definition.task_vector(task) for task in tasks]).astype(np.float32)
        with collection_progress(quiet) as bar:
            total = planned.rounds * planned.updates
            shown = bar.add_task("planning", total=total, note="")

            def show(done: int, doing: str) -> None:
                bar.update(shown, completed=done, note=doing)
                if not bar.console.is_terminal and not quiet:
                    print(f"{done} of {total} updates, {doing}", flush=True)

            one = draw_to_plans(
                planned,
                vectors,
                purpose_seed(config.seed, PLANNED),
                on_progress=show,
                on_round=writer.save_state,
                resume_from=writer.resume_state(),
            )
        by_task = snapshot_by_task(one, vectors)
        writer.save_snapshot(config.shared_steps, by_task)
        writer.append(_episodes(SnapshotPolicies(by_task, space.low, space.high), env, config), {})
    final = HistoryDataset(writer.directory, require_complete=False).snapshot()
    policies = SnapshotPolicies(final, space.low, space.high)
    writer.finish(evaluate_policies(policies.act, _ENV_ID, tasks, config.seed).mean(1))


def _episodes(policies: SnapshotPolicies, env: MetaVectorEnv, config: CollectionConfig) -> dict[str, np.ndarray]:
    """What the policies do in all rows, as the store wants it."""
    recorder = StepRecorder(env.num_envs, config.shared_steps, env.definition.observation_dim, 2)
    observations, _ = env.reset(seed=purpose_seed(config.seed, PLANNED, "episodes"))
    for t in range(config.shared_steps):
        recorder.arrays["observations"][:, t] = observations
        actions = policies.act(observations.reshape(len(policies), config.streams, -1)).reshape(env.num_envs, -1)
        observations = recorder.step(t, env, actions, actions)
    recording = recorder.recording()
    return {**recording.arrays, "final_observations": np.stack(recording.final_observations)}


def draw_to_plans(
    config: PlannedConfig,
    goals: np.ndarray,
    seed: int,
    *,
    on_progress: Callable[[int, str], None] | None = None,
    on_round: Callable[[Mapping[str, Any]], None] | None = None,
    resume_from: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Tensor]:
    """A policy that is told the goal and does what plans do.

    Args:
        config: how.
        goals: of training ``[K, 2]``, in m.
        seed: of everything.
        on_progress: called with the number of updates done, over all rounds, and what it does now.
        on_round: called after each round with named arrays from which the next can begin.
        resume_from: those of the last round that was finished, of the same settings, goals and seed.

    Returns:
        Its snapshot, first axis 1, with inputs ``[observation, goal]``.
    """
    drawing = _Drawing(config, seed)
    if resume_from is not None:
        drawing.restore(resume_from)
    for number in range(drawing.rounds, config.rounds):

        def show(done: int, doing: str, before: int = number * config.updates) -> None:
            if on_progress is not None:
                on_progress(before + done, doing)

        show(0, f"planning {config.plans} episodes")
        drawing.plan(goals)
        for done, error in drawing.learn():
            show(done, f"squared error {error:.2g}")
        if on_round is not None:
            on_round(drawing.state())
    return drawing.snapshot()


class _Drawing:
    """A policy between two rounds, and all plans so far.

    Args:
        config: how it is drawn to plans.
        seed: of everything.
    """

    def __init__(self, config: PlannedConfig, seed: int) -> None:
        first, second = (int(word) for word in np.random.SeedSequence(seed).generate_state(2))
        self.rounds = 0
        self._config = config
        self._rng = np.random.default_rng(seed)
        self._actor = BatchedMLP((10, *config.hidden, 2), [first], 0.01)
        self._batches = torch.Generator().manual_seed(second)
        self._inputs, self._targets = torch.zeros(0, 10), torch.zeros(0, 2)
        self._mean, self._std = torch.zeros(10), torch.ones(10)

    def plan(self, goals: np.ndarray) -> None:
        """Add a round's plans, from anywhere if it is the first, else from where the policy goes."""
        config, rng = self._config, self._rng
        of = _drawn_goals(goals, config.plans, rng)
        starts = _visited(config, self._act, of, rng) if self.rounds else _anywhere(config, rng)
        plans = plan(*starts, of)
        told = np.broadcast_to(of[:, None], (config.plans, STEPS, 2))
        seen = np.concatenate([observe_arm(plans.angles, plans.speeds), told], -1)[:, :_LEARNED]
        inputs = torch.from_numpy(seen.reshape(-1, 10)).float()
        targets = torch.from_numpy(plans.torques[:, :_LEARNED].reshape(-1, 2)).float().clamp(-1, 1)
        if not self.rounds:
            self._mean, self._std = inputs.mean(0), inputs.std(0)
        self._inputs, self._targets = torch.cat([self._inputs, inputs]), torch.cat([self._targets, targets])

    def learn(self) -> Iterator[tuple[int, float]]:
        """The updates of one round; now and then how many are done, and the mean squared error of those since."""
        config, actor = self._config, self._actor
        inputs = _normalized(self._inputs, self._mean, self._std)
        rate = config.learning_rate * (0.5 if self.rounds else 1)
        adam, total = torch.optim.Adam(actor.parameters, fused=True), 0.0
        every = max(1, config.updates // 10)
        for update in range(config.updates):
            adam.param_groups[0]["lr"] = rate / 2 * (1 + math.cos(math.pi * update / config.updates))
            at = torch.randint(len(inputs), (config.batch_size,), generator=self._batches)
            loss = (actor(inputs[at][None])[0] - self._targets[at]).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            total += loss.item()
            if (update + 1) % every == 0 or update + 1 == config.updates:
                yield update + 1, total / ((update % every) + 1)
                total = 0.0
        self.rounds += 1

    def state(self) -> dict[str, Any]:
        """Named arrays from which the next round can begin."""
        return {
            "rounds": np.int64(self.rounds),
            "rng": np.frombuffer(json.dumps(self._rng.bit_generator.state).encode(), np.uint8),
            "batches": self._batches.get_state(),
            "inputs": self._inputs,
            "targets": self._targets,
            "mean": self._mean,
            "std": self._std,
            **{f"parameter_{i}": parameter for i, parameter in enumerate(self._actor.parameters)},
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a state of the same settings."""
        saved = {name: torch.from_numpy(array) for name, array in state.items()}
        self.rounds = int(saved["rounds"])
        self._rng.bit_generator.state = json.loads(state["rng"].tobytes())
        self._batches.set_state(saved["batches"])
        self._inputs, self._targets, self._mean, self._std = (
            saved[name] for name in ("inputs", "targets", "mean", "std")
        )
        with torch.no_grad():
            for i, parameter in enumerate(self._actor.parameters):
                parameter.copy_(saved[f"parameter_{i}"])

    def snapshot(self) -> dict[str, Tensor]:
        """The policy as the store keeps it, first axis 1."""
        policy = {"observation_mean": self._mean[None], "observation_std": self._std[None]}
        for layer, (weight, bias) in enumerate(zip(self._actor.weights, self._actor.biases, strict=True)):
            policy[f"weight_{layer}"], policy[f"bias_{layer}"] = weight.detach(), bias.detach()
        return policy

    def _act(self, angles: np.ndarray, speeds: np.ndarray, told: np.ndarray) -> np.ndarray:
        seen = torch.from_numpy(np.concatenate([observe_arm(angles, speeds), told], -1)).float()
        with torch.no_grad():
            return self._actor(_normalized(seen, self._mean, self._std)[None])[0].numpy()


def _normalized(seen: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """As snapshots' networks read it."""
    return ((seen - mean) / std).clamp(-10, 10)


def _drawn_goals(goals: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Half of the training goals, half others of the disk ``[count, 2]``: every second of those by its radius."""
    at = np.arange(count)
    radii = GOAL_RADIUS * rng.random(count) ** np.where(at % 4 == 1, 0.5, 1.0)
    turns = 2 * np.pi * rng.random(count)
    others = np.stack([radii * np.cos(turns), radii * np.sin(turns)], 1)
    return np.where((at % 2 == 0)[:, None], goals[rng.integers(len(goals), size=count)], others)


def _anywhere(config: PlannedConfig, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Angles and speeds ``[n, 2]``: where episodes begin, or anywhere."""
    n = config.plans
    angles, speeds = rng.uniform(-0.1, 0.1, (n, 2)), rng.uniform(-0.005, 0.005, (n, 2))
    wild = rng.permutation(n) < round(config.wild * n)
    angles[wild] = rng.uniform([-np.pi, -BENT], [np.pi, BENT], (wild.sum(), 2))
    speeds[wild] = 3 * rng.standard_normal((wild.sum(), 2))
    return angles, speeds


def _visited(
    config: PlannedConfig,
    act: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    goals: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Angles and speeds ``[n, 2]`` at some moment of episodes that the policy acts in."""
    n = config.plans
    angles, speeds = _anywhere(dataclasses.replace(config, wild=0.0), rng)
    wrong = rng.permutation(n) < round(config.wrong_goal * n)
    told = np.where(wrong[:, None], goals[rng.permutation(n)], goals)
    noise, when = rng.choice(config.noise, n)[:, None], rng.integers(STEPS, size=n)
    kept = np.empty((2, n, 2))
    for t in range(STEPS):
        at = when == t
        kept[:, at] = angles[at], speeds[at]
        torques = act(angles, speeds, told) + noise * rng.standard_normal((n, 2))
        angles, speeds = step_arm(angles, speeds, torques.clip(-1, 1))
        hit = np.abs(angles[:, 1]) > BENT
        speeds[hit, 1] = 0
        angles[:, 1] = angles[:, 1].clip(-BENT, BENT)
    kept[0, :, 0] = (kept[0, :, 0] + np.pi) % (2 * np.pi) - np.pi  # of the shoulder, which turns freely
    return kept[0], kept[1]

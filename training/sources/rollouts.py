"""Stepping one native vector environment for K learners with S streams each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from icrl_agents.envs import MetaVectorEnv, SignedPermutation, Symmetry
from icrl_agents.errors import ConfigError
from icrl_agents.training.sources.ppo import Rollout, TaskParallelPPO


@dataclass(frozen=True)
class Recording:
    """A roll-out as the history store wants it; H = K S histories, T steps.

    Attributes:
        arrays: per field ``[H, T, ...]``: observations, actions (executed), mean_actions, rewards, terminated,
            truncated.
        final_observations: ``[H]`` lists of ``[episodes, N_o]``, the observation after each episode's last step.
    """

    arrays: dict[str, np.ndarray]
    final_observations: list[np.ndarray]


class StepRecorder:
    """Takes down the steps of H environment rows one after the other, until it has T of them.

    Args:
        rows: H.
        steps: T.
        observation_dim: N_o.
        action_dim: A.
    """

    def __init__(self, rows: int, steps: int, observation_dim: int, action_dim: int) -> None:
        self.arrays = {
            **{name: np.empty((rows, steps, observation_dim), np.float32) for name in ("observations", "following")},
            **{name: np.empty((rows, steps, action_dim), np.float32) for name in ("actions", "mean_actions")},
            "rewards": np.empty((rows, steps), np.float32),
            **{name: np.empty((rows, steps), bool) for name in ("terminated", "truncated")},
        }
        self._finals: list[list[np.ndarray]] = [[] for _ in range(rows)]
        self._none = np.empty((0, observation_dim), np.float32)

    def step(self, t: int, env: MetaVectorEnv, actions: np.ndarray, mean_actions: np.ndarray) -> np.ndarray:
        """Execute actions ``[H, A]`` as step ``t``; the observations ``[H, N_o]`` to act on next.

        What was acted on stands in ``arrays["observations"][:, t]`` already; ``arrays["following"]`` gets the
        observations that followed, before any autoreset.
        """
        at = {name: array[:, t] for name, array in self.arrays.items()}
        at["actions"][:], at["mean_actions"][:] = actions, mean_actions
        after, at["rewards"][:], at["terminated"][:], at["truncated"][:], info = env.step(at["actions"])
        at["following"][:] = after
        for row in np.flatnonzero(info.get("_final_obs", False)):
            at["following"][row] = info["final_obs"][row]
            self._finals[row].append(at["following"][row].copy())
        return after

    def recording(self) -> Recording:
        """What was taken down, for the store."""
        stored = {name: array for name, array in self.arrays.items() if name != "following"}
        return Recording(stored, [np.stack(own) if own else self._none for own in self._finals])


class Turned:
    """Rows seen and acted in through a symmetry each.

    Args:
        symmetries: one a row, H.
    """

    def __init__(self, symmetries: Sequence[Symmetry]) -> None:
        self._seen = _stacked([symmetry.observation for symmetry in symmetries])
        self._acted = _stacked([symmetry.action.inverse for symmetry in symmetries])

    def observations(self, observations: np.ndarray) -> np.ndarray:
        """What the learner sees ``[H, ..., N_o]`` of observations."""
        return _each(observations, *self._seen)

    def actions(self, actions: np.ndarray) -> np.ndarray:
        """What is done ``[H, A]`` where the learner does these."""
        return _each(actions, *self._acted)


def _stacked(permutations: Sequence[SignedPermutation]) -> tuple[np.ndarray, np.ndarray]:
    """Indices and signs ``[H, n]``."""
    return np.stack([p.index for p in permutations]), np.stack([p.sign for p in permutations]).astype(np.float32)


def _each(vectors: np.ndarray, index: np.ndarray, sign: np.ndarray) -> np.ndarray:
    """Row r of vectors ``[H, ..., n]`` by its own signed permutation."""
    between = [1] * (vectors.ndim - 2)
    index, sign = (x.reshape(len(x), *between, -1) for x in (index, sign))
    return np.take_along_axis(vectors, np.broadcast_to(index, vectors.shape), -1) * sign


class RolloutCollector:
    """Steps the environment rows of a task-parallel learner.

    Args:
        env: rows in the order learner-major: row ``k * S + s``.
        learner: what acts and learns.
        observations: the rows' current observations ``[H, N_o]``.
        task_vectors: ``[H, k]`` appended to what the learner sees; None for learners that see no task.
        privileged: whether the learner also sees what the environment calls privileged, between the two.
        symmetries: one a row, through which the learner sees and acts; ``task_vectors`` are after them. What is
            recorded is what happened. None does without.
    """

    def __init__(
        self,
        env: MetaVectorEnv,
        learner: TaskParallelPPO,
        observations: np.ndarray,
        task_vectors: np.ndarray | None = None,
        *,
        privileged: bool = False,
        symmetries: Sequence[Symmetry] | None = None,
    ) -> None:
        self.env, self.learner = env, learner
        self.observations = observations
        self.privileged = privileged
        self._turned = None if symmetries is None else Turned(symmetries)
        self._tasks = np.empty((len(observations), 0)) if task_vectors is None else task_vectors
        self._low = env.single_action_space.low  # type: ignore[attr-defined]
        self._high = env.single_action_space.high  # type: ignore[attr-defined]

    def collect(self) -> tuple[Rollout, Recording]:
        """One roll-out of the learner's ``n_steps``."""
        learner, env = self.learner, self.env
        k, s = learner.learners, learner.streams
        rows, steps = k * s, learner.config.n_steps
        n_o, n_a = self.observations.shape[1], learner.action_dim
        recorder = StepRecorder(rows, steps, n_o, n_a)
        arrays = recorder.arrays
        sampled = np.empty((rows, steps, n_a), np.float32)
        now, following = np.empty((2, rows, steps, env.definition.privileged_dim if self.privileged else 0), np.float32)
        noise, std = learner.exploration_noise(), learner.std()
        for t in range(steps):
            arrays["observations"][:, t] = self.observations
            if self.privileged:
                now[:, t] = env.privileged
            seen = self._seen(arrays["observations"][:, t], now[:, t])
            mean = learner.mean_action(torch.from_numpy(seen.reshape(k, s, -1)))
            sampled[:, t] = (mean + std * noise[t]).reshape(rows, n_a)
            executed, means = (
                np.clip(x if self._turned is None else self._turned.actions(x), self._low, self._high)
                for x in (sampled[:, t], mean.reshape(rows, n_a).numpy())
            )
            require_finite(executed, env, t)
            self.observations = recorder.step(t, env, executed, means)
            if self.privileged:
                following[:, t] = env.following_privileged
        per_learner = (
            torch.from_numpy(x).unflatten(0, (k, s))
            for x in (
                self._seen(arrays["observations"], now),
                sampled,
                arrays["rewards"],
                self._seen(arrays["following"], following),
                arrays["terminated"],
                arrays["terminated"] | arrays["truncated"],
            )
        )
        return Rollout(*per_learner), recorder.recording()

    def _seen(self, observations: np.ndarray, privileged: np.ndarray) -> np.ndarray:
        """What the learner sees ``[H, ..., N_s]`` of observations and what is privileged."""
        turned = observations if self._turned is None else self._turned.observations(observations)
        return told(turned, privileged, self._tasks)


def require_finite(actions: np.ndarray, env: MetaVectorEnv, step: int) -> None:
    """Raise where a learner's actions ``[H, A]`` are no numbers any more.

    Raises:
        ConfigError: says in which task.
    """
    finite = np.isfinite(actions).all(1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ConfigError(
            f"learning diverged: at step {step} of a roll-out the actions in task {env.tasks[row]} are not finite; "
            "try a lower learning_rate"
        )


def told(observations: np.ndarray, *more: np.ndarray) -> np.ndarray:
    """What learners see that are told more than the observations: all of it in a row.

    Args:
        observations: ``[H, ..., N_o]``.
        *more: ``[H, ..., d]`` of each observation, or ``[H, d]`` of each row of them, as a task.

    Returns:
        ``[H, ..., N_o + d + ...]`` float32.
    """
    spread = [
        np.broadcast_to(
            part.reshape(len(part), *[1] * (observations.ndim - part.ndim), *part.shape[1:]),
            (*observations.shape[:-1], part.shape[-1]),
        )
        for part in more
    ]
    return np.concatenate([observations, *spread], axis=-1, dtype=np.float32)

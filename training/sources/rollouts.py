"""Stepping one native vector environment for K learners with S streams each."""

from dataclasses import dataclass

import numpy as np
import torch

from icrl_agents.envs import MetaVectorEnv
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


class RolloutCollector:
    """Steps the environment rows of a task-parallel learner.

    Args:
        env: rows in the order learner-major: row ``k * S + s``.
        learner: what acts and learns.
        observations: the rows' current observations ``[H, N_o]``.
        task_vectors: ``[H, k]`` appended to what the learner sees; None for learners that see no task.
    """

    def __init__(
        self,
        env: MetaVectorEnv,
        learner: TaskParallelPPO,
        observations: np.ndarray,
        task_vectors: np.ndarray | None = None,
    ) -> None:
        self.env, self.learner = env, learner
        self.observations = observations
        self._tasks = np.empty((len(observations), 0)) if task_vectors is None else task_vectors
        self._low = env.single_action_space.low  # type: ignore[attr-defined]
        self._high = env.single_action_space.high  # type: ignore[attr-defined]

    def collect(self) -> tuple[Rollout, Recording]:
        """One roll-out of the learner's ``n_steps``."""
        learner, env = self.learner, self.env
        k, s = learner.learners, learner.streams
        rows, steps = k * s, learner.config.n_steps
        n_o, n_a = self.observations.shape[1], learner.action_dim
        observations, following = (np.empty((rows, steps, n_o), np.float32) for _ in range(2))
        sampled, means = (np.empty((rows, steps, n_a), np.float32) for _ in range(2))
        rewards = np.empty((rows, steps), np.float32)
        terminated, truncated = (np.empty((rows, steps), bool) for _ in range(2))
        finals: list[list[np.ndarray]] = [[] for _ in range(rows)]
        noise, std = learner.exploration_noise(), learner.std()
        for t in range(steps):
            observations[:, t] = self.observations
            seen = np.concatenate([observations[:, t], self._tasks], axis=1, dtype=np.float32)
            mean = learner.mean_action(torch.from_numpy(seen.reshape(k, s, -1)))
            means[:, t] = mean.reshape(rows, n_a)
            sampled[:, t] = (mean + std * noise[t]).reshape(rows, n_a)
            executed = np.clip(sampled[:, t], self._low, self._high)
            after, rewards[:, t], terminated[:, t], truncated[:, t], info = env.step(executed)
            following[:, t] = after
            if "final_obs" in info:
                for row in np.flatnonzero(info["_final_obs"]):
                    following[row, t] = info["final_obs"][row]
                    finals[row].append(following[row, t])
            self.observations = after
        arrays = {
            "observations": observations,
            "actions": np.clip(sampled, self._low, self._high),
            "mean_actions": np.clip(means, self._low, self._high),
            "rewards": rewards,
            "terminated": terminated,
            "truncated": truncated,
        }
        per_learner = (
            torch.from_numpy(x).unflatten(0, (k, s))
            for x in (
                self._with_tasks(observations),
                sampled,
                rewards,
                self._with_tasks(following),
                terminated,
                terminated | truncated,
            )
        )
        stacked = [np.stack(f) if f else np.empty((0, n_o), np.float32) for f in finals]
        return Rollout(*per_learner), Recording(arrays, stacked)

    def _with_tasks(self, observations: np.ndarray) -> np.ndarray:
        """Observations ``[H, T, N_o]`` as the learner sees them ``[H, T, N_o + k]``."""
        steps = observations.shape[1]
        tasks = np.broadcast_to(self._tasks[:, None], (len(self._tasks), steps, self._tasks.shape[1]))
        return np.concatenate([observations, tasks], axis=2, dtype=np.float32)

"""An agent at work in training tasks, by its mean and noise, and what a critic sees meanwhile.

N rows, one a task; L steps a round; N_o observation entries, C entries that the critic sees, T token entries, A
action entries
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from icrl_agents.agent import InContextAgent
from icrl_agents.config import AgentConfig
from icrl_agents.envs import MetaVectorEnv, Task
from icrl_agents.model import InContextModel
from icrl_agents.training.lives import begin_round, end_round

WIDE = 1e6
"""Bounds of actions where there are none."""


@dataclass(frozen=True)
class Experience:
    """One round.

    Attributes:
        tokens: ``[N, L, T]``, as the agent saw them.
        memory: what it remembered at the beginning, as :mod:`icrl_agents.training.lives` names it.
        means: ``[N, L, A]``, its actions before they are clipped to the action space.
        actions: ``[N, L, A]``, sampled around them, not clipped either.
        rewards: ``[N, L]``.
        done: ``[N, L]`` bool, terminated or truncated.
        seen: ``[N, L + 1, C]``, what the critic sees, after the last step as well.
        mean_return: of the episodes that ended.
    """

    tokens: np.ndarray
    memory: dict[str, np.ndarray]
    means: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    done: np.ndarray
    seen: np.ndarray
    mean_return: float


class Rows:
    """Environment rows in which an agent lives from round to round.

    Args:
        env: one row a task.
        tasks: theirs.
        agent: what the agent is for.
        episodes: of a round, at full length.
        life_rounds: of a life at most.
        task_changes: of :func:`icrl_agents.training.lives.begin_round`.
    """

    def __init__(
        self,
        env: MetaVectorEnv,
        tasks: Sequence[Task],
        agent: AgentConfig,
        *,
        episodes: int,
        life_rounds: int,
        task_changes: float = 0.0,
    ) -> None:
        self._env, self._agent = env, agent
        self._life_rounds, self._task_changes = life_rounds, task_changes
        self._steps = episodes * env.horizon
        self._tasks = np.stack([env.definition.task_vector(task) for task in tasks]).astype(np.float32)

    @property
    def seen_dim(self) -> int:
        """C: observation, task, what is privileged, and the time."""
        definition = self._env.definition
        return definition.observation_dim + self._tasks.shape[1] + definition.privileged_dim + 1

    def act(
        self, model: InContextModel, lives: Mapping[str, np.ndarray], noise: float, rng: np.random.Generator
    ) -> tuple[Experience, dict[str, np.ndarray]]:
        """One round.

        Args:
            model: of the agent.
            lives: where the round before ended; empty begins every life.
            noise: standard deviation of the actions around the agent's.
            rng: of all that is drawn.

        Returns:
            What happened, and where it ends.
        """
        env = self._env
        low, high = (np.asarray(bound, np.float32) for bound in (self._agent.action_low, self._agent.action_high))
        # Not clipped, as the model will be asked for them again: the actions tried are around these.
        wide = replace(self._agent, action_low=(-WIDE,) * len(low), action_high=(WIDE,) * len(low))
        student = InContextAgent(model.eval(), wide)
        begun = begin_round(env, student, lives, self._life_rounds, rng, self._task_changes)
        shape = (env.num_envs, self._steps)
        observations = np.empty((*shape, env.definition.observation_dim), np.float32)
        means, actions, executed = (np.empty((*shape, len(low)), np.float32) for _ in range(3))
        rewards, done = np.empty(shape, np.float32), np.empty(shape, bool)
        seen = np.empty((shape[0], shape[1] + 1, self.seen_dim), np.float32)
        went_on = begun.pending[:, -1] == 0  # in the middle of an episode
        age, so_far = (lives.get(name, np.zeros(shape[0])) * went_on for name in ("age", "return"))
        returns: list[np.ndarray] = []
        observation = begun.observation
        for t in range(self._steps):
            observations[:, t], seen[:, t] = observation, self._seen(observation, age)
            means[:, t] = student.act(observation)
            actions[:, t] = means[:, t] + noise * rng.standard_normal(means[:, t].shape)
            executed[:, t] = np.clip(actions[:, t], low, high)
            observation, rewards[:, t], terminated, truncated, _ = env.step(executed[:, t])
            student.observe(rewards[:, t], terminated, truncated, action=executed[:, t])
            done[:, t] = terminated | truncated
            so_far = so_far + rewards[:, t]
            returns.append(so_far[done[:, t]])
            age, so_far = np.where(done[:, t], 0, age + 1), np.where(done[:, t], 0, so_far)
        seen[:, -1] = self._seen(observation, age)
        tokens = model.layout.encode_history(observations, executed, rewards, done)
        tokens[:, 0, env.definition.observation_dim :] = begun.pending
        mean = float(np.concatenate(returns).mean())
        ended = end_round(env, student, observation, begun.rounds_left) | {"age": age, "return": so_far}
        return Experience(tokens, begun.memory, means, actions, rewards, done, seen, mean), ended

    def _seen(self, observation: np.ndarray, age: np.ndarray) -> np.ndarray:
        """What the critic sees ``[N, C]``: observation, task, what is privileged, how much of the episode is over."""
        parts = [observation, self._tasks]
        if self._env.definition.privileged_dim:
            parts.append(self._env.privileged)
        return np.concatenate([*parts, (age / self._env.horizon)[:, None]], axis=1, dtype=np.float32)

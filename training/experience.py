"""An agent at work in training tasks, trying actions around its own, and what a critic sees meanwhile.

N rows, one a task; L steps a round; N_o observation entries, C entries that the critic sees, T token entries, A
action entries
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from icrl_agents.agent import InContextAgent
from icrl_agents.config import AgentConfig
from icrl_agents.envs import MetaVectorEnv, Task
from icrl_agents.model import ActionPrediction, InContextModel
from icrl_agents.training.lives import begin_round, end_round


@dataclass(frozen=True)
class Experience:
    """One round.

    Attributes:
        tokens: ``[N, L, T]``, as the agent saw them.
        memory: what it remembered at the beginning, as :mod:`icrl_agents.training.lives` names it.
        actions: ``[N, L, A]``, tried around its own, before they are clipped to the action space.
        log_probs: ``[N, L]``, theirs, by :func:`log_prob`.
        rewards: ``[N, L]``.
        done: ``[N, L]`` bool, terminated or truncated.
        seen: ``[N, L + 1, C]``, what the critic sees, after the last step as well.
        mean_return: of the episodes that ended.
    """

    tokens: np.ndarray
    memory: dict[str, np.ndarray]
    actions: np.ndarray
    log_probs: np.ndarray
    rewards: np.ndarray
    done: np.ndarray
    seen: np.ndarray
    mean_return: float


def log_prob(prediction: ActionPrediction, actions: Tensor, noise: float) -> Tensor:
    """Log-density ``[...]`` of actions ``[..., A]`` under Gaussian noise around what was predicted, but for a constant.

    A mixture head's is that of the mixture: which of its actions is chosen is drawn, too.
    """
    if prediction.components is None or prediction.logits is None:
        return -0.5 * ((actions - prediction.mean) / noise).square().sum(-1)
    each = -0.5 * ((actions[..., None, :] - prediction.components) / noise).square().sum(-1)
    return torch.logsumexp(prediction.logits.log_softmax(-1) + each, -1)


class _Explorer(InContextAgent):
    """Draws what it does, unclipped, and keeps how probable that was."""

    noise: float
    rng: np.random.Generator
    log_probs: np.ndarray

    def _choose(self, prediction: ActionPrediction, deterministic: bool | None) -> np.ndarray:
        around = prediction.mean
        if prediction.components is not None and prediction.logits is not None:
            gumbel = torch.from_numpy(self.rng.gumbel(size=prediction.logits.shape)).to(prediction.logits)
            chosen = (prediction.logits + gumbel).argmax(-1)[..., None, None]
            around = prediction.components.take_along_dim(chosen, -2).squeeze(-2)
        action = around + self.noise * torch.from_numpy(self.rng.standard_normal(around.shape)).to(around)
        self.log_probs = log_prob(prediction, action, self.noise).cpu().numpy()
        return self._require_finite(action.cpu().numpy())


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
        student = _Explorer(model.eval(), self._agent)
        student.noise, student.rng = noise, rng
        begun = begin_round(env, student, lives, self._life_rounds, rng, self._task_changes)
        shape = (env.num_envs, self._steps)
        observations = np.empty((*shape, env.definition.observation_dim), np.float32)
        actions, executed = (np.empty((*shape, len(low)), np.float32) for _ in range(2))
        rewards, log_probs, done = np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape, bool)
        seen = np.empty((shape[0], shape[1] + 1, self.seen_dim), np.float32)
        went_on = begun.pending[:, -1] == 0  # in the middle of an episode
        age, so_far = (lives.get(name, np.zeros(shape[0])) * went_on for name in ("age", "return"))
        returns: list[np.ndarray] = []
        observation = begun.observation
        for t in range(self._steps):
            observations[:, t], seen[:, t] = observation, self._seen(observation, age)
            actions[:, t] = student.act(observation)
            log_probs[:, t] = student.log_probs
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
        return Experience(tokens, begun.memory, actions, log_probs, rewards, done, seen, mean), ended

    def _seen(self, observation: np.ndarray, age: np.ndarray) -> np.ndarray:
        """What the critic sees ``[N, C]``: observation, task, what is privileged, how much of the episode is over."""
        parts = [observation, self._tasks]
        if self._env.definition.privileged_dim:
            parts.append(self._env.privileged)
        return np.concatenate([*parts, (age / self._env.horizon)[:, None]], axis=1, dtype=np.float32)

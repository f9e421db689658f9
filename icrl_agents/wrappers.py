"""Observations that carry experience, so that a stateless caller, such as stable-baselines3, drives an agent.

The wrapped observation is the raw token of :class:`~icrl_agents.tokens.TokenLayout`::

    [observation | previous observation | previous action | previous reward | episode start]

"Previous" goes on through the resets of one task and is 0 at the first step of a task, that is where
``info["new_task"]`` is True. An environment that never says so has one task until :meth:`forget`.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from icrl_agents.errors import ConfigError
from icrl_agents.tokens import TokenLayout


class ExperienceObservation(gymnasium.Wrapper):
    """One environment whose observation ``[T]`` is the token of the decision to come.

    Args:
        env: with one-dimensional Box observations and actions.

    Raises:
        ConfigError: other spaces.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.layout, space, self._bounds = _token_space(env.observation_space, env.action_space)
        self.observation_space = space
        self._token = np.zeros(space.shape, space.dtype)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; see :meth:`gymnasium.Env.reset`."""
        observation, info = self.env.reset(seed=seed, options=options)
        if info.get("new_task", False):
            self.forget()
        self._token[self.layout.observation] = observation
        self._token[self.layout.episode_start] = 1.0
        return self._token.copy(), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """Take a step; see :meth:`gymnasium.Env.step`."""
        at, token = self.layout, self._token
        observation, reward, terminated, truncated, info = self.env.step(action)
        token[at.previous_observation] = token[at.observation]
        token[at.previous_action] = np.clip(action, *self._bounds)
        token[at.previous_reward] = float(reward)
        token[at.episode_start] = 0.0
        token[at.observation] = observation
        return token.copy(), reward, terminated, truncated, info

    def forget(self) -> None:
        """Make the next reset the first step of a task."""
        self._token[:] = 0.0


class VectorExperienceObservation(VectorWrapper):
    """The same for a vector environment, ``[B, T]``; ``info["final_obs"]`` holds tokens too.

    Args:
        env: with one-dimensional Box observations and actions, and autoreset SAME_STEP or DISABLED.

    Raises:
        ConfigError: other spaces, or autoreset NEXT_STEP, whose extra step would be taken for a decision.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        mode = env.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
            raise ConfigError(f"expected autoreset mode SAME_STEP or DISABLED, got {mode}")
        self._autoresets = mode is AutoresetMode.SAME_STEP
        self.layout, space, self._bounds = _token_space(env.single_observation_space, env.single_action_space)
        self.single_observation_space = space
        self.observation_space = batch_space(space, env.num_envs)
        self._tokens = np.zeros((env.num_envs, self.layout.size), space.dtype)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin episodes, in the rows of ``options["reset_mask"]`` if it is given."""
        mask = (options or {}).get("reset_mask")
        rows = np.ones(self.num_envs, bool) if mask is None else np.array(mask, bool)
        observations, info = self.env.reset(seed=seed, options=options)
        self.forget(rows & self._new_task(info))
        self._tokens[:, self.layout.observation] = observations
        self._tokens[rows, self.layout.episode_start] = 1.0
        return self._tokens.copy(), info

    def step(self, actions: Any) -> tuple[np.ndarray, Any, Any, Any, dict[str, Any]]:
        """Take a step in every row."""
        at, tokens = self.layout, self._tokens
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        tokens[:, at.previous_observation] = tokens[:, at.observation]
        tokens[:, at.previous_action] = np.clip(actions, *self._bounds)
        tokens[:, at.previous_reward] = rewards
        tokens[:, at.episode_start] = 0.0
        tokens[:, at.observation] = observations
        done = np.asarray(terminated) | np.asarray(truncated)
        if self._autoresets and done.any():
            info = {**info, "final_obs": self._final_tokens(done, info["final_obs"])}
            tokens[done, at.episode_start] = 1.0
            self.forget(done & self._new_task(info))
            tokens[:, at.observation] = observations
        return tokens.copy(), rewards, terminated, truncated, info

    def forget(self, mask: np.ndarray) -> None:
        """Make the next decision of the rows in ``mask`` ``[B]`` the first step of a task."""
        self._tokens[mask] = 0.0
        self._tokens[mask, self.layout.episode_start] = 1.0

    def _new_task(self, info: dict[str, Any]) -> np.ndarray:
        return np.asarray(info.get("new_task", np.zeros(self.num_envs, bool)), bool)

    def _final_tokens(self, done: np.ndarray, final_obs: Any) -> np.ndarray:
        """The tokens of episodes' last observations; rows whose episode goes on hold their current token."""
        final = self._tokens.copy()
        for row in np.flatnonzero(done):
            final[row, self.layout.observation] = final_obs[row]
        return final


def _token_space(
    observation: spaces.Space, action: spaces.Space
) -> tuple[TokenLayout, spaces.Box, tuple[np.ndarray, np.ndarray]]:
    """Layout and space of the token, and the bounds of the action."""
    for space in (observation, action):
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ConfigError(f"expected one-dimensional Box observations and actions, got {space}")
    assert isinstance(observation, spaces.Box)
    assert isinstance(action, spaces.Box)
    layout = TokenLayout(observation.shape[0], action.shape[0])
    dtype = np.float64 if observation.dtype == np.float64 else np.float32
    zero_low, zero_high = np.minimum(observation.low, 0), np.maximum(observation.high, 0)
    low = layout.encode(observation.low, zero_low, np.minimum(action.low, 0), -np.inf, 0, dtype)
    high = layout.encode(observation.high, zero_high, np.maximum(action.high, 0), np.inf, 1, dtype)
    return layout, spaces.Box(low, high, dtype=dtype), (action.low, action.high)

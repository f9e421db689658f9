"""What one step of experience looks like to the model.

One token a decision, the paper's transition (s_t, a_t, r_t, s_{t+1}) read when the next decision is due::

    [observation | previous observation | previous action | previous reward | episode start]
      N_o          N_o                    N_a               1                 1

At the first step of a new episode it carries the terminal transition of the last one beside the reset
observation; at the very first step of a task every "previous" entry is 0. Values are raw; the model
normalises them.
The observation wrapper has the same layout.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class TokenLayout:
    """Where each part of the experience stands in a token.

    Args:
        observation_dim: N_o, entries of an observation.
        action_dim: N_a, entries of an action.
    """

    observation_dim: int
    action_dim: int

    @property
    def size(self) -> int:
        """Entries of a token: 2 N_o + N_a + 2."""
        return 2 * self.observation_dim + self.action_dim + 2

    @property
    def observation(self) -> slice:
        """The observation to act on."""
        return slice(0, self.observation_dim)

    @property
    def previous_observation(self) -> slice:
        """The observation the previous action answered."""
        return slice(self.observation_dim, 2 * self.observation_dim)

    @property
    def previous_action(self) -> slice:
        """The action executed in the previous step."""
        return slice(2 * self.observation_dim, 2 * self.observation_dim + self.action_dim)

    @property
    def previous_reward(self) -> int:
        """The reward of the previous step."""
        return self.size - 2

    @property
    def episode_start(self) -> int:
        """1 at the first step of an episode, else 0."""
        return self.size - 1

    def encode(
        self,
        observation: npt.ArrayLike,
        previous_observation: npt.ArrayLike,
        previous_action: npt.ArrayLike,
        previous_reward: npt.ArrayLike,
        episode_start: npt.ArrayLike,
        dtype: npt.DTypeLike = np.float32,
    ) -> np.ndarray:
        """Join the parts, any leading shape ``[...]``, into tokens ``[..., size]``.

        Args:
            observation: ``[..., N_o]``.
            previous_observation: ``[..., N_o]``.
            previous_action: ``[..., N_a]``.
            previous_reward: ``[...]``.
            episode_start: ``[...]`` bool.
            dtype: of the result.
        """
        observation = np.asarray(observation)
        token = np.empty((*observation.shape[:-1], self.size), dtype)
        token[..., self.observation] = observation
        token[..., self.previous_observation] = previous_observation
        token[..., self.previous_action] = previous_action
        token[..., self.previous_reward] = previous_reward
        token[..., self.episode_start] = episode_start
        return token

    def encode_history(
        self, observations: npt.ArrayLike, actions: npt.ArrayLike, rewards: npt.ArrayLike, ends: npt.ArrayLike
    ) -> np.ndarray:
        """The tokens of recorded experience, any leading shape ``[...]``, as ``[..., T, size]`` float32.

        The first step is the first of its task: every "previous" is 0 there.

        Args:
            observations: ``[..., T, N_o]``, those acted on.
            actions: ``[..., T, N_a]``, executed.
            rewards: ``[..., T]``.
            ends: ``[..., T]`` bool, terminated or truncated.
        """
        observations = np.asarray(observations)
        tokens = np.zeros((*observations.shape[:-1], self.size), np.float32)
        tokens[..., self.observation] = observations
        tokens[..., 1:, self.previous_observation] = observations[..., :-1, :]
        tokens[..., 1:, self.previous_action] = np.asarray(actions)[..., :-1, :]
        tokens[..., 1:, self.previous_reward] = np.asarray(rewards)[..., :-1]
        tokens[..., 1:, self.episode_start] = np.asarray(ends)[..., :-1]
        tokens[..., :1, self.episode_start] = 1.0
        return tokens

"""One replay buffer for K learners: a ring of steps with a learner axis, read by one gather.

K learners, S streams a learner, T steps, N samples, N_o observation and A action entries
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """N transitions of each of K learners, as views of one gather.

    Attributes:
        pairs: ``[K, N, N_o + A]``, observation and action in the unit box, as critics take them.
        observations: ``[K, N, N_o]``.
        next_observations: ``[K, N, N_o]``, before any autoreset.
        rewards: ``[K, N]``.
        continues: ``[K, N]``, 0 where the episode terminated, else 1; a truncated episode continues.
    """

    pairs: Tensor
    observations: Tensor
    next_observations: Tensor
    rewards: Tensor
    continues: Tensor


class ReplayBuffer:
    """The last transitions of K learners, which all take their steps together.

    A transition is one row ``[observation, action, next observation, reward, continues]``: a batch of all learners is
    one gather of whole rows.

    Args:
        learners: K.
        streams: S.
        capacity: transitions of each learner; rounded down to whole steps of all streams, but at least one.
        observation_dim: N_o.
        action_dim: A.
        device: that holds it.
    """

    def __init__(
        self,
        learners: int,
        streams: int,
        capacity: int,
        observation_dim: int,
        action_dim: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.capacity_steps = max(1, capacity // streams)
        self.steps = 0
        """Steps taken so far, of which the last ``capacity_steps`` are here."""
        self._streams, self._observation_dim, self._action_dim = streams, observation_dim, action_dim
        width = 2 * observation_dim + action_dim + 2
        self._rows = torch.empty(learners, self.capacity_steps, streams, width, device=device)
        self._first_row = torch.arange(learners, device=device)[:, None] * (self.capacity_steps * streams)

    def __len__(self) -> int:
        """Transitions of each learner that are here."""
        return min(self.steps, self.capacity_steps) * self._streams

    def extend(
        self, observations: Tensor, actions: Tensor, next_observations: Tensor, rewards: Tensor, terminated: Tensor
    ) -> None:
        """Take in T steps, oldest first.

        Args:
            observations: ``[K, S, T, N_o]``.
            actions: ``[K, S, T, A]`` in the unit box.
            next_observations: ``[K, S, T, N_o]``, before any autoreset.
            rewards: ``[K, S, T]``.
            terminated: ``[K, S, T]`` bool.
        """
        parts = (observations, actions, next_observations, rewards[..., None], (~terminated)[..., None].float())
        rows = torch.cat(parts, -1).transpose(1, 2)  # [K, T, S, D]
        kept = rows[:, -self.capacity_steps :]
        slots = (torch.arange(rows.shape[1] - kept.shape[1], rows.shape[1]) + self.steps) % self.capacity_steps
        self._rows[:, slots.to(self._rows.device)] = kept.to(self._rows.device)
        self.steps += rows.shape[1]

    def gather(self, indices: Tensor) -> Batch:
        """The transitions ``[K, N]`` at indices ``[K, N]`` below ``len(self)``."""
        flat = self._rows.view(-1, self._rows.shape[-1])
        rows = flat.index_select(0, (self._first_row + indices).view(-1)).view(*indices.shape, -1)
        o, a = self._observation_dim, self._action_dim
        return Batch(
            pairs=rows[..., : o + a],
            observations=rows[..., :o],
            next_observations=rows[..., o + a : 2 * o + a],
            rewards=rows[..., -2],
            continues=rows[..., -1],
        )

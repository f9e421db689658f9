"""What actions are worth: a critic that is told more than the agent, and generalised advantages.

N rows, L steps, C entries that the critic sees
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

AdvantagesBy = Literal["task", "round"]
"""What advantages are centred and scaled by."""


class Critic(nn.Module):
    """The return to come, from what the agent does not see; by a tanh network.

    Args:
        inputs: C.
        hidden: widths of the hidden layers.
    """

    input_mean: Tensor
    input_std: Tensor
    return_mean: Tensor
    return_std: Tensor

    def __init__(self, inputs: int, hidden: Sequence[int]) -> None:
        super().__init__()
        for name, value in (("mean", torch.zeros), ("std", torch.ones)):
            self.register_buffer(f"input_{name}", value(inputs))
            self.register_buffer(f"return_{name}", value(()))
        widths = [inputs, *hidden]
        inner = [part for i, o in pairwise(widths) for part in (nn.Linear(i, o), nn.Tanh())]
        self.network = nn.Sequential(*inner, nn.Linear(widths[-1], 1))

    def normalise(self, seen: Tensor, returns: Tensor) -> None:
        """Take the scale of inputs ``[n, C]`` and outputs ``[n]`` from the first round."""
        self.input_mean.copy_(seen.mean(0))
        self.input_std.copy_(seen.std(0).clamp(min=1e-4))
        self.return_mean.copy_(returns.mean())
        self.return_std.copy_(returns.std().clamp(min=1e-4))

    def loss(self, seen: Tensor, returns: Tensor) -> Tensor:
        """Mean squared error on ``[n, C]`` and ``[n]``, in units of the returns' deviation."""
        return (self._scaled(seen) - (returns - self.return_mean) / self.return_std).square().mean()

    def forward(self, seen: Tensor) -> Tensor:
        """``[..., C]`` to ``[...]``."""
        return self._scaled(seen) * self.return_std + self.return_mean

    def _scaled(self, seen: Tensor) -> Tensor:
        normalized = ((seen - self.input_mean) / self.input_std).clamp(-10, 10)
        return self.network(normalized).squeeze(-1)


def advantages(
    rewards: np.ndarray, values: np.ndarray, done: np.ndarray, gamma: float, gae_lambda: float
) -> np.ndarray:
    """Generalised advantage estimates ``[N, L]`` (Schulman et al. 2016, arXiv 1506.02438, equation 16).

    Nothing follows the end of an episode, also where time cut it: the values know the time.

    Args:
        rewards: ``[N, L]``.
        values: ``[N, L + 1]``.
        done: ``[N, L]`` bool.
        gamma: discount.
        gae_lambda: lambda.
    """
    goes_on = ~done
    deltas = rewards + gamma * values[:, 1:] * goes_on - values[:, :-1]
    found = np.empty_like(deltas)
    running = np.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        running = deltas[:, t] + gamma * gae_lambda * running * goes_on[:, t]
        found[:, t] = running
    return found


def standardised(gained: np.ndarray, by: AdvantagesBy) -> np.ndarray:
    """Advantages ``[N, L]`` in units of their deviation, around their mean.

    Args:
        gained: advantages ``[N, L]``, one row a task.
        by: mean and deviation of each row, so that no task teaches more than another by its scale of rewards, nor by
            what the critic has wrong of all of it; or those of all rows together. A row that deviates less than a tenth
            of all together has nothing to teach, and is not blown up beyond that.
    """
    if by == "round":
        return (gained - gained.mean()) / (gained.std() + 1e-8)
    centred = gained.astype(np.float64) - gained.mean(1, keepdims=True, dtype=np.float64)
    return centred / (np.maximum(centred.std(1, keepdims=True), 0.1 * centred.std()) + 1e-8)

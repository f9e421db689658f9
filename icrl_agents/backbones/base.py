"""The contract of a backbone: a causal sequence model with an explicit carry.

Anything that meets it can stand behind an agent. ``forward`` and repeated ``step`` give the same outputs,
also across ``forget_before``, across chunks, and for rows that are at different times.
"""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Carry = Any
"""A pytree of tensors, each with the batch as its first axis."""

Precision = Literal["float32", "bfloat16", "int8"]
"""How the matrices of a step are stored: as they are; rounded to 8 bits of precision; as whole numbers with one scale
for each output of each block of channels. Sums, states and everything else stay float32."""


class Backbone(nn.Module, ABC):
    """A causal map from inputs ``[B, L, D]`` to outputs ``[B, L, D]``.

    Attributes:
        d_model: D, width of inputs and outputs.
    """

    d_model: int

    @abstractmethod
    def initial_carry(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Carry:
        """The carry before the first step of a task.

        Args:
            batch_size: rows.
            device: where it lies; None is where the weights are.
            dtype: of its real tensors; None is the weights'.
        """

    @abstractmethod
    def forward(
        self, x: Tensor, carry: Carry | None = None, forget_before: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        """All steps of a sequence at once.

        Args:
            x: inputs ``[B, L, D]``.
            carry: where an earlier call stopped; ``None`` is the initial carry. It is not changed.
            forget_before: ``[B, L]`` bool; True where a new task starts: it sees nothing before itself.

        Returns:
            Outputs ``[B, L, D]`` and the carry after the last step.
        """

    @abstractmethod
    def step(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """One step of every row.

        Args:
            x: inputs ``[B, D]``.
            carry: the rows' carry. It is consumed: its memory may be reused for the result.

        Returns:
            Outputs ``[B, D]`` and the new carry.
        """

    @abstractmethod
    def forget(self, carry: Carry, mask: Tensor) -> Carry:
        """The rows where ``mask`` ``[B]`` is True begin anew, the others are untouched; consumes ``carry``."""


def clone_carry(carry: Carry) -> Carry:
    """A copy that shares no memory with ``carry``."""
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, carry)


def carry_bytes(carry: Carry) -> int:
    """Memory that a carry occupies, in bytes."""
    return sum(t.numel() * t.element_size() for t in pytree.tree_leaves(carry) if isinstance(t, Tensor))

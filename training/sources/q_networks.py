"""ReLU networks with a leading learner axis, as soft actor-critic takes them, and DroQ's dropout and LayerNorm.

K networks, N samples each, L hidden layers of H units
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from icrl_agents.training.sources.batched import affine, mlp_forward


class BatchedReLU:
    """K independent ReLU networks evaluated as one; the last layer is linear.

    After the product of each hidden layer come, where asked for, dropout and LayerNorm, as in DroQ (Hiraoka et al.
    2022, arXiv 2110.02034). Initial weights and biases are those of ``torch.nn.Linear``, from each network's own seed.

    Args:
        sizes: widths of the layers, inputs first.
        seeds: one a network.
        layer_norm: whether hidden layers are normalised.
        device: of the parameters.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        seeds: Sequence[int],
        *,
        layer_norm: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.weights: list[Tensor] = []  # each [K, I, O]
        self.biases: list[Tensor] = []  # each [K, 1, O]
        for inputs, outputs in pairwise(sizes):
            bound = 1 / math.sqrt(inputs)
            drawn = [torch.empty(inputs + 1, outputs).uniform_(-bound, bound, generator=g) for g in generators]
            layer = torch.stack(drawn).to(device)
            self.weights.append(layer[:, :-1].clone().requires_grad_())
            self.biases.append(layer[:, -1:].clone().requires_grad_())
        normalised = sizes[1:-1] if layer_norm else ()
        self.gains = [torch.ones(len(seeds), 1, width, device=device).requires_grad_() for width in normalised]
        self.shifts = [torch.zeros(len(seeds), 1, width, device=device).requires_grad_() for width in normalised]

    @property
    def parameters(self) -> list[Tensor]:
        """All tensors to optimise."""
        return [*self.weights, *self.biases, *self.gains, *self.shifts]

    def detached(self) -> Self:
        """The same networks, sharing memory, through which gradients reach inputs alone."""
        return self._mapped(lambda tensor: tensor.detach())

    def copied(self) -> Self:
        """The same networks in memory of their own, not to be optimised."""
        return self._mapped(lambda tensor: tensor.detach().clone())

    def __call__(self, x: Tensor, keep: Sequence[Tensor] | None = None) -> Tensor:
        """Outputs ``[K, N, O]`` of inputs ``[K, N, I]``.

        Args:
            x: inputs.
            keep: per hidden layer what dropout multiplies by, ``[K, N, H]``: 0, or 1 over the probability to keep.
        """
        if keep is None and not self.gains:
            return mlp_forward(self.weights, self.biases, x, "relu")
        for layer in range(len(self.weights) - 1):
            x = affine(self.biases[layer], x, self.weights[layer])
            if keep is not None:
                x = x * keep[layer]
            if self.gains:
                x = torch.addcmul(self.shifts[layer], functional.layer_norm(x, x.shape[-1:]), self.gains[layer])
            x = torch.relu_(x)
        return affine(self.biases[-1], x, self.weights[-1])

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        other = object.__new__(type(self))
        for name in ("weights", "biases", "gains", "shifts"):
            setattr(other, name, [change(tensor) for tensor in getattr(self, name)])
        return other

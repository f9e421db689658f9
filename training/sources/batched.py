"""Many small networks as one: every parameter has a leading learner axis, one matrix product serves all.

K learners, N samples each, I inputs, O outputs
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from icrl_agents.kernels.choice import compiled

Activation = Literal["tanh", "relu"]

FEWEST = 64
"""Samples of a network from which on compiled networks are faster: they pack its weights first."""


class BatchedMLP:
    """K independent tanh networks evaluated as one.

    Parameters are plain tensors with a leading axis K, so elementwise optimisers (Adam) keep the learners independent.
    Each learner draws its initial weights from its own seed.

    Args:
        sizes: widths of the layers, inputs first, e.g. ``(8, 64, 64, 2)``.
        seeds: one a learner.
        output_gain: scale of the last layer's orthogonal initialisation.
    """

    def __init__(self, sizes: Sequence[int], seeds: Sequence[int], output_gain: float) -> None:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.weights: list[Tensor] = []  # each [K, I, O]
        self.biases: list[Tensor] = []  # each [K, 1, O]
        for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
            gain = output_gain if layer == len(sizes) - 2 else math.sqrt(2)
            weight = torch.empty(len(seeds), inputs, outputs)
            for k, generator in enumerate(generators):
                torch.nn.init.orthogonal_(weight[k], gain, generator=generator)
            self.weights.append(weight.requires_grad_())
            self.biases.append(torch.zeros(len(seeds), 1, outputs).requires_grad_())

    @property
    def parameters(self) -> list[Tensor]:
        """All tensors to optimise."""
        return [*self.weights, *self.biases]

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs ``[K, N, O]`` of inputs ``[K, N, I]``."""
        return mlp_forward(self.weights, self.biases, x)


def mlp_forward(
    weights: Sequence[Tensor], biases: Sequence[Tensor], x: Tensor, activation: Activation = "tanh"
) -> Tensor:
    """K networks on inputs ``[K, N, I]``; the last layer is linear.

    On the CPU and many samples by :mod:`icrl_agents.training.sources.cpu_mlp`, else layer by layer.
    """
    if x.shape[1] >= FEWEST and compiled():
        from icrl_agents.training.sources import cpu_mlp  # compiles, and numba may be missing

        if cpu_mlp.serves(weights, biases, x):
            return cpu_mlp.forward(weights, biases, x, activation == "tanh")
    act = torch.tanh if activation == "tanh" else torch.relu_
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = act(affine(bias, x, weight))
    return affine(biases[-1], x, weights[-1])


def affine(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight + bias`` for K learners, or for K inputs of one; a batched product of one matrix takes one core."""
    if len(weight) > 1:
        return torch.baddbmm(bias, x, weight)
    if len(x) == len(bias) == 1:
        return torch.addmm(bias[0], x[0], weight[0])[None]
    return torch.mm(x.flatten(0, 1), weight[0]).unflatten(0, x.shape[:2]) + bias


def clip_grad_norms(parameters: Sequence[Tensor], max_norm: float) -> None:
    """Clip each learner's gradient by its own global norm, in place."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norms = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in grads]), dim=0
    )  # [K]
    scale = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    for g in grads:
        g.mul_(scale.view(-1, *[1] * (g.dim() - 1)))


class RunningMoments:
    """Running mean and variance ``[K, D]`` of K streams (Chan et al. 1979, parallel algorithm)."""

    def __init__(self, learners: int, dim: int) -> None:
        self.mean = torch.zeros(learners, dim, dtype=torch.float64)
        self.var = torch.ones(learners, dim, dtype=torch.float64)
        self.count = torch.tensor(1e-4, dtype=torch.float64)

    @property
    def std(self) -> Tensor:
        """Standard deviation ``[K, D]``, never 0."""
        return (self.var + 1e-8).sqrt()

    def update(self, x: Tensor) -> None:
        """Take in samples ``[K, N, D]``."""
        x = x.double()
        n = x.shape[1]
        mean, var = x.mean(1), x.var(1, unbiased=False)
        total = self.count + n
        delta = mean - self.mean
        self.var = (self.var * self.count + var * n + delta**2 * self.count * n / total) / total
        self.mean = self.mean + delta * n / total
        self.count = total

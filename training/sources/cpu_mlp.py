"""Many small networks on many samples each, for float32 on the CPU: numba inside, PyTorch's autograd outside.

PyTorch evaluates them layer by layer, each layer of all networks at once: what a layer gives is long out of the caches
when the next one reads it, and small batched products run far below what the cores can do. Here each network takes its
samples through all its layers while they lie in a core's own cache.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from icrl_agents.kernels.cpu_loops import LANES
from icrl_agents.kernels.threads import run_pieces
from icrl_agents.training.sources import mlp_loops
from icrl_agents.training.sources.mlp_loops import CHUNK


def serves(weights: Sequence[Tensor], biases: Sequence[Tensor], x: Tensor) -> bool:
    """Whether :func:`forward` takes these: K whole networks with hidden layers of whole panels, and inputs for each."""
    widths = [x.shape[-1], *(weight.shape[-1] for weight in weights)]
    fits = all(
        weight.shape == (len(x), *pair) and bias.shape == (len(x), 1, pair[1])
        for weight, bias, pair in zip(weights, biases, pairwise(widths), strict=True)
    )
    whole = len(widths) > 2 and all(widths) and not any(width % LANES for width in widths[1:-1])
    return fits and whole and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in (x, *weights, *biases))


def forward(weights: Sequence[Tensor], biases: Sequence[Tensor], x: Tensor, squashes: bool) -> Tensor:
    """:func:`icrl_agents.training.sources.batched.mlp_forward` of what :func:`serves` accepts.

    Gradients of gradients are none: they do not know how they depend on the inputs.

    Args:
        weights: of the layers ``[K, inputs, outputs]``.
        biases: ``[K, 1, outputs]``.
        x: inputs ``[K, N, I]``.
        squashes: whether the activation is tanh, not ReLU.
    """
    tensors = (x, *weights, *biases)
    saves = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    out: Tensor = _Networks.apply(squashes, saves, *tensors)
    return out


def forward_each(
    weights: Sequence[Tensor], biases: Sequence[Tensor], which: np.ndarray, x: Tensor, squashes: bool
) -> Tensor:
    """Each row through a network of its own choice, without gradients.

    Args:
        weights: float32 on the CPU, of the layers ``[K, inputs, outputs]``.
        biases: ``[K, 1, outputs]``.
        which: the network of each row ``[R]``.
        x: ``[R, I]``.
        squashes: whether the activation is tanh, not ReLU.

    Returns:
        ``[R, O]``.

    Raises:
        IndexError: no such network.
        ValueError: layers that do not fit each other or the inputs.
    """
    widths = [x.shape[1], *(weight.shape[2] for weight in weights)]
    count = len(weights[0])
    for weight, bias, pair in zip(weights, biases, pairwise(widths), strict=True):
        if weight.shape != (count, *pair) or bias.shape != (count, 1, pair[1]):
            raise ValueError(f"a layer of {count} networks from {pair[0]} to {pair[1]} has weights {weight.shape}")
    if len(which) != len(x) or (len(which) and not 0 <= which.min() <= which.max() < count):
        raise IndexError(f"expected one of {count} networks for each of {len(x)} rows")
    out = x.new_empty(len(x), weights[-1].shape[2])
    run_pieces(
        mlp_loops.forward_each, len(x), sum(weight.shape[2] for weight in weights), squashes,
        which.astype(np.int64), x.contiguous().numpy(), _arrays(weights), _arrays(biases), out.numpy(),
    )  # fmt: skip
    return out


class _Networks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, squashes: bool, saves: bool, x: Tensor, *parameters: Tensor) -> Tensor:
        x, parameters = x.contiguous(), tuple(p.contiguous() for p in parameters)
        layers = len(parameters) // 2
        weights, biases = parameters[:layers], parameters[layers:]
        members, samples, _ = x.shape
        pieces = members * -(-samples // CHUNK)
        units = sum(weight.shape[2] for weight in weights[:-1])
        hidden = x.new_empty(pieces if saves else 0, min(samples, CHUNK) * units)
        out = x.new_empty(members, samples, weights[-1].shape[2])
        run_pieces(
            mlp_loops.forward, pieces, CHUNK * units,
            squashes, x.numpy(), _arrays(weights), _arrays(biases), hidden.numpy(), saves, out.numpy(),
        )  # fmt: skip
        if saves:
            ctx.save_for_backward(x, hidden, *weights)
            ctx.squashes = squashes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, *weights = ctx.saved_tensors
        members, samples, _ = x.shape
        chunks = -(-samples // CHUNK)
        pieces = members * chunks
        _, _, wants_x, *wanted = ctx.needs_input_grad
        shares = pieces if any(wanted) else 0
        grad_weights = [x.new_empty(shares, *weight.shape[1:]) for weight in weights]
        grad_biases = [x.new_empty(shares, weight.shape[2]) for weight in weights]
        grad_x = torch.empty_like(x) if wants_x else x.new_empty(0, *x.shape[1:])
        run_pieces(
            mlp_loops.backward, pieces, hidden.shape[1],
            ctx.squashes, x.numpy(), _arrays(weights), hidden.numpy(), grad_out.contiguous().numpy(),
            any(wanted), wants_x, _arrays(grad_weights), _arrays(grad_biases), grad_x.numpy(),
        )  # fmt: skip
        gradients = [None] * len(wanted)
        if any(wanted):
            gradients = [
                (share if chunks == 1 else share.unflatten(0, (members, chunks)).sum(1)) for share in grad_weights
            ] + [share.unflatten(0, (members, chunks)).sum(1, keepdim=True) for share in grad_biases]
        return None, None, grad_x if wants_x else None, *gradients


def _arrays(tensors: Sequence[Tensor]) -> Any:
    """A tuple of NumPy arrays in the tensors' memory."""
    return tuple(tensor.detach().numpy() for tensor in tensors)

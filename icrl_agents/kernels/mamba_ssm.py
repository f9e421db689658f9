"""The scan and the step of the ``mamba_ssm`` package, the authors' CUDA code, in this package's layout.

It has neither an initial state nor forgetting, its convolution is a package of its own, and it gives no gradient
through the final state.
"""

from typing import Any

import torch
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from mamba_ssm.ops.triton.selective_state_update import selective_state_update
from torch import Tensor

from icrl_agents.errors import ConfigError


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: None,
    forget_before: None,
) -> tuple[Tensor, Tensor]:
    """:func:`icrl_agents.kernels.selective_scan` for float32 on CUDA, from an empty state.

    Raises:
        ConfigError: in the backward pass, if it goes through the final state.
    """
    u, delta, B, C = (t.transpose(1, 2).contiguous() for t in (u, delta, B, C))  # time last
    gate = None if z is None else z.transpose(1, 2).contiguous()
    y, state = selective_scan_fn(
        u, delta, A.contiguous(), B, C, D, gate, delta_bias, delta_softplus=delta_softplus, return_last_state=True
    )
    return y.transpose(1, 2), _NoGradient.apply(state).transpose(1, 2)


def selective_step(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """:func:`icrl_agents.kernels.selective_step` for float32 on CUDA, without gradients."""
    after = state.clone(memory_format=torch.contiguous_format)  # theirs is updated in place
    bias = u.new_zeros(u.shape[1]) if delta_bias is None else delta_bias  # None would crash it
    y = selective_state_update(after.transpose(1, 2), u, delta, A, B, C, D, z, bias, dt_softplus=delta_softplus)
    return y, after


class _NoGradient(torch.autograd.Function):
    """The final state as it is; a gradient through it, which mamba_ssm would silently drop, is an error."""

    @staticmethod
    def forward(ctx: Any, state: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return state.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> None:
        if grad is not None:
            raise ConfigError(
                "mamba_ssm gives no gradient through a scan's final state; detach it, or use the kernel 'triton'"
            )

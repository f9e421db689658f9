"""The selective state space scan (S6), its step and its convolution, and the place that chooses how to run them.

Everything is channels-last: sequences ``[B, L, E]``, states ``[B, N, E]``, the convolution's taps
``[B, K - 1, E]``. The letters are explained in :mod:`icrl_agents.kernels.reference`.

========== ================================================== ==========================================
kernel     runs                                               where
========== ================================================== ==========================================
cpu        numba, vectorised, its own backward pass           float32 on the CPU
triton     Triton, fused, its own backward pass               float32 on CUDA
mamba-ssm  the authors' CUDA code                             float32 on CUDA; scans from an empty state
                                                              that forget nothing, and their steps
reference  plain PyTorch, differentiable                      any device, any real dtype
========== ================================================== ==========================================

Under autocast arguments are cast to float32, as PyTorch does for what needs its precision; so are results.

The fastest that serves the arguments is taken, unless ``kernel=``, :func:`forced_kernel` or the environment variable
``ICRL_KERNEL`` names one: that one runs or raises. :func:`kernel_status` tells what is in use here and why the others
are not.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from icrl_agents.errors import InputError
from icrl_agents.kernels import reference
from icrl_agents.kernels.choice import (
    CONV,
    CONV_STEP,
    SCAN,
    STEP,
    KernelStatus,
    available_kernels,
    choose,
    compiled,
    forced_kernel,
    kernel_status,
)

P = ParamSpec("P")
R = TypeVar("R")


def _float32_in_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """What ``torch.amp.custom_fwd(cast_inputs=torch.float32)`` does, on whatever device the arguments are."""

    def cast(x: Any) -> Any:
        lower = isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
        return x.float() if lower else x

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next((x.device.type for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), "meta")
        if device == "meta" or not torch.is_autocast_enabled(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*map(cast, args), **{name: cast(x) for name, x in kwargs.items()})

    return run


@_float32_in_autocast
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    initial_state: Tensor | None = None,
    forget_before: Tensor | None = None,
    kernel: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The selective scan over whole sequences (Mamba, arXiv 2312.00752, eq. 2; :math:`\bar B = \Delta B`).

    .. math::
        h_t = \exp(\Delta_t A) h_{t-1} + \Delta_t B_t u_t, \qquad
        y_t = (C_t h_t + D u_t) \, \mathrm{silu}(z_t)

    Differentiable in every real argument, also through the final state.

    Args:
        u: inputs ``[B, L, E]``.
        delta: step sizes before bias and softplus ``[B, L, E]``.
        A: diagonal of the state matrix ``[E, N]``, not positive.
        B: input matrices ``[B, L, N]``.
        C: output matrices ``[B, L, N]``.
        D: skip ``[E]``.
        z: gate ``[B, L, E]``.
        delta_bias: added to ``delta`` ``[E]``.
        delta_softplus: apply softplus to ``delta``; without it ``delta`` must not be negative.
        initial_state: state before the first step ``[B, N, E]``; None is zero. It is not changed.
        forget_before: ``[B, L]`` bool; where True the state is zero before that step.
        kernel: run this kernel.

    Returns:
        Outputs ``[B, L, E]`` and the state after the last step ``[B, N, E]``.

    Raises:
        InputError: shapes that do not fit together.
        UnknownNameError: no such kernel.
        ConfigError: a kernel was named that is not there or does not serve these arguments.
    """
    batch, length, channels = _sizes("u", u, "batch", "length", "channels")
    _, states = _sizes("A", A, "channels", "states")
    _check("delta", delta, (batch, length, channels))
    _check("A", A, (channels, states))
    _check("B", B, (batch, length, states))
    _check("C", C, (batch, length, states))
    _check("D", D, (channels,))
    _check("z", z, (batch, length, channels))
    _check("delta_bias", delta_bias, (channels,))
    _check("initial_state", initial_state, (batch, states, channels))
    _check_forget(forget_before, u)
    real = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    remembers = initial_state is not None or forget_before is not None
    run = choose(kernel, SCAN, *real, remembers=remembers).selective_scan
    return run(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, forget_before)


@_float32_in_autocast
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
    kernel: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of :func:`selective_scan`, the same arguments without their length axis.

    Args:
        u: input ``[B, E]``.
        delta: step size ``[B, E]``.
        A: ``[E, N]``.
        B: ``[B, N]``.
        C: ``[B, N]``.
        D: ``[E]``.
        z: ``[B, E]``.
        delta_bias: ``[E]``.
        delta_softplus: apply softplus to ``delta``.
        state: state before this step ``[B, N, E]``; not changed.
        kernel: run this kernel; where gradients are wanted, its scan over one step.

    Returns:
        Output ``[B, E]`` and the state after this step ``[B, N, E]``.

    Raises:
        InputError: shapes that do not fit together.
        UnknownNameError: no such kernel.
        ConfigError: a kernel was named that is not there or does not serve these arguments.
    """
    batch, channels = _sizes("u", u, "batch", "channels")
    _, states = _sizes("A", A, "channels", "states")
    _check("delta", delta, (batch, channels))
    _check("A", A, (channels, states))
    _check("B", B, (batch, states))
    _check("C", C, (batch, states))
    _check("D", D, (channels,))
    _check("z", z, (batch, channels))
    _check("delta_bias", delta_bias, (channels,))
    _check("state", state, (batch, states, channels))
    real = (u, delta, A, B, C, D, z, delta_bias, state)
    if _wants_gradient(*real):
        u, delta, B, C = (t.unsqueeze(1) for t in (u, delta, B, C))
        gate = None if z is None else z.unsqueeze(1)
        y, state = selective_scan(u, delta, A, B, C, D, gate, delta_bias, delta_softplus, state, kernel=kernel)
        return y.squeeze(1), state
    run = choose(kernel, STEP, *real).selective_step
    return run(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state)


@_float32_in_autocast
def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_taps: Tensor | None = None,
    forget_before: Tensor | None = None,
    kernel: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Depthwise convolution over the present and the K - 1 inputs before it, then silu.

    Args:
        x: inputs ``[B, L, E]``.
        weight: ``[E, K]``, the present input's weight last.
        bias: ``[E]``.
        initial_taps: the K - 1 inputs before the first step, oldest first ``[B, K - 1, E]``; None is zero.
        forget_before: ``[B, L]`` bool; where True, no step from there on sees the inputs before it.
        kernel: run this kernel.

    Returns:
        Outputs ``[B, L, E]`` and the last K - 1 inputs ``[B, K - 1, E]``, zero where they were forgotten.

    Raises:
        InputError: shapes that do not fit together.
        UnknownNameError: no such kernel.
        ConfigError: a kernel was named that is not there or does not serve these arguments.
    """
    batch, _, channels = _sizes("x", x, "batch", "length", "channels")
    taps = _taps(weight, channels)
    _check("bias", bias, (channels,))
    _check("initial_taps", initial_taps, (batch, taps, channels))
    _check_forget(forget_before, x)
    run = choose(kernel, CONV, x, weight, bias, initial_taps).causal_conv
    y = run(x, weight, bias, initial_taps, forget_before)
    return y, _final_taps(x, taps, initial_taps, forget_before)


@_float32_in_autocast
def conv_step(
    x: Tensor, weight: Tensor, bias: Tensor | None, taps: Tensor, kernel: str | None = None
) -> tuple[Tensor, Tensor]:
    """One step of :func:`causal_conv`.

    Args:
        x: input ``[B, E]``.
        weight: ``[E, K]``, the present input's weight last.
        bias: ``[E]``.
        taps: the K - 1 inputs before this one, oldest first ``[B, K - 1, E]``; not changed.
        kernel: run this kernel; where gradients are wanted, its convolution over one step.

    Returns:
        Output ``[B, E]`` and the last K - 1 inputs ``[B, K - 1, E]``.

    Raises:
        InputError: shapes that do not fit together.
        UnknownNameError: no such kernel.
        ConfigError: a kernel was named that is not there or does not serve these arguments.
    """
    batch, channels = _sizes("x", x, "batch", "channels")
    _check("bias", bias, (channels,))
    _check("taps", taps, (batch, _taps(weight, channels), channels))
    real = (x, weight, bias, taps)
    if _wants_gradient(*real):
        y, taps = causal_conv(x.unsqueeze(1), weight, bias, taps, kernel=kernel)
        return y.squeeze(1), taps
    return choose(kernel, CONV_STEP, *real).conv_step(x, weight, bias, taps)


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _final_taps(x: Tensor, taps: int, initial_taps: Tensor | None, forget_before: Tensor | None) -> Tensor:
    """The last inputs ``[B, K - 1, E]`` that the step after this sequence may see."""
    batch, length, channels = x.shape
    last = x[:, max(0, length - taps) :]
    if length < taps:
        before = x.new_zeros(batch, taps, channels) if initial_taps is None else initial_taps
        last = torch.cat([before[:, length:], last], 1)
    if forget_before is not None and length:
        reach = reference.steps_since_forget(forget_before, taps, batch, length, x.device)[:, -1]  # [B]
        age = torch.arange(taps - 1, -1, -1, device=x.device)  # [K - 1], steps before the last one
        last = last.masked_fill((age > reach.unsqueeze(1)).unsqueeze(2), 0.0)
    return last.clone(memory_format=torch.contiguous_format)  # a view would hold on to all of x, and to its gradient


def _sizes(name: str, x: Tensor, *axes: str) -> torch.Size:
    if x.ndim != len(axes):
        raise InputError(f"{name}: expected [{', '.join(axes)}], got shape {list(x.shape)}")
    return x.shape


def _taps(weight: Tensor, channels: int) -> int:
    """K - 1, how many earlier inputs a convolution's weight ``[E, K]`` sees."""
    _, width = _sizes("weight", weight, "channels", "width")
    _check("weight", weight, (channels, max(1, width)))
    return width - 1


def _check(name: str, x: Tensor | None, shape: tuple[int, ...]) -> None:
    if x is not None and tuple(x.shape) != shape:
        raise InputError(f"{name}: expected shape {list(shape)}, got {list(x.shape)}")


def _check_forget(forget_before: Tensor | None, x: Tensor) -> None:
    """What a kernel may read as bytes beside ``x`` ``[B, L, E]``."""
    _check("forget_before", forget_before, tuple(x.shape[:2]))
    if forget_before is not None and (forget_before.dtype != torch.bool or forget_before.device != x.device):
        given = f"{forget_before.dtype} on {forget_before.device}"
        raise InputError(f"forget_before: expected {torch.bool} on {x.device}, got {given}")


__all__ = [
    "KernelStatus",
    "available_kernels",
    "causal_conv",
    "compiled",
    "conv_step",
    "forced_kernel",
    "kernel_status",
    "selective_scan",
    "selective_step",
]

"""The S6 scan and convolution for float32 on the CPU: numba inside, PyTorch's autograd outside.

How it is fast:

- A piece of work is one sequence times ``LANES`` channels. Its state lies as ``[N, LANES]``, so the channel
  axis fills the SIMD lanes, B_t and C_t are broadcasts, and the state stays in the first-level cache.
- Softplus, discretisation, scan, contraction with C, skip and gate are one pass.
- The forward pass saves the state every ``SPAN`` steps; the backward pass recomputes the states in between.
- Pieces run on PyTorch's own OpenMP threads (:mod:`icrl_agents.kernels.threads`), not on numba's: its OpenMP pool
  dies in a forked child, and its work queue aborts the process when two threads meet in it.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from icrl_agents.kernels import cpu_conv_loops, cpu_loops
from icrl_agents.kernels.cpu_loops import LANES, SPAN
from icrl_agents.kernels.threads import run_pieces

LOG2_E = 1.4426950408889634


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
    initial_state: Tensor | None,
    forget_before: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """:func:`icrl_agents.kernels.selective_scan` for float32 on the CPU."""
    real = (u, delta, A, B, C, D, z, delta_bias)
    saves = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*real, initial_state))
    return _Scan.apply(*real, delta_softplus, initial_state, forget_before, saves)


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
    """:func:`icrl_agents.kernels.selective_step` for float32 on the CPU, without gradients."""
    after, y = torch.empty_like(state, memory_format=torch.contiguous_format), u.new_empty(u.shape)
    skip = u.new_zeros(u.shape[1]) if D is None else D
    bias = u.new_zeros(u.shape[1]) if delta_bias is None else delta_bias
    inputs = [_array(t.contiguous()) for t in (u, delta, A.t(), B, C, skip, bias, u if z is None else z)]
    states = [_array(t) for t in (state.contiguous(), after, y)]
    run_pieces(cpu_loops.scan_step, len(u), 1, *inputs, delta_softplus, z is not None, *states)
    return y, after


def conv_step(x: Tensor, weight: Tensor, bias: Tensor | None, taps: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`icrl_agents.kernels.conv_step` for float32 on the CPU, without gradients."""
    after, y = torch.empty_like(taps, memory_format=torch.contiguous_format), x.new_empty(x.shape)
    shift = x.new_zeros(x.shape[1]) if bias is None else bias
    inputs = [_array(t.contiguous()) for t in (x, weight.t(), shift, taps)]
    run_pieces(cpu_conv_loops.conv_step, len(x), 1, *inputs, _array(after), _array(y))
    return y, after


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_taps: Tensor | None, forget_before: Tensor | None
) -> Tensor:
    """:func:`icrl_agents.kernels.causal_conv` for float32 on the CPU, without the final taps."""
    return _Conv.apply(x, weight, bias, initial_taps, forget_before)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
        initial_state: Tensor | None,
        forget_before: Tensor | None,
        saves: bool,
    ) -> tuple[Tensor, Tensor]:
        batch, length, channels = u.shape
        states, blocks = A.shape[1], -(-channels // LANES)
        if initial_state is None:
            initial_state = u.new_zeros(batch, states, channels)
        inputs = [t.contiguous() for t in (u, delta, B, C)]
        gate = inputs[0] if z is None else z.contiguous()
        forget = _forget(forget_before, batch, length)
        A2 = _lanes(A.t() * LOG2_E, blocks)  # [blocks, N, LANES]
        skip, bias = (
            _lanes(u.new_zeros(channels) if x is None else x, blocks) for x in (D, delta_bias)
        )  # [blocks, LANES]
        read = (*inputs, gate, A2, skip, bias)
        spans = -(-length // SPAN) if saves else 0
        saved = u.new_empty(batch, blocks, spans, states, LANES)
        y, final_state = torch.empty_like(inputs[0]), u.new_empty(batch, states, channels)
        results = (initial_state.contiguous(), y, final_state, saved)
        run_pieces(
            cpu_loops.scan_forward,
            batch * blocks,
            length,
            *map(_array, read),
            forget,
            delta_softplus,
            z is not None,
            *map(_array, results),
        )
        if saves:
            ctx.save_for_backward(*read, forget_before, saved)
            ctx.shape = (batch, length, channels, states)
            ctx.delta_softplus = delta_softplus
            ctx.given = (D is not None, z is not None, delta_bias is not None)
        return y, final_state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        *read, forget_before, saved = ctx.saved_tensors
        batch, length, channels, states = ctx.shape
        has_D, has_z, has_bias = ctx.given
        blocks = saved.shape[1]
        new = saved.new_empty
        du, ddelta = (new(batch, length, channels) for _ in range(2))
        dz = new(batch, length, channels) if has_z else du
        dB, dC = (new(blocks, batch, length, states) for _ in range(2))  # each block's share
        dA = new(batch, blocks, states, LANES)
        dD, dbias = (new(batch, blocks, LANES) for _ in range(2))
        dstate = new(batch, states, channels)
        given = (saved, grad_y.contiguous(), grad_state.contiguous())
        results = (du, ddelta, dB, dC, dz, dA, dD, dbias, dstate)
        run_pieces(
            cpu_loops.scan_backward,
            batch * blocks,
            length,
            *map(_array, read),
            _forget(forget_before, batch, length),
            ctx.delta_softplus,
            has_z,
            *map(_array, (*given, *results)),
        )
        return (
            du,
            ddelta,
            dA.sum(0).transpose(1, 2).reshape(-1, states)[:channels],
            dB.sum(0),
            dC.sum(0),
            dD.sum(0).flatten()[:channels] if has_D else None,
            dz if has_z else None,
            dbias.sum(0).flatten()[:channels] if has_bias else None,
            None,
            dstate if ctx.needs_input_grad[9] else None,
            None,
            None,
        )


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        initial_taps: Tensor | None,
        forget_before: Tensor | None,
    ) -> Tensor:
        batch, length, channels = x.shape
        x, kernel = x.contiguous(), weight.t().contiguous()  # [K, E]
        shift = x.new_zeros(channels) if bias is None else bias.contiguous()
        if initial_taps is None:
            initial_taps = x.new_zeros(batch, kernel.shape[0] - 1, channels)
        taps = initial_taps.contiguous()
        forget = _forget(forget_before, batch, length)
        y = torch.empty_like(x)
        run_pieces(
            cpu_conv_loops.conv_forward, batch, length, *map(_array, (x, kernel, shift, taps)), forget, _array(y)
        )
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, kernel, shift, taps, forget_before)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel, shift, taps, forget_before = ctx.saved_tensors
        batch, length, channels = x.shape
        forget = _forget(forget_before, batch, length)
        dx, dtaps = torch.zeros_like(x), torch.zeros_like(taps)
        dkernel, dshift = x.new_zeros(batch, *kernel.shape), x.new_zeros(batch, channels)
        given = (*map(_array, (x, kernel, shift, taps)), forget, _array(grad_y.contiguous()))
        run_pieces(cpu_conv_loops.conv_backward, batch, length, *given, *map(_array, (dx, dkernel, dshift, dtaps)))
        return (
            dx,
            dkernel.sum(0).t(),
            dshift.sum(0) if ctx.needs_input_grad[2] else None,
            dtaps if ctx.needs_input_grad[3] else None,
            None,
        )


def _array(x: Tensor) -> np.ndarray[Any, Any]:
    return x.detach().numpy()


def _forget(forget_before: Tensor | None, batch: int, length: int) -> np.ndarray[Any, Any]:
    return np.zeros((batch, length), np.bool_) if forget_before is None else _array(forget_before.contiguous())


def _lanes(x: Tensor, blocks: int) -> Tensor:
    """``[..., E]`` cut into blocks of channels ``[blocks, ..., LANES]``, the last filled up with zeros."""
    x = x.detach()
    padded = x.new_zeros(*x.shape[:-1], blocks * LANES)
    padded[..., : x.shape[-1]] = x
    return padded.unflatten(-1, (blocks, LANES)).movedim(-2, 0).contiguous()

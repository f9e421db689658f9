"""The S6 scan and convolution for float32 on the CPU: numba inside, PyTorch's autograd outside.

How it is fast:

- A piece of work is one sequence times ``LANES`` channels. Its state lies as ``[N, LANES]``, so the channel axis fills
  the SIMD lanes, B_t and C_t are broadcasts, and the state stays in the first-level cache.
- Softplus, discretisation, scan, contraction with C, skip and gate are one pass.
- The forward pass saves the state every ``SPAN`` steps; the backward pass recomputes the states in between.
- Pieces run on Python threads, which numba code runs without the interpreter lock. numba's own pools are not used:
  its OpenMP pool spins against PyTorch's for the cores, and its work queue aborts the process when two threads meet
  in it.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from icrl_agents.kernels.cpu_loops import (
    LANES,
    SPAN,
    conv_backward,
    conv_forward,
    scan_backward,
    scan_forward,
)
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
    return _Scan.apply(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, forget_before)


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
    ) -> tuple[Tensor, Tensor]:
        batch, length, channels = u.shape
        states, blocks = A.shape[1], -(-channels // LANES)
        if initial_state is None:
            initial_state = u.new_zeros(batch, states, channels)
        inputs = [t.contiguous() for t in (u, delta, B, C)]
        gate = u.new_empty(0, 0, 0) if z is None else z.contiguous()
        forget = np.zeros((0, 0), np.bool_) if forget_before is None else _array(forget_before.contiguous())
        A_blocks = _lanes(A.t(), blocks)  # [blocks, N, LANES]
        D_lanes, bias_lanes = _lanes(D, blocks, channels), _lanes(delta_bias, blocks, channels)  # [blocks, LANES]
        wants_grad = any(ctx.needs_input_grad)
        spans = -(-length // SPAN) if wants_grad else 0
        saved = u.new_empty(batch, blocks, spans, states, LANES)
        y, final_state = torch.empty_like(inputs[0]), u.new_empty(batch, states, channels)
        arguments = (
            *map(_array, inputs),
            _array(gate),
            forget,
            _array(A_blocks * LOG2_E),
            _array(D_lanes),
            _array(bias_lanes),
            delta_softplus,
        )
        state_in = _array(initial_state.contiguous())
        run_pieces(
            scan_forward, batch * blocks, length, *arguments, state_in, _array(y), _array(final_state), _array(saved)
        )
        if wants_grad:
            ctx.save_for_backward(*inputs, gate, forget_before, A_blocks, D_lanes, bias_lanes, saved)
            ctx.shape = (batch, length, channels, states)
            ctx.delta_softplus = delta_softplus
            ctx.given = (D is not None, z is not None, delta_bias is not None)
        return y, final_state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, gate, forget_before, A_blocks, D_lanes, bias_lanes, saved = ctx.saved_tensors
        batch, length, channels, states = ctx.shape
        blocks = A_blocks.shape[0]
        forget = np.zeros((0, 0), np.bool_) if forget_before is None else _array(forget_before.contiguous())
        du, ddelta, dz = torch.empty_like(inputs[0]), torch.empty_like(inputs[0]), torch.empty_like(gate)
        new = inputs[0].new_empty
        dB, dC = (new(blocks, batch, length, states) for _ in range(2))  # each block's share
        dA = new(batch, blocks, states, LANES)
        dD, dbias = (new(batch, blocks, LANES) for _ in range(2))
        dstate = new(batch, states, channels)
        arguments = (
            *map(_array, inputs),
            _array(gate),
            forget,
            _array(A_blocks * LOG2_E),
            _array(D_lanes),
            _array(bias_lanes),
            ctx.delta_softplus,
        )
        given = (_array(saved), _array(grad_y.contiguous()), _array(grad_state.contiguous()))
        results = map(_array, (du, ddelta, dB, dC, dz, dA, dD, dbias, dstate))
        run_pieces(scan_backward, batch * blocks, length, *arguments, *given, *results)
        has_D, has_z, has_bias = ctx.given
        return (
            du,
            ddelta,
            dA.sum(0).transpose(1, 2).reshape(-1, states)[:channels],
            dB.sum(0) if blocks > 1 else dB[0],
            dC.sum(0) if blocks > 1 else dC[0],
            dD.sum(0).flatten()[:channels] if has_D else None,
            dz if has_z else None,
            dbias.sum(0).flatten()[:channels] if has_bias else None,
            None,
            dstate if ctx.needs_input_grad[9] else None,
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
        forget = np.zeros((0, 0), np.bool_) if forget_before is None else _array(forget_before.contiguous())
        y = torch.empty_like(x)
        run_pieces(conv_forward, batch, length, *map(_array, (x, kernel, shift, taps)), forget, _array(y))
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, kernel, shift, taps, forget_before)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel, shift, taps, forget_before = ctx.saved_tensors
        batch, length, channels = x.shape
        forget = np.zeros((0, 0), np.bool_) if forget_before is None else _array(forget_before.contiguous())
        dx, dtaps = torch.zeros_like(x), torch.zeros_like(taps)
        dkernel, dshift = x.new_zeros(batch, *kernel.shape), x.new_zeros(batch, channels)
        given = (*map(_array, (x, kernel, shift, taps)), forget, _array(grad_y.contiguous()))
        run_pieces(conv_backward, batch, length, *given, *map(_array, (dx, dkernel, dshift, dtaps)))
        return (
            dx,
            dkernel.sum(0).t(),
            dshift.sum(0) if ctx.needs_input_grad[2] else None,
            dtaps if ctx.needs_input_grad[3] else None,
            None,
        )


def _array(x: Tensor) -> np.ndarray[Any, Any]:
    return x.detach().numpy()


def _lanes(x: Tensor | None, blocks: int, channels: int = 0) -> Tensor:
    """``[..., E]`` cut into blocks of channels ``[blocks, ..., LANES]``, the last one filled up with zeros."""
    if x is None:
        return torch.zeros(blocks, LANES)
    x = x.detach()
    padded = x.new_zeros(*x.shape[:-1], blocks * LANES)
    padded[..., : x.shape[-1]] = x
    return padded.unflatten(-1, (blocks, LANES)).movedim(-2, 0).contiguous()

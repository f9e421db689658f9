"""The S6 scan and convolution for float32 on a GPU: Triton inside, PyTorch's autograd outside.

No compiler is needed: PyTorch for CUDA brings Triton. How the programs work: :mod:`icrl_agents.kernels.triton_scan` and
:mod:`icrl_agents.kernels.triton_conv`. With ``TRITON_INTERPRET=1`` in the environment before the first use they are
interpreted on the CPU, slowly: for tests.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton import cdiv, next_power_of_2

from icrl_agents.errors import InputError
from icrl_agents.kernels import reference, triton_conv, triton_scan

SPAN = 64
"""Steps of one program."""
CHANNELS = 32
"""Channels of one program: 128 bytes side by side, what a GPU reads at once."""
WARPS, BACKWARD_WARPS, STEP_WARPS = 8, 16, 1
"""Of one program: as few as keep its tiles in registers by ptxas's count (95, 128 and 64 a thread at N = 16)."""
GRID_LIMIT = 65_535
"""Programs along all axes of CUDA's grids but the first."""


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
    """:func:`icrl_agents.kernels.selective_scan` for float32 on a GPU."""
    if not u.numel():
        return reference.selective_scan(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, forget_before
        )
    return _Scan.apply(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, forget_before)


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
    """:func:`icrl_agents.kernels.selective_step` for float32 on a GPU, without gradients."""
    batch, states, channels = state.shape
    after, y = torch.empty_like(state, memory_format=torch.contiguous_format), u.new_empty(u.shape)
    rows = [_rows(t) for t in (u, delta, B, C, u if z is None else z)]
    u, delta, B, C, gate = rows
    skip, bias = _vector(D, u), _vector(delta_bias, u)
    _launch(
        triton_scan.step_state,
        (cdiv(channels, CHANNELS), batch),
        *(u, delta, A.t().contiguous(), B, C, skip, gate, bias, state.contiguous(), after, y),
        *(t.stride(0) for t in rows),
        channels,
        N=states,
        SOFTPLUS=delta_softplus,
        GATED=z is not None,
        STATES=next_power_of_2(max(1, states)),
        CHANNELS=CHANNELS,
        num_warps=STEP_WARPS,
    )
    return y, after


def conv_step(x: Tensor, weight: Tensor, bias: Tensor | None, taps: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`icrl_agents.kernels.conv_step` for float32 on a GPU, without gradients."""
    batch, channels = x.shape
    x = _rows(x)
    after, y = torch.empty_like(taps, memory_format=torch.contiguous_format), x.new_empty(x.shape)
    _launch(
        triton_conv.step_taps,
        (cdiv(channels, CHANNELS), batch),
        *(x, weight.t().contiguous(), _vector(bias, x), taps.contiguous(), after, y, x.stride(0), channels),
        K=weight.shape[1],
        CHANNELS=CHANNELS,
        num_warps=STEP_WARPS,
    )
    return y, after


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_taps: Tensor | None, forget_before: Tensor | None
) -> Tensor:
    """:func:`icrl_agents.kernels.causal_conv` for float32 on a GPU, without the final taps."""
    if not x.numel():
        return reference.causal_conv(x, weight, bias, initial_taps, forget_before)
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
        states = A.shape[1]
        blocks, spans = cdiv(channels, CHANNELS), cdiv(length, SPAN)
        u, delta, B, C = (t.contiguous() for t in (u, delta, B, C))
        gate = u if z is None else z.contiguous()
        A_t, skip, bias = A.t().contiguous(), _vector(D, u), _vector(delta_bias, u)  # [N, E], [E], [E]
        forget = _forget(forget_before, u)
        first = u.new_zeros(batch, states, channels) if initial_state is None else initial_state.contiguous()
        options = {"N": states, "SOFTPLUS": delta_softplus, "FORGETS": forget_before is not None}
        tile = {"SPAN": SPAN, "CHANNELS": CHANNELS, "num_warps": WARPS}
        grid = (blocks, spans, batch)
        starts, sums = u.new_empty(batch, spans, states, channels), u.new_empty(batch, spans, channels)
        final_state, y = u.new_empty(batch, states, channels), torch.empty_like(u)
        sizes = (length, channels)
        _launch(triton_scan.span_ends, grid, *(u, delta, A_t, B, bias, forget, starts, sums), *sizes, **options, **tile)
        _chain(starts, sums, A_t, first, final_state, reverse=False)
        options["GATED"] = z is not None
        read = (u, delta, A_t, B, C, skip, gate, bias, forget, starts)
        _launch(triton_scan.scan_spans, grid, *read, y, *sizes, **options, **tile)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*read, sums)
            ctx.options = options | tile | {"num_warps": BACKWARD_WARPS}
            ctx.given = (D is not None, z is not None, delta_bias is not None)
        return y, final_state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        *read, sums = ctx.saved_tensors
        u, delta, A_t, B, C, _, gate, bias, forget, starts = read
        has_D, has_z, has_bias = ctx.given
        batch, length, channels = u.shape
        spans = sums.shape[1]
        blocks = cdiv(channels, ctx.options["CHANNELS"])
        grid, sizes, grad_y = (blocks, spans, batch), (length, channels), grad_y.contiguous()
        grad_ends, dstate = torch.empty_like(starts), u.new_empty(batch, *A_t.shape)
        given = (delta, A_t, C, gate, bias, forget, grad_y)
        _launch(triton_scan.span_ends_backward, grid, *given, grad_ends, *sizes, **ctx.options)
        _chain(grad_ends, sums, A_t, grad_state.contiguous(), dstate, reverse=True)
        du, ddelta = torch.empty_like(u), torch.empty_like(u)
        dz = torch.empty_like(u) if has_z else du
        dA, dD, dbias = torch.empty_like(starts), torch.empty_like(sums), torch.empty_like(sums)
        dB, dC = u.new_empty(blocks, *B.shape), u.new_empty(blocks, *B.shape)
        results = (du, ddelta, dA, dB, dC, dD, dz, dbias)
        _launch(triton_scan.scan_spans_backward, grid, *read, grad_y, grad_ends, *results, *sizes, **ctx.options)
        return (
            du,
            ddelta,
            dA.sum((0, 1)).t(),
            dB.sum(0),
            dC.sum(0),
            dD.sum((0, 1)) if has_D else None,
            dz if has_z else None,
            dbias.sum((0, 1)) if has_bias else None,
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
        x, kernel, shift = x.contiguous(), weight.t().contiguous(), _vector(bias, x)  # [B, L, E], [K, E], [E]
        if initial_taps is None:
            initial_taps = x.new_zeros(batch, kernel.shape[0] - 1, channels)
        read = (x, kernel, shift, initial_taps.contiguous(), _forget(forget_before, x))
        options = {"K": kernel.shape[0], "FORGETS": forget_before is not None}
        options |= {"SPAN": SPAN, "CHANNELS": CHANNELS, "num_warps": WARPS}
        y = torch.empty_like(x)
        grid = (cdiv(channels, CHANNELS), cdiv(length, SPAN), batch)
        _launch(triton_conv.conv_spans, grid, *read, y, length, channels, **options)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*read)
            ctx.options = options
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel, _, taps, forget = read = ctx.saved_tensors
        batch, length, channels = x.shape
        span, block = ctx.options["SPAN"], ctx.options["CHANNELS"]
        blocks, spans = cdiv(channels, block), cdiv(length, span)
        grad_out, dx, dtaps = torch.empty_like(x), torch.empty_like(x), torch.empty_like(taps)
        dkernel, dshift = x.new_empty(batch, spans, *kernel.shape), x.new_empty(batch, spans, channels)
        sizes, results = (length, channels), (grad_out, dkernel, dshift)
        grid = (blocks, spans, batch)
        _launch(triton_conv.conv_spans_backward, grid, *read, grad_y.contiguous(), *results, *sizes, **ctx.options)
        grid = (blocks, cdiv(length + taps.shape[1], span), batch)
        _launch(triton_conv.conv_inputs_backward, grid, grad_out, kernel, forget, dx, dtaps, *sizes, **ctx.options)
        return (
            dx,
            dkernel.sum((0, 1)).t(),
            dshift.sum((0, 1)) if ctx.needs_input_grad[2] else None,
            dtaps if ctx.needs_input_grad[3] else None,
            None,
        )


def _chain(states: Tensor, sums: Tensor, A_t: Tensor, first: Tensor, last: Tensor, *, reverse: bool) -> None:
    """What spans ``states`` ``[B, spans, N, E]`` add becomes, in place, what they begin with."""
    batch, spans, n, channels = states.shape
    _launch(
        triton_scan.chain_spans,
        (cdiv(channels, CHANNELS), batch),
        *(states, sums, A_t, first, last, spans, channels),
        N=n,
        REVERSE=reverse,
        STATES=next_power_of_2(max(1, n)),
        CHANNELS=CHANNELS,
        num_warps=STEP_WARPS,
    )


def _launch(program: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Run ``program`` on the device where its first argument lies.

    Raises:
        InputError: more rows, or spans of time, than CUDA's grids have.
    """
    if max(grid[1:]) > GRID_LIMIT:
        raise InputError(f"the kernel triton takes at most {GRID_LIMIT} rows, and as many spans, got {grid[1:]}")
    run: Callable[..., object] = program[grid]
    with torch.cuda.device_of(arguments[0]):
        run(*arguments, **options)


def _vector(x: Tensor | None, like: Tensor) -> Tensor:
    """``x`` ``[E]``, or zeros."""
    return like.new_zeros(like.shape[-1]) if x is None else x.contiguous()


def _rows(x: Tensor) -> Tensor:
    """``x`` ``[B, *]`` with the entries of a row side by side."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def _forget(forget_before: Tensor | None, like: Tensor) -> Tensor:
    """Bytes ``[B, L]``; never read where nothing is forgotten."""
    return like if forget_before is None else forget_before.contiguous().view(torch.uint8)

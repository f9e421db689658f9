# mypy: ignore-errors
# numba types and compiles these functions; mypy knows neither its intrinsics nor NumPy scalars as floats.
"""One step of a whole stack of S6 blocks in one compiled call, on as many threads as come to help.

Letters as in :mod:`icrl_agents.kernels.reference`, and T layers, D the model's width. What is multiplied with lies in
*panels*: ``LANES`` outputs side by side, the inputs after each other, so that weights stream through memory in
the order of their use, outputs stay in registers and no sum runs across lanes.

The work comes in phases, two a layer: into the channels (norm, in_proj, convolution, each block's share of
x_proj) and out of them (dt_proj, scan, gate, each block's share of out_proj). A phase is one piece for each
block of channels. Threads take the next piece that nobody has taken; whoever ends a phase adds up the shares, in
the order of the blocks: the result does not depend on how many threads came, or when, and no phase waits for a thread
that has not come yet.

numba's cache looks for changes only in the file of the function called: after an edit of what this file imports
from :mod:`icrl_agents.kernels`, remove ``__pycache__``.
"""

import os
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from icrl_agents.kernels.cpu_loops import (
    LANES,
    LOG2_E,
    ONE,
    ZERO,
    exp2,
    f32,
    lanes_loop,
    load,
    log1p_of_fraction,
    loop,
    sigmoid,
    store,
)
from icrl_agents.kernels.cpu_product import product
from icrl_agents.kernels.cpu_team import for_team, on_team

TILE = 4
"""Rows of a batch that are multiplied at once, so that a weight is read and converted once for all of them."""
PATIENCE = 1000  # reads of a counter before a waiting thread gives its core to others
AHEAD = 64  # rows of ``LANES`` weights that are asked for before their turn: until a stream runs, memory idles
LINE = 16  # floats of a cache line
_int32 = ir.IntType(32)
READY, TAKEN = 0, 16  # places in the counters: phases completed; pieces taken of each phase, then pieces done

row_product, tile_product = product(1), product(TILE)


@intrinsic
def fetch_add(typing_context: Any, counters: Any, index: Any, value: Any) -> Any:
    """``counters[index]`` before ``value`` is added, in one act that other threads see whole."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [arguments[1]]), arguments[2], "acq_rel")

    return types.int64(counters, types.int64, types.int64), emit


@intrinsic
def read(typing_context: Any, counters: Any, index: Any) -> Any:
    """``counters[index]``, and with it everything that was written before it was counted up."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load_atomic(builder.gep(data, [arguments[1]]), "acquire", 8)

    return types.int64(counters, types.int64), emit


if hasattr(os, "sched_yield"):
    yield_core = types.ExternalFunction("sched_yield", types.int32())
else:

    @njit
    def yield_core():
        """Nothing: this platform has no such call."""


@loop
def await_phase(counters, phase):
    """Wait until ``phase`` phases are completed: mostly microseconds, unless whom we wait for has no core."""
    reads = 0
    while read(counters, READY) < phase:
        reads += 1
        if reads > PATIENCE:
            yield_core()


@intrinsic
def address_to_pointer(typing_context: Any, address: Any) -> Any:
    """What lies at a number's address."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), emit


@intrinsic
def pointer_to(typing_context: Any, array: Any) -> Any:
    """Where an array begins."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), emit


@intrinsic
def prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of ``array[index]``, a flat place in a contiguous array."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        place = builder.gep(context.make_array(signature.args[0])(context, builder, arguments[0]).data, [arguments[1]])
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [pointer], ir.FunctionType(ir.VoidType(), [pointer, _int32, _int32, _int32])
        )
        read, keep, of_data = (ir.Constant(_int32, value) for value in (0, 3, 1))
        builder.call(function, [builder.bitcast(place, pointer), read, keep, of_data])
        return context.get_dummy_value()

    return types.void(array, types.int64), emit


@loop
def prefetch_lanes(array, start, stride, rows):
    """Ask for ``LANES`` floats from ``start`` on, and so for ``rows`` rows that are ``stride`` apart.

    The hardware guesses only where a long stream goes on.
    """
    for r in range(rows):
        for e in range(0, LANES, LINE):
            prefetch(array, start + r * stride + e)


@loop
def multiply(x, stride, weights, start, count, scale, out):
    """Rows of ``count`` inputs, ``stride`` apart, times one panel times its scales ``[LANES]``: ``[rows, LANES]``."""
    done, rows = 0, out.shape[0]
    while done + TILE <= rows:
        tile_product(x, done * stride, stride, 1, weights, start, count, out, done * LANES)
        done += TILE
    while done < rows:
        row_product(x, done * stride, stride, 1, weights, start, count, out, done * LANES)
        done += 1
    if weights.itemsize == 1:
        for r in range(rows):
            scale_lanes(out[r], scale)


@lanes_loop
def scale_lanes(values, scale):
    """values *= scale, ``LANES`` of each."""
    for e in range(LANES):
        values[e] *= scale[e]


@lanes_loop
def convolve_tile(tile, kernel, bias, taps, low, width, row, out):
    """A step of the convolution of ``LANES`` channels, in place; taps ``[B, K - 1, E]`` move on."""
    before = taps.shape[1]
    for b in range(tile.shape[0]):
        for e in range(LANES):
            out[e] = bias[e] + kernel[before, e] * tile[b, e]
        for k in range(before):
            load(taps[b], k, low, width, row, 0)
            for e in range(LANES):
                out[e] += kernel[k, e] * row[0, e]
            if k:
                store(row, 0, taps[b], k - 1, low, width)
        if before:
            store(tile, b, taps[b], before - 1, low, width)
        for e in range(LANES):
            tile[b, e] = out[e] * sigmoid(out[e])


@lanes_loop
def scan_tile(dt, u, gate, projected, rank, bias, A2, skip, state, low, width, row, dtx, y):
    """A step of the scan of ``LANES`` channels; the state ``[B, N, E]`` moves on, y takes the place of dt.

    B and C of a row are ``projected[b]`` from ``rank`` on; ``gate`` had its silu.
    """
    states, start = A2.shape[0], np.uintp(low)
    for b in range(dt.shape[0]):
        for e in range(LANES):
            v = dt[b, e] + bias[e]
            positive = v if v > ZERO else ZERO
            v = positive + log1p_of_fraction(exp2(-abs(v) * LOG2_E))
            dt[b, e] = v
            dtx[e] = v * u[b, e]
            y[e] = skip[e] * u[b, e]
        for n in range(states):
            inward, outward = projected[b, rank + n], projected[b, rank + states + n]
            if width == LANES:  # in place: a row's way to scratch and back would take longer than all else here
                for e in range(LANES):
                    h = exp2(dt[b, e] * A2[n, e]) * state[b, n, start + np.uintp(e)] + dtx[e] * inward
                    state[b, n, start + np.uintp(e)] = h
                    y[e] += outward * h
            else:
                load(state[b], n, low, width, row, 0)
                for e in range(LANES):
                    h = exp2(dt[b, e] * A2[n, e]) * row[0, e] + dtx[e] * inward
                    row[0, e] = h
                    y[e] += outward * h
                store(row, 0, state[b], n, low, width)
        for e in range(LANES):
            dt[b, e] = y[e] * gate[b, e]


@lanes_loop
def silu_tile(tile):
    """silu of every entry, in place."""
    for b in range(tile.shape[0]):
        for e in range(LANES):
            tile[b, e] *= sigmoid(tile[b, e])


@lanes_loop
def normalize(h, size, eps, weight, out):
    """RMSNorm of the first ``size`` entries of each row."""
    for b in range(h.shape[0]):
        squares = np.float64(0.0)
        for d in range(size):
            squares += np.float64(h[b, d]) * np.float64(h[b, d])
        inverse = f32(ONE / np.sqrt(squares / size + eps))
        for d in range(size):
            out[b, d] = h[b, d] * inverse * weight[d]


@loop
def into_channels(block, channels, width, normed, into, scale, rows, taps, row, out, u, gate, shares):
    """The piece of ``block`` of a layer's first phase; row and out are scratch of ``LANES``."""
    size, low = normed.shape[1], block * LANES
    here = min(LANES, channels - low)
    prefetch_lanes(taps, low, channels, taps.shape[0] * taps.shape[1])
    prefetch_lanes(rows, 0, LANES, width + 1)
    multiply(normed, size, into, 0, size, scale, u)
    multiply(normed, size, into, size * LANES, size, scale[LANES:], gate)
    silu_tile(gate)
    convolve_tile(u, rows[:width], rows[width], taps, low, here, row, out)
    for panel in range(shares.shape[0]):
        start = (2 * size + panel * LANES) * LANES
        multiply(u, LANES, into, start, LANES, scale[(2 + panel) * LANES :], shares[panel])


@loop
def out_of_channels(block, channels, width, rank, projected, out, scale, rows, state, row, dtx, y, dt, u, gate, shares):
    """The piece of ``block`` of a layer's second phase; row, dtx and y are scratch of ``LANES``, dt a tile."""
    low, states = block * LANES, state.shape[1]
    here = min(LANES, channels - low)
    step = width + 1  # in rows: kernel, its bias, dt_proj, its bias, A, D
    decay = step + rank + 1
    prefetch_lanes(rows, decay * LANES, LANES, states + 1)
    prefetch_lanes(state, low, channels, state.shape[0] * states)
    prefetch_lanes(out, 0, LANES, AHEAD)
    multiply(projected, projected.shape[1], rows, step * LANES, rank, rows[0], dt)
    scan_tile(
        dt, u, gate, projected, rank, rows[decay - 1], rows[decay : decay + states], rows[decay + states],
        state, low, here, row, dtx, y,
    )  # fmt: skip
    for panel in range(shares.shape[0]):
        multiply(dt, LANES, out, panel * LANES * LANES, LANES, scale[panel * LANES :], shares[panel])


@loop
def prefetch_piece(phase, block, into, rows, width, rank):
    """Ask for what a piece begins with."""
    layer = (phase - 1) // 2
    if phase % 2:
        prefetch_lanes(into[layer, block], 0, LANES, AHEAD)
    else:
        prefetch_lanes(rows[layer, block], (width + 1) * LANES, LANES, rank + 1)


@loop
def unpanel(shares, total):
    """Add shares ``[blocks, panels, B, LANES]`` to ``total`` ``[B, panels LANES]``."""
    for block in range(shares.shape[0]):
        for panel in range(shares.shape[1]):
            for b in range(shares.shape[2]):
                add_lanes(shares[block, panel, b], total[b, panel * LANES : (panel + 1) * LANES])


@lanes_loop
def add_lanes(share, total):
    """total += share, ``LANES`` of each."""
    for e in range(LANES):
        total[e] += share[e]


@loop
def borrowed(array):
    """An array that the caller keeps, without a count of its users: slices of it need not keep that either."""
    return carray(pointer_to(array), array.shape)


def scratch_floats(batch, size, blocks, inner, outer):
    """How many floats of scratch :func:`stack_step` needs; inner and outer count the panels of x_proj and out_proj."""
    shares = blocks * batch * (inner + outer + 2) * LANES
    return batch * (outer * LANES + size + inner * LANES) + shares


@loop
def stack_step(
    first, last, x, y, eps, channels, rank, states, norms, into, into_scale, out, out_scale, rows, carry_at,
    scratch, counters,
):  # fmt: skip
    """One step of T blocks; every thread that helps makes the same call, and one that comes late finds all done.

    Args:
        first, last: which of the calls this is, which makes no difference.
        x, y: inputs and outputs ``[B, D]``.
        eps: of the norms.
        channels, rank, states: E, R and N.
        norms: weights of the norms ``[T + 1, D]``.
        into: for each layer and block of channels the panels of x and z (in_proj) and of x_proj ``[T, blocks, ...]``.
        out: likewise the panels of out_proj.
        into_scale, out_scale: one factor for each output, read only if the weights are int8.
        rows: for each layer and block ``[T, blocks, K + 1 + R + 1 + N + 1, LANES]``: the convolution's kernel and bias,
            dt_proj and its bias, A times log2(e), D.
        carry_at: addresses of each layer's taps ``[B, K - 1, E]`` and state ``[B, N, E]``, updated in place ``[T, 2]``.
        scratch: of this call, as many as :func:`scratch_floats` says.
        counters: of this call, zero, ``TAKEN`` and two for each of 2 T + 1 phases.
    """
    layers, blocks, batch, size = rows.shape[0], rows.shape[1], x.shape[0], x.shape[1]
    inner, outer = into_scale.shape[2] // LANES - 2, out_scale.shape[2] // LANES
    width = rows.shape[2] - rank - states - 3
    x, y, norms, rows, counters = borrowed(x), borrowed(y), borrowed(norms), borrowed(rows), borrowed(counters)
    into, out, into_scale, out_scale = borrowed(into), borrowed(out), borrowed(into_scale), borrowed(out_scale)
    at = 0
    h = carray(pointer_to(scratch[at:]), (batch, outer * LANES))
    at += h.size
    normed = carray(pointer_to(scratch[at:]), (batch, size))
    at += normed.size
    projected = carray(pointer_to(scratch[at:]), (batch, inner * LANES))
    at += projected.size
    u = carray(pointer_to(scratch[at:]), (blocks, batch, LANES))
    at += u.size
    gate = carray(pointer_to(scratch[at:]), (blocks, batch, LANES))
    at += gate.size
    inner_shares = carray(pointer_to(scratch[at:]), (blocks, inner, batch, LANES))
    at += inner_shares.size
    outer_shares = carray(pointer_to(scratch[at:]), (blocks, outer, batch, LANES))
    own = np.empty((3 + batch, LANES), f32)  # of this thread
    row, first, second, tile = own[:1], own[1], own[2], own[3:]
    phases = 2 * layers + 1
    for phase in range(phases):
        layer, pieces = (phase - 1) // 2, blocks if phase else 1
        await_phase(counters, phase)
        while True:
            block = fetch_add(counters, TAKEN + phase, 1)
            if block >= pieces:
                break
            following = read(counters, TAKEN + phase)
            if phase and following < pieces:
                prefetch_piece(phase, following, into, rows, width, rank)
            elif phase + 1 < phases:
                prefetch_piece(phase + 1, 0, into, rows, width, rank)
            if phase == 0:
                h[:] = ZERO
                h[:, :size] = x
                normalize(h, size, eps, norms[0], normed)
            elif phase % 2:
                taps = carray(address_to_pointer(carry_at[layer, 0]), (batch, width - 1, channels), f32)
                into_channels(
                    block, channels, width, normed, into[layer, block], into_scale[layer, block], rows[layer, block],
                    taps, row, first, u[block], gate[block], inner_shares[block],
                )  # fmt: skip
            else:
                state = carray(address_to_pointer(carry_at[layer, 1]), (batch, states, channels), f32)
                out_of_channels(
                    block, channels, width, rank, projected, out[layer, block], out_scale[layer, block],
                    rows[layer, block], state, row, first, second, tile, u[block], gate[block], outer_shares[block],
                )  # fmt: skip
            if fetch_add(counters, TAKEN + phases + phase, 1) == pieces - 1:
                if phase % 2:
                    projected[:] = ZERO
                    unpanel(inner_shares, projected)
                elif phase:
                    unpanel(outer_shares, h)
                    normalize(h, size, eps, norms[layer + 1], y if layer == layers - 1 else normed)
                fetch_add(counters, READY, 1)
    await_phase(counters, phases)  # the last piece may be another thread's


@for_team(stack_step)
@loop
def stack_step_on_team(threads, pieces, grain, *arguments):
    """:func:`stack_step` on PyTorch's threads."""
    return on_team(stack_step, threads, pieces, grain, arguments)

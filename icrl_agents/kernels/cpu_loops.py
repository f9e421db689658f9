"""The compiled loops behind :mod:`icrl_agents.kernels.cpu`.

Letters as in :mod:`icrl_agents.kernels.reference`; a piece is a sequence b times a block of ``LANES`` channels.
Innermost loops run over lanes with a constant count, so that LLVM turns them into straight SIMD code. Fast-math flags
leave out ``reassoc`` (it would fold away the rounding in :func:`exp2`) except in :func:`add_any_order`.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, njit
from numba.core.compiler import Compiler
from numba.extending import intrinsic

LANES = 64
"""Channels of one piece: four AVX-512 registers, eight AVX2 ones."""
SPAN = 16
"""Steps between saved states."""

FLAGS = {"contract", "nsz", "nnan", "ninf"}
f32 = np.float32
ZERO, ONE, TWO = f32(0.0), f32(1.0), f32(2.0)
LOG2_E, LN_2 = f32(1.4426950408889634), f32(0.6931471805599453)
ROUND = f32(1.5 * 2**23)  # adding it leaves the nearest integer in the low bits
LOWEST, HIGHEST = f32(-126.0), f32(126.0)  # exponents that float32 has
E1, E2, E3, E4, E5, E6 = (f32(np.log(2.0) ** k / d) for k, d in ((1, 1), (2, 2), (3, 6), (4, 24), (5, 120), (6, 720)))
L3, L5, L7, L9, L11, L13 = (f32(1.0 / k) for k in (3, 5, 7, 9, 11, 13))



class NoAlias(Compiler):
    """numba's usual compiler, told that a function's array arguments do not overlap: halves the time of its loops."""

    def define_pipelines(self) -> Any:
        self.state.flags.noalias = True
        return super().define_pipelines()


@intrinsic
def times_power_of_two(typing_context: Any, fraction: Any, rounded: Any) -> Any:
    """``fraction`` times 2 to the integer in the low bits of ``rounded``, by adding to the exponent's bits."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer = ir.IntType(32)
        bits, power = (builder.bitcast(x, integer) for x in arguments)
        shifted = builder.shl(power, ir.Constant(integer, 23))
        return builder.bitcast(builder.add(bits, shifted), ir.FloatType())

    return float32(float32, float32), emit


@intrinsic
def add_any_order(typing_context: Any, a: Any, b: Any) -> Any:
    """a + b that LLVM may reorder: what lets it keep a sum in SIMD lanes."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments, flags=("reassoc", "nsz", "contract", "nnan", "ninf"))

    return float32(float32, float32), emit


@njit(inline="always", fastmath=FLAGS, error_model="numpy")
def exp2(x: float) -> float:
    """2 ** x for x in [-126, 126], below that 2 ** -126; relative error 2e-7."""
    x = x if x > LOWEST else LOWEST
    rounded = x + ROUND
    r = x - (rounded - ROUND)  # in [-1/2, 1/2]
    p = ONE + r * (E1 + r * (E2 + r * (E3 + r * (E4 + r * (E5 + r * E6)))))
    return times_power_of_two(p, rounded)


@njit(inline="always", fastmath=FLAGS, error_model="numpy")
def log1p_of_fraction(y: float) -> float:
    """log(1 + y) for y in [0, 1]: 2 artanh(y / (2 + y)); relative error 1e-7."""
    s = y / (TWO + y)
    q = s * s  # at most 1/9
    return TWO * s * (ONE + q * (L3 + q * (L5 + q * (L7 + q * (L9 + q * (L11 + q * L13))))))


@njit(inline="always", fastmath=FLAGS, error_model="numpy")
def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x))."""
    power = -x * LOG2_E
    return ONE / (ONE + exp2(power if power < HIGHEST else HIGHEST))


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy", pipeline_class=NoAlias)
def load(row, lanes):  # type: ignore[no-untyped-def]
    """Channels of a row into lanes, zero into those left over."""
    width = row.shape[0]
    if width == LANES:
        for e in range(LANES):
            lanes[e] = row[e]
    else:
        for e in range(width):
            lanes[e] = row[e]
        for e in range(width, LANES):
            lanes[e] = ZERO


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy", pipeline_class=NoAlias)
def store(lanes, row):  # type: ignore[no-untyped-def]
    """As many lanes as the row has channels into the row."""
    width = row.shape[0]
    if width == LANES:
        for e in range(LANES):
            row[e] = lanes[e]
    else:
        for e in range(width):
            row[e] = lanes[e]


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy", pipeline_class=NoAlias)
def step_sizes(dt, bias, softplus):  # type: ignore[no-untyped-def]
    """Bias and softplus on Delta, in place."""
    if softplus:
        for e in range(LANES):
            v = dt[e] + bias[e]
            positive = v if v > ZERO else ZERO
            dt[e] = positive + log1p_of_fraction(exp2((v - positive - positive) * LOG2_E))
    else:
        for e in range(LANES):
            dt[e] += bias[e]


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy", pipeline_class=NoAlias)
def advance(dt, du, A2, B, C, h, y):  # type: ignore[no-untyped-def]
    """h <- exp(dt A) h + du B and y = C h."""
    for e in range(LANES):
        y[e] = ZERO
    for n in range(B.shape[0]):
        b, c = B[n], C[n]
        for e in range(LANES):
            state = exp2(dt[e] * A2[n, e]) * h[n, e] + du[e] * b
            h[n, e] = state
            y[e] += c * state


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy", pipeline_class=NoAlias)
def skip_and_gate(y, x, D, z, gated, out):  # type: ignore[no-untyped-def]
    """out = (y + D x) silu(z)."""
    if gated:
        for e in range(LANES):
            out[e] = (y[e] + D[e] * x[e]) * z[e] * sigmoid(z[e])
    else:
        for e in range(LANES):
            out[e] = y[e] + D[e] * x[e]


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy")
def scan_forward(first, last, u, delta, B, C, z, forget, A2, D, bias, softplus, state_in, y, state_out, saved):  # type: ignore[no-untyped-def]
    """Pieces ``first`` to ``last`` of the scan. Of ``z``, ``forget`` and ``saved``, an empty one is absent.

    Args:
        first, last: range of pieces; piece b * blocks + block.
        u, delta, z, y: ``[B, L, E]``.
        B, C: ``[B, L, N]``.
        forget: ``[B, L]``.
        A2: A log2(e) ``[blocks, N, LANES]``.
        D, bias: ``[blocks, LANES]``.
        softplus: whether delta gets one.
        state_in, state_out: ``[B, N, E]``.
        saved: receives the state before every SPAN steps ``[B, blocks, spans, N, LANES]``.
    """
    length, channels, states, blocks = u.shape[1], u.shape[2], B.shape[2], A2.shape[0]
    gated, forgets, saves = z.shape[0] > 0, forget.shape[0] > 0, saved.shape[2] > 0
    h = np.zeros((states, LANES), f32)
    lanes = np.zeros((6, LANES), f32)
    x, dt, du, acc, gate, out = lanes[0], lanes[1], lanes[2], lanes[3], lanes[4], lanes[5]
    for piece in range(first, last):
        b, block = piece // blocks, piece % blocks
        low, high = block * LANES, min((block + 1) * LANES, channels)
        for n in range(states):
            load(state_in[b, n, low:high], h[n])
        for t in range(length):
            if saves and t % SPAN == 0:
                saved[b, block, t // SPAN] = h
            if forgets and forget[b, t]:
                h[:] = ZERO
            load(u[b, t, low:high], x)
            load(delta[b, t, low:high], dt)
            step_sizes(dt, bias[block], softplus)
            for e in range(LANES):
                du[e] = dt[e] * x[e]
            advance(dt, du, A2[block], B[b, t], C[b, t], h, acc)
            if gated:
                load(z[b, t, low:high], gate)
            skip_and_gate(acc, x, D[block], gate, gated, out)
            store(out, y[b, t, low:high])
        for n in range(states):
            store(h[n], state_out[b, n, low:high])


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy", pipeline_class=NoAlias)
def advance_again(dt, du, A2, B, C, keep, before, decay, after, y):  # type: ignore[no-untyped-def]
    """:func:`advance` out of place; keeps exp(dt A), which is 0 where ``keep`` is 0 because the task was forgotten."""
    for e in range(LANES):
        y[e] = ZERO
    for n in range(B.shape[0]):
        b, c = B[n], C[n]
        for e in range(LANES):
            a = keep * exp2(dt[e] * A2[n, e])
            state = a * before[n, e] + du[e] * b
            decay[n, e] = a
            after[n, e] = state
            y[e] += c * state


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy", pipeline_class=NoAlias)
def ungate(dout, y, x, D, z, gated, dy, dz, dD):  # type: ignore[no-untyped-def]
    """The gradients of :func:`skip_and_gate` for y, z and D (added up)."""
    if gated:
        for e in range(LANES):
            s = sigmoid(z[e])
            dy[e] = dout[e] * z[e] * s
            dz[e] = dout[e] * (y[e] + D[e] * x[e]) * s * (ONE + z[e] * (ONE - s))
    else:
        for e in range(LANES):
            dy[e] = dout[e]
    for e in range(LANES):
        dD[e] += dy[e] * x[e]


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy", pipeline_class=NoAlias)
def retreat(dt, du, A2, B, C, before, decay, after, dy, dh, ddt2, ddu, dA, dB, dC):  # type: ignore[no-untyped-def]
    """The gradients of :func:`advance`: dh becomes that of the state before, dA adds up; ddt2 is that of dt / ln 2."""
    for e in range(LANES):
        ddt2[e] = ZERO
        ddu[e] = ZERO
    for n in range(B.shape[0]):
        b, c = B[n], C[n]
        db = dc = ZERO
        for e in range(LANES):
            g = dh[n, e] + dy[e] * c
            dc = add_any_order(dc, dy[e] * after[n, e])
            db = add_any_order(db, g * du[e])
            ddu[e] += g * b
            g *= decay[n, e]
            dh[n, e] = g
            g *= before[n, e]
            ddt2[e] += g * A2[n, e]
            dA[n, e] += g * dt[e]
        dB[n] = db
        dC[n] = dc


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy", pipeline_class=NoAlias)
def finish_inputs(delta, bias, softplus, x, dt, dy, D, ddt2, ddu, dx, dbias):  # type: ignore[no-untyped-def]
    """The gradients of the inputs u (to dx), delta (in place of ddt2) and of the bias (added up)."""
    for e in range(LANES):
        dx[e] = ddu[e] * dt[e] + dy[e] * D[e]
        d = ddt2[e] * LN_2 + ddu[e] * x[e]
        if softplus:
            d *= sigmoid(delta[e] + bias[e])
        ddt2[e] = d
        dbias[e] += d


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy")
def scan_backward(  # type: ignore[no-untyped-def]
    first, last, u, delta, B, C, z, forget, A2, D, bias, softplus, saved, dy, dstate_out,
    du, ddelta, dB, dC, dz, dA, dD, dbias, dstate_in,
):  # fmt: skip
    """Gradients of pieces ``first`` to ``last``; arguments as in :func:`scan_forward`, and:

    Args:
        dy, dstate_out: gradients of its results.
        du, ddelta, dz, dstate_in: receive gradients of the inputs.
        dB, dC: receive each block's share ``[blocks, B, L, N]``.
        dA: receives each sequence's share ``[B, blocks, N, LANES]``.
        dD, dbias: receive each sequence's share ``[B, blocks, LANES]``.
    """
    length, channels, states, blocks = u.shape[1], u.shape[2], B.shape[2], A2.shape[0]
    gated, forgets = z.shape[0] > 0, forget.shape[0] > 0
    h = np.zeros((SPAN + 1, states, LANES), f32)
    decay = np.zeros((SPAN, states, LANES), f32)
    dh = np.zeros((states, LANES), f32)
    rows = np.zeros((4, SPAN, LANES), f32)
    x, dt, dtx, acc = rows[0], rows[1], rows[2], rows[3]
    lanes = np.zeros((8, LANES), f32)
    step, gate, dout, dacc, dgate, ddt2, ddtx, dx = (
        lanes[0], lanes[1], lanes[2], lanes[3], lanes[4], lanes[5], lanes[6], lanes[7],
    )  # fmt: skip
    for piece in range(first, last):
        b, block = piece // blocks, piece % blocks
        low, high = block * LANES, min((block + 1) * LANES, channels)
        dA[b, block] = ZERO
        dD[b, block] = ZERO
        dbias[b, block] = ZERO
        for n in range(states):
            load(dstate_out[b, n, low:high], dh[n])
        for span in range(saved.shape[2] - 1, -1, -1):
            start = span * SPAN
            steps = min(SPAN, length - start)
            h[0] = saved[b, block, span]
            for i in range(steps):
                t = start + i
                load(u[b, t, low:high], x[i])
                load(delta[b, t, low:high], dt[i])
                step_sizes(dt[i], bias[block], softplus)
                for e in range(LANES):
                    dtx[i, e] = dt[i, e] * x[i, e]
                keep = ZERO if forgets and forget[b, t] else ONE
                advance_again(
                    dt[i], dtx[i], A2[block], B[b, t], C[b, t], keep, h[i], decay[i], h[i + 1], acc[i]
                )
            for i in range(steps - 1, -1, -1):
                t = start + i
                load(dy[b, t, low:high], dout)
                if gated:
                    load(z[b, t, low:high], gate)
                ungate(dout, acc[i], x[i], D[block], gate, gated, dacc, dgate, dD[b, block])
                if gated:
                    store(dgate, dz[b, t, low:high])
                retreat(
                    dt[i], dtx[i], A2[block], B[b, t], C[b, t], h[i], decay[i], h[i + 1],
                    dacc, dh, ddt2, ddtx, dA[b, block], dB[block, b, t], dC[block, b, t],
                )  # fmt: skip
                load(delta[b, t, low:high], step)
                finish_inputs(
                    step, bias[block], softplus, x[i], dt[i], dacc, D[block], ddt2, ddtx, dx, dbias[b, block]
                )
                store(dx, du[b, t, low:high])
                store(ddt2, ddelta[b, t, low:high])
        for n in range(states):
            store(dh[n], dstate_in[b, n, low:high])


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy")
def conv_forward(first, last, x, kernel, bias, taps, forget, y):  # type: ignore[no-untyped-def]
    """Sequences ``first`` to ``last`` of the convolution.

    Args:
        first, last: range of sequences.
        x, y: ``[B, L, E]``.
        kernel: ``[K, E]``.
        bias: ``[E]``.
        taps: ``[B, K - 1, E]``.
        forget: ``[B, L]``, or empty.
    """
    length, channels, width = x.shape[1], x.shape[2], kernel.shape[0]
    for b in range(first, last):
        reach = width - 1  # earlier inputs that are seen
        for t in range(length):
            reach = 0 if forget.shape[0] and forget[b, t] else min(reach + 1, width - 1)
            convolve(b, t, reach, x, kernel, bias, taps, y[b, t])
            out = y[b, t]
            for e in range(channels):
                out[e] *= sigmoid(out[e])


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy")
def convolve(b, t, reach, x, kernel, bias, taps, out):  # type: ignore[no-untyped-def]
    """One step of the convolution, before silu."""
    now, present = x[b, t], kernel[kernel.shape[0] - 1]
    for e in range(out.shape[0]):
        out[e] = bias[e] + present[e] * now[e]
    for back in range(1, reach + 1):
        row = x[b, t - back] if t >= back else taps[b, taps.shape[1] + t - back]
        tap = kernel[kernel.shape[0] - 1 - back]
        for e in range(out.shape[0]):
            out[e] += tap[e] * row[e]


@njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy")
def conv_backward(first, last, x, kernel, bias, taps, forget, dy, dx, dkernel, dbias, dtaps):  # type: ignore[no-untyped-def]
    """Gradients of sequences ``first`` to ``last``; all but the given ones are zero before and added to.

    Args:
        dkernel: each sequence's share ``[B, K, E]``.
        dbias: each sequence's share ``[B, E]``.
        first, last, x, kernel, bias, taps, forget, dy, dx, dtaps: as in :func:`conv_forward`.
    """
    length, channels, width = x.shape[1], x.shape[2], kernel.shape[0]
    dpre = np.empty(channels, f32)
    for b in range(first, last):
        reach, shift = width - 1, dbias[b]
        for t in range(length):
            reach = 0 if forget.shape[0] and forget[b, t] else min(reach + 1, width - 1)
            convolve(b, t, reach, x, kernel, bias, taps, dpre)
            grad = dy[b, t]
            for e in range(channels):
                s = sigmoid(dpre[e])
                d = grad[e] * s * (ONE + dpre[e] * (ONE - s))
                dpre[e] = d
                shift[e] += d
            for back in range(reach + 1):
                place = taps.shape[1] + t - back
                row = x[b, t - back] if t >= back else taps[b, place]
                drow = dx[b, t - back] if t >= back else dtaps[b, place]
                tap, dtap = kernel[width - 1 - back], dkernel[b, width - 1 - back]
                for e in range(channels):
                    drow[e] += tap[e] * dpre[e]
                    dtap[e] += row[e] * dpre[e]

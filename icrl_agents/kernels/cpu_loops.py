# mypy: ignore-errors
# numba types and compiles these functions; mypy knows neither its intrinsics nor NumPy scalars as floats.
"""The compiled loops of the scan behind :mod:`icrl_agents.kernels.cpu`, and what all compiled loops share.

Letters as in :mod:`icrl_agents.kernels.reference`; a piece is a sequence b times a block of ``LANES`` channels.
Innermost loops run over lanes with a constant count, so that LLVM turns them into straight SIMD code. Fast-math
flags leave out ``reassoc`` (it would fold away the rounding in :func:`exp2`) except in :func:`add_any_order`.

All loops of the scan live in this one file because numba's cache looks for changes only in the file of the function
called: after an edit of :mod:`icrl_agents.kernels.cpu_team`, remove ``__pycache__``.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, njit
from numba.core.compiler import Compiler
from numba.extending import intrinsic

from icrl_agents.kernels.cpu_team import for_team, on_team

LANES = 64
"""Channels of one piece: four AVX-512 registers, eight AVX2 ones."""
SPAN = 16
"""Steps between saved states: what the backward pass recomputes of them stays in the second-level cache."""

FLAGS = {"contract", "nsz"}  # not nnan: a weight that is not a number has to show
f32 = np.float32
ZERO, ONE, TWO = f32(0.0), f32(1.0), f32(2.0)
LOG2_E, LN_2 = f32(1.4426950408889634), f32(0.6931471805599453)
ROUND = f32(1.5 * 2**23)  # adding it leaves the nearest integer in the low bits
LOWEST, HIGHEST = f32(-126.0), f32(126.0)  # exponents that float32 has
E1, E2, E3, E4, E5, E6 = (f32(np.log(2.0) ** k / d) for k, d in ((1, 1), (2, 2), (3, 6), (4, 24), (5, 120), (6, 720)))
L3, L5, L7, L9, L11, L13 = (f32(1.0 / k) for k in (3, 5, 7, 9, 11, 13))


class NoAlias(Compiler):
    """numba's usual compiler, told that array arguments do not overlap: halves the time of the loops."""

    def define_pipelines(self) -> Any:
        self.state.flags.noalias = True
        return super().define_pipelines()


def cacheable() -> bool:
    """Whether numba finds a place for compiled code: ``NUMBA_CACHE_DIR``, beside this file, the user's cache."""
    try:
        njit(cache=True)(cacheable)
    except RuntimeError:  # everything is read-only: each process compiles anew
        return False
    return True


CACHE = cacheable()
loop = njit(nogil=True, cache=CACHE, fastmath=FLAGS, error_model="numpy")
lanes_loop = njit(nogil=True, cache=CACHE, fastmath=FLAGS, error_model="numpy", pipeline_class=NoAlias)


@intrinsic
def times_power_of_two(typing_context: Any, fraction: Any, rounded: Any) -> Any:
    """``fraction`` times 2 to the integer in the low bits of ``rounded``, by adding to its exponent."""

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
        return builder.fadd(*arguments, flags=("reassoc", "nsz", "contract"))

    return float32(float32, float32), emit


@njit(inline="always", fastmath=FLAGS, error_model="numpy")
def exp2(x: float) -> float:
    """2 ** x for x in [-126, 126], below that 2 ** -126; relative error 2e-7. NaN stays NaN."""
    x = LOWEST if x < LOWEST else x  # in this order NaN passes
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
    return ONE / (ONE + exp2(HIGHEST if power > HIGHEST else power))


@lanes_loop
def load(rows, t, low, width, lanes, i):
    """Channels ``low`` to ``low + width`` of row ``t`` into lanes of row ``i``; zero into lanes left over."""
    start = np.uintp(low)  # an unsigned index needs no test for a negative one
    if width == LANES:
        for e in range(LANES):
            lanes[i, e] = rows[t, start + np.uintp(e)]
    else:
        for e in range(width):
            lanes[i, e] = rows[t, start + np.uintp(e)]
        for e in range(width, LANES):
            lanes[i, e] = ZERO


@lanes_loop
def store(lanes, i, rows, t, low, width):
    """What :func:`load` read, back."""
    start = np.uintp(low)
    if width == LANES:
        for e in range(LANES):
            rows[t, start + np.uintp(e)] = lanes[i, e]
    else:
        for e in range(width):
            rows[t, start + np.uintp(e)] = lanes[i, e]


@lanes_loop
def fill(lanes, i, value):
    """``value`` into every lane of row ``i``."""
    for e in range(LANES):
        lanes[i, e] = value


@lanes_loop
def step_sizes(dt, x, i, bias, softplus, dtx):
    """Bias and softplus on Delta, in place, and Delta times the input."""
    for e in range(LANES):
        v = dt[i, e] + bias[e]
        if softplus:
            positive = v if v > ZERO else ZERO
            v = positive + log1p_of_fraction(exp2(-abs(v) * LOG2_E))
        dt[i, e] = v
        dtx[i, e] = v * x[i, e]


@lanes_loop
def advance(dt, dtx, i, A2, B, C, t, h, y):
    """h <- exp(dt A) h + dt x B and y = C h."""
    for e in range(LANES):
        y[i, e] = ZERO
    for n in range(A2.shape[0]):
        b, c = B[t, n], C[t, n]
        for e in range(LANES):
            state = exp2(dt[i, e] * A2[n, e]) * h[n, e] + dtx[i, e] * b
            h[n, e] = state
            y[i, e] += c * state


@lanes_loop
def advance_again(dt, dtx, i, A2, B, C, t, keep, h, decay, y):
    """:func:`advance` from h[i] to h[i + 1], keeping exp(dt A); ``keep`` is 0 where the task was forgotten."""
    for e in range(LANES):
        y[i, e] = ZERO
    for n in range(A2.shape[0]):
        b, c = B[t, n], C[t, n]
        for e in range(LANES):
            a = keep * exp2(dt[i, e] * A2[n, e])
            state = a * h[i, n, e] + dtx[i, e] * b
            decay[i, n, e] = a
            h[i + 1, n, e] = state
            y[i, e] += c * state


@lanes_loop
def skip_and_gate(y, x, D, z, i, gated):
    """y <- (y + D x) silu(z)."""
    for e in range(LANES):
        out = y[i, e] + D[e] * x[i, e]
        if gated:
            out *= z[i, e] * sigmoid(z[i, e])
        y[i, e] = out


@lanes_loop
def ungate(dy, z, gated, y, x, i, D, dD):
    """The gradients of :func:`skip_and_gate` for y and z (in place) and D (added up)."""
    for e in range(LANES):
        d = dy[i, e]
        if gated:
            gate = z[i, e]
            s = sigmoid(gate)
            z[i, e] = d * (y[i, e] + D[e] * x[i, e]) * s * (ONE + gate * (ONE - s))
            d *= gate * s
        dy[i, e] = d
        dD[e] += d * x[i, e]


@lanes_loop
def retreat(dt, dtx, i, A2, B, C, t, h, decay, dy, dh, ddt2, ddtx, dA, dB, dC):
    """The gradients of :func:`advance`: dh becomes that of the state before, dA adds up, ddt2 is of dt / ln 2."""
    for e in range(LANES):
        ddt2[i, e] = ZERO
        ddtx[i, e] = ZERO
    for n in range(A2.shape[0]):
        b, c = B[t, n], C[t, n]
        db = dc = ZERO
        for e in range(LANES):
            g = dh[n, e] + dy[i, e] * c
            dc = add_any_order(dc, dy[i, e] * h[i + 1, n, e])
            db = add_any_order(db, g * dtx[i, e])
            ddtx[i, e] += g * b
            g *= decay[i, n, e]
            dh[n, e] = g
            g *= h[i, n, e]
            ddt2[i, e] += g * A2[n, e]
            dA[n, e] += g * dt[i, e]
        dB[t, n] = db
        dC[t, n] = dc


@lanes_loop
def finish_inputs(delta, bias, softplus, x, dt, i, dy, D, ddt2, ddtx, dbias):
    """The gradients of delta (in place of ddt2), the input x (in place of ddtx) and the bias (added up)."""
    for e in range(LANES):
        d = ddt2[i, e] * LN_2 + ddtx[i, e] * x[i, e]
        if softplus:
            d *= sigmoid(delta[i, e] + bias[e])
        ddt2[i, e] = d
        ddtx[i, e] = ddtx[i, e] * dt[i, e] + dy[i, e] * D[e]
        dbias[e] += d


@lanes_loop
def piece_forward(
    u, delta, B, C, z, forget, A2, D, bias, softplus, gated, low, width, state_in, y, state_out, saved,
    h, x, dt, dtx, acc, gate,
):  # fmt: skip
    """:func:`scan_forward` for one piece; the last six are scratch."""
    length, states = u.shape[0], A2.shape[0]
    for n in range(states):
        load(state_in, n, low, width, h, n)
    for start in range(0, length, SPAN):
        steps = min(SPAN, length - start)
        if saved.shape[0]:
            for n in range(states):
                for e in range(LANES):
                    saved[start // SPAN, n, e] = h[n, e]
        for i in range(steps):  # a loop of its own: these rows come from far, and all at once they come sooner
            load(u, start + i, low, width, x, i)
            load(delta, start + i, low, width, dt, i)
            step_sizes(dt, x, i, bias, softplus, dtx)
        for i in range(steps):
            if forget[start + i]:
                for n in range(states):
                    fill(h, n, ZERO)
            advance(dt, dtx, i, A2, B, C, start + i, h, acc)
        for i in range(steps):
            if gated:
                load(z, start + i, low, width, gate, i)
            skip_and_gate(acc, x, D, gate, i, gated)
            store(acc, i, y, start + i, low, width)
    for n in range(states):
        store(h, n, state_out, n, low, width)


@loop
def scan_forward(first, last, u, delta, B, C, z, A2, D, bias, forget, softplus, gated, state_in, y, state_out, saved):
    """Pieces ``first`` to ``last`` of the scan.

    Args:
        first, last: range of pieces; a piece is b * blocks + block.
        u, delta, z, y: ``[B, L, E]``; z is read only if ``gated``.
        B, C: ``[B, L, N]``.
        A2: A log2(e) ``[blocks, N, LANES]``.
        D, bias: ``[blocks, LANES]``.
        forget: ``[B, L]``.
        softplus: whether delta gets one.
        gated: whether there is a gate.
        state_in, state_out: ``[B, N, E]``.
        saved: receives the state before every SPAN steps ``[B, blocks, spans, N, LANES]``, unless spans is 0.
    """
    channels, states, blocks = u.shape[2], A2.shape[1], A2.shape[0]
    h = np.zeros((states, LANES), f32)
    rows = np.zeros((5, SPAN, LANES), f32)
    for piece in range(first, last):
        b, block = piece // blocks, piece % blocks
        low = block * LANES
        piece_forward(
            u[b], delta[b], B[b], C[b], z[b], forget[b], A2[block], D[block], bias[block], softplus, gated,
            low, min(LANES, channels - low), state_in[b], y[b], state_out[b], saved[b, block],
            h, rows[0], rows[1], rows[2], rows[3], rows[4],
        )  # fmt: skip


@lanes_loop
def piece_backward(
    u, delta, B, C, z, forget, A2, D, bias, softplus, gated, low, width, saved, dy, dstate_out,
    du, ddelta, dB, dC, dz, dA, dD, dbias, dstate_in,
    h, decay, dh, x, dt, dtx, acc, step, gate, dout, ddt2, ddtx,
):  # fmt: skip
    """:func:`scan_backward` for one piece; the last twelve are scratch."""
    length, states = u.shape[0], A2.shape[0]
    for n in range(states):
        fill(dA, n, ZERO)
        load(dstate_out, n, low, width, dh, n)
    for e in range(LANES):
        dD[e] = ZERO
        dbias[e] = ZERO
    for span in range(saved.shape[0] - 1, -1, -1):
        start = span * SPAN
        steps = min(SPAN, length - start)
        for n in range(states):
            for e in range(LANES):
                h[0, n, e] = saved[span, n, e]
        for i in range(steps):
            load(u, start + i, low, width, x, i)
            load(delta, start + i, low, width, dt, i)
            load(dy, start + i, low, width, dout, i)
            if gated:
                load(z, start + i, low, width, gate, i)
            step_sizes(dt, x, i, bias, softplus, dtx)
        for i in range(steps):
            keep = ZERO if forget[start + i] else ONE
            advance_again(dt, dtx, i, A2, B, C, start + i, keep, h, decay, acc)
        for i in range(steps - 1, -1, -1):
            ungate(dout, gate, gated, acc, x, i, D, dD)
            retreat(dt, dtx, i, A2, B, C, start + i, h, decay, dout, dh, ddt2, ddtx, dA, dB, dC)
        for i in range(steps):
            load(delta, start + i, low, width, step, i)
            finish_inputs(step, bias, softplus, x, dt, i, dout, D, ddt2, ddtx, dbias)
            store(ddt2, i, ddelta, start + i, low, width)
            store(ddtx, i, du, start + i, low, width)
            if gated:
                store(gate, i, dz, start + i, low, width)
    for n in range(states):
        store(dh, n, dstate_in, n, low, width)


@loop
def scan_backward(
    first, last, u, delta, B, C, z, A2, D, bias, forget, softplus, gated, saved, dy, dstate_out,
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
    channels, states, blocks = u.shape[2], A2.shape[1], A2.shape[0]
    h, decay = np.zeros((SPAN + 1, states, LANES), f32), np.zeros((SPAN, states, LANES), f32)
    dh = np.zeros((states, LANES), f32)
    rows = np.zeros((9, SPAN, LANES), f32)
    for piece in range(first, last):
        b, block = piece // blocks, piece % blocks
        low = block * LANES
        piece_backward(
            u[b], delta[b], B[b], C[b], z[b], forget[b], A2[block], D[block], bias[block], softplus, gated,
            low, min(LANES, channels - low), saved[b, block], dy[b], dstate_out[b],
            du[b], ddelta[b], dB[block, b], dC[block, b], dz[b], dA[b, block], dD[b, block], dbias[b, block],
            dstate_in[b], h, decay, dh,
            rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6], rows[7], rows[8],
        )  # fmt: skip


@lanes_loop
def scan_step(first, last, u, delta, A, B, C, D, bias, z, softplus, gated, before, after, y):
    """Rows ``first`` to ``last`` of one step.

    Args:
        first, last: range of rows.
        u, delta, z, y: ``[B, E]``; z is read only if ``gated``.
        A: ``[N, E]``.
        B, C: ``[B, N]``.
        D, bias: ``[E]``.
        softplus: whether delta gets one.
        gated: whether there is a gate.
        before, after: states ``[B, N, E]``.
    """
    states, channels = A.shape
    dt, dtx, acc = np.empty(channels, f32), np.empty(channels, f32), np.empty(channels, f32)
    for row in range(first, last):
        for e in range(channels):
            v = delta[row, e] + bias[e]
            if softplus:
                positive = v if v > ZERO else ZERO
                v = positive + log1p_of_fraction(exp2(-abs(v) * LOG2_E))
            dt[e] = v * LOG2_E
            dtx[e] = v * u[row, e]
            acc[e] = D[e] * u[row, e]
        for n in range(states):
            b, c = B[row, n], C[row, n]
            for e in range(channels):
                state = exp2(dt[e] * A[n, e]) * before[row, n, e] + dtx[e] * b
                after[row, n, e] = state
                acc[e] += c * state
        for e in range(channels):
            y[row, e] = acc[e] * z[row, e] * sigmoid(z[row, e]) if gated else acc[e]


@for_team(scan_forward)
@loop
def scan_forward_on_team(threads, pieces, grain, *arguments):
    """:func:`scan_forward` on PyTorch's threads."""
    return on_team(scan_forward, threads, pieces, grain, arguments)


@for_team(scan_backward)
@loop
def scan_backward_on_team(threads, pieces, grain, *arguments):
    """:func:`scan_backward` on PyTorch's threads."""
    return on_team(scan_backward, threads, pieces, grain, arguments)


@for_team(scan_step)
@loop
def scan_step_on_team(threads, pieces, grain, *arguments):
    """:func:`scan_step` on PyTorch's threads."""
    return on_team(scan_step, threads, pieces, grain, arguments)

# mypy: ignore-errors
# Triton compiles these functions; mypy knows neither its tensors nor its pointers.
"""The scan's GPU programs behind :mod:`icrl_agents.kernels.triton`.

Letters as in :mod:`icrl_agents.kernels.reference`. A sequence is cut into spans of ``SPAN`` steps; a program has one
span of ``CHANNELS`` channels of one sequence as a tile ``[SPAN, CHANNELS]``. A scan is three launches:

1. ``span_ends``: the state that each span, begun empty, leaves behind, and by how much it lets one from before decay.
2. ``chain_spans``: from these, one after the other, the state at the start of every span. It alone goes through time.
3. ``scan_spans``: from its start, each span's states by a parallel scan over time, and its outputs.

The backward pass is the same three over the gradients of the state, from the last span to the first. Nothing else is
kept than the inputs and the spans' starts. What several programs contribute to is written beside each other and added
by PyTorch, not by atomics: two runs give the same bits.

Pointers lead to contiguous float32; ``A`` is [N, E] here, ``starts`` [B, spans, N, E], ``sums`` [B, spans, E].
"""

import triton
import triton.language as tl


@triton.jit
def then(decay_1, input_1, decay_2, input_2):
    """Two steps h -> decay h + input, one after the other, as one. A decay of -1 forgets h, even if it is no number."""
    decay = tl.where((decay_1 < 0) | (decay_2 < 0), -1.0, decay_1 * decay_2)
    return decay, tl.where(decay_2 < 0, input_2, decay_2 * input_1 + input_2)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), without overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def step_size(delta, SOFTPLUS: tl.constexpr):
    """Softplus, if wanted. log(1 + e) is 2 artanh(e / (2 + e)), whose series is exact to 1e-8 for e in [0, 1]."""
    if SOFTPLUS:
        e = tl.exp(-tl.abs(delta))
        s = e / (2.0 + e)
        q = s * s
        series = 1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13))))))
        delta = tl.maximum(delta, 0.0) + 2.0 * s * series
    return delta


@triton.jit
def load_tile(pointer, times, seen, channels, E):
    """Rows ``times`` of one sequence ``[L, E]``, zero where not ``seen``: ``[SPAN, CHANNELS]``."""
    place = times.to(tl.int64)[:, None] * E + channels[None, :]
    return tl.load(pointer + place, mask=seen[:, None] & (channels < E)[None, :], other=0.0)


@triton.jit
def load_step_sizes(pointer, times, seen, channels, E, bias, SOFTPLUS: tl.constexpr):
    """Step sizes at ``times``, zero where not ``seen``: nothing decays there and nothing enters."""
    raw = load_tile(pointer, times, seen, channels, E) + bias[None, :]
    return tl.where(seen[:, None], step_size(raw, SOFTPLUS), 0.0)


@triton.jit
def load_forgets(pointer, times, seen, FORGETS: tl.constexpr):
    """Whether the state is zero before the steps at ``times`` ``[SPAN]``."""
    return tl.load(pointer + times, mask=seen & FORGETS, other=0) != 0


@triton.jit
def span_ends(
    u, delta, A, B, delta_bias, forget, ends, sums, L, E,
    N: tl.constexpr, SOFTPLUS: tl.constexpr, FORGETS: tl.constexpr, SPAN: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """``ends`` ``[B, spans, N, E]``: states after a span begun empty; ``sums``: its step sizes', -1 if it forgets."""
    block, span, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    channels = block * CHANNELS + tl.arange(0, CHANNELS)
    inside, within = tl.arange(0, SPAN), channels < E
    times = span * SPAN + inside
    seen, followed = times < L, (inside < SPAN - 1) & (times + 1 < L)
    u, delta, B, forget = u + row * L * E, delta + row * L * E, B + row * L * N, forget + row * L
    bias = tl.load(delta_bias + channels, mask=within, other=0.0)
    dt = load_step_sizes(delta, times, seen, channels, E, bias, SOFTPLUS)
    later = load_step_sizes(delta, times + 1, followed, channels, E, bias, SOFTPLUS)
    later = tl.cumsum(later, 0, reverse=True)  # sum of the step sizes after each step
    dtx = dt * load_tile(u, times, seen, channels, E)
    forgets = load_forgets(forget, times, seen, FORGETS)
    if FORGETS:
        cut = tl.cumsum(load_forgets(forget, times + 1, followed, FORGETS).to(tl.int32), 0, reverse=True) > 0
    place = (row * tl.num_programs(1) + span) * E + channels
    tl.store(sums + place, tl.where(tl.max(forgets.to(tl.int32), 0) > 0, -1.0, tl.sum(dt, 0)), mask=within)
    place = (row * tl.num_programs(1) + span) * N * E + channels
    for n in range(N):
        decay = tl.load(A + n * E + channels, mask=within, other=0.0)
        inward = tl.load(B + times * N + n, mask=seen, other=0.0)
        left = tl.exp(later * decay[None, :]) * dtx * inward[:, None]
        if FORGETS:
            left = tl.where(cut[:, None], 0.0, left)
        tl.store(ends + place + n * E, tl.sum(left, 0), mask=within)


@triton.jit
def chain_spans(
    states, sums, A, first, last, spans, E,
    N: tl.constexpr, REVERSE: tl.constexpr, STATES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """``states`` holds what each span adds, and then what it begins with; ``first`` begins, ``last`` is what remains.

    Time runs backwards if ``REVERSE``. ``STATES`` is a power of two that holds N.
    """
    channels = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.program_id(1).to(tl.int64)
    n = tl.arange(0, STATES)
    within = channels < E
    mask = (n < N)[:, None] & within[None, :]
    tile = n[:, None] * E + channels[None, :]
    decay = tl.load(A + tile, mask=mask, other=0.0)
    state = tl.load(first + row * N * E + tile, mask=mask, other=0.0)
    for i in range(spans):
        span = spans - 1 - i if REVERSE else i
        place = states + (row * spans + span) * N * E + tile
        added = tl.load(place, mask=mask, other=0.0)
        total = tl.load(sums + (row * spans + span) * E + channels, mask=within, other=0.0)
        tl.store(place, state, mask=mask)
        state = tl.where((total < 0)[None, :], added, tl.exp(decay * total[None, :]) * state + added)
    tl.store(last + row * N * E + tile, state, mask=mask)


@triton.jit
def scan_spans(
    u, delta, A, B, C, D, z, delta_bias, forget, starts, y, L, E,
    N: tl.constexpr, SOFTPLUS: tl.constexpr, GATED: tl.constexpr, FORGETS: tl.constexpr,
    SPAN: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Outputs ``y`` ``[B, L, E]`` of every span from its start."""
    block, span, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    channels = block * CHANNELS + tl.arange(0, CHANNELS)
    inside, within = tl.arange(0, SPAN), channels < E
    times = span * SPAN + inside
    seen = times < L
    u, delta, z, y = u + row * L * E, delta + row * L * E, z + row * L * E, y + row * L * E
    B, C, forget = B + row * L * N, C + row * L * N, forget + row * L
    starts += (row * tl.num_programs(1) + span) * N * E
    bias = tl.load(delta_bias + channels, mask=within, other=0.0)
    skip = tl.load(D + channels, mask=within, other=0.0)
    dt = load_step_sizes(delta, times, seen, channels, E, bias, SOFTPLUS)
    x = load_tile(u, times, seen, channels, E)
    forgets = load_forgets(forget, times, seen, FORGETS)
    out, dtx = skip[None, :] * x, dt * x
    for n in range(N):
        decay = tl.load(A + n * E + channels, mask=within, other=0.0)
        start = tl.load(starts + n * E + channels, mask=within, other=0.0)
        inward = tl.load(B + times * N + n, mask=seen, other=0.0)
        outward = tl.load(C + times * N + n, mask=seen, other=0.0)
        kept = tl.exp(dt * decay[None, :])
        carried = tl.where((inside == 0)[:, None], kept * start[None, :], 0.0)
        if FORGETS:
            kept = tl.where(forgets[:, None], -1.0, kept)
            carried = tl.where(forgets[:, None], 0.0, carried)
        added = dtx * inward[:, None] + carried
        _, state = tl.associative_scan((kept, added), 0, then)
        out += outward[:, None] * state
    if GATED:
        gate = load_tile(z, times, seen, channels, E)
        out *= gate * sigmoid(gate)
    place = times.to(tl.int64)[:, None] * E + channels[None, :]
    tl.store(y + place, out, mask=seen[:, None] & within[None, :])


@triton.jit
def span_ends_backward(
    delta, A, C, z, delta_bias, forget, grad_y, ends, L, E,
    N: tl.constexpr, SOFTPLUS: tl.constexpr, GATED: tl.constexpr, FORGETS: tl.constexpr,
    SPAN: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """``ends`` ``[B, spans, N, E]``: gradients of each span's start, through its own outputs alone."""
    block, span, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    channels = block * CHANNELS + tl.arange(0, CHANNELS)
    within = channels < E
    times = span * SPAN + tl.arange(0, SPAN)
    seen = times < L
    delta, z, grad_y = delta + row * L * E, z + row * L * E, grad_y + row * L * E
    C, forget = C + row * L * N, forget + row * L
    bias = tl.load(delta_bias + channels, mask=within, other=0.0)
    so_far = tl.cumsum(load_step_sizes(delta, times, seen, channels, E, bias, SOFTPLUS), 0)
    grad = load_tile(grad_y, times, seen, channels, E)
    if GATED:
        gate = load_tile(z, times, seen, channels, E)
        grad *= gate * sigmoid(gate)
    if FORGETS:
        cut = tl.cumsum(load_forgets(forget, times, seen, FORGETS).to(tl.int32), 0) > 0
    place = (row * tl.num_programs(1) + span) * N * E + channels
    for n in range(N):
        decay = tl.load(A + n * E + channels, mask=within, other=0.0)
        outward = tl.load(C + times * N + n, mask=seen, other=0.0)
        passed = tl.exp(so_far * decay[None, :]) * grad * outward[:, None]
        if FORGETS:
            passed = tl.where(cut[:, None], 0.0, passed)
        tl.store(ends + place + n * E, tl.sum(passed, 0), mask=within)


@triton.jit
def scan_spans_backward(
    u, delta, A, B, C, D, z, delta_bias, forget, starts, grad_y, grad_ends,
    du, ddelta, dA, dB, dC, dD, dz, dbias, L, E,
    N: tl.constexpr, SOFTPLUS: tl.constexpr, GATED: tl.constexpr, FORGETS: tl.constexpr,
    SPAN: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Every gradient of a span, from its start and the gradient of its end ``grad_ends`` ``[B, spans, N, E]``.

    ``dA`` ``[B, spans, N, E]``, ``dD`` and ``dbias`` ``[B, spans, E]`` are each span's share, ``dB`` and ``dC``
    ``[blocks, B, L, N]`` each block of channels'.
    """
    block, span, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    channels = block * CHANNELS + tl.arange(0, CHANNELS)
    inside, within = tl.arange(0, SPAN), channels < E
    times = span * SPAN + inside
    seen = times < L
    preceded, followed = (inside > 0) & (times <= L), (inside < SPAN - 1) & (times + 1 < L)
    first, last = (inside == 0)[:, None], (inside == SPAN - 1)[:, None]
    place = times.to(tl.int64)[:, None] * E + channels[None, :]
    mask = seen[:, None] & within[None, :]
    whole = row * L * E
    shares = ((block * tl.num_programs(2) + row) * L + times) * N
    share = row * tl.num_programs(1) + span
    B, C, forget = B + row * L * N, C + row * L * N, forget + row * L
    bias = tl.load(delta_bias + channels, mask=within, other=0.0)
    skip = tl.load(D + channels, mask=within, other=0.0)
    raw = load_tile(delta + whole, times, seen, channels, E) + bias[None, :]
    dt = tl.where(seen[:, None], step_size(raw, SOFTPLUS), 0.0)
    dt_before = load_step_sizes(delta + whole, times - 1, preceded, channels, E, bias, SOFTPLUS)
    dt_after = load_step_sizes(delta + whole, times + 1, followed, channels, E, bias, SOFTPLUS)
    x = load_tile(u + whole, times, seen, channels, E)
    dtx_before = dt_before * load_tile(u + whole, times - 1, preceded, channels, E)
    grad = load_tile(grad_y + whole, times, seen, channels, E)
    ungated = grad
    if GATED:
        gate = load_tile(z + whole, times, seen, channels, E)
        grad *= gate * sigmoid(gate)
    forgets = load_forgets(forget, times, seen, FORGETS)[:, None]
    forgets_before = load_forgets(forget, times - 1, preceded, FORGETS)[:, None]
    forgets_after = load_forgets(forget, times + 1, followed, FORGETS)[:, None]
    out = skip[None, :] * x
    through_input, through_decay = tl.zeros_like(x), tl.zeros_like(x)
    for n in range(N):
        decay = tl.load(A + n * E + channels, mask=within, other=0.0)
        start = tl.load(starts + (share * N + n) * E + channels, mask=within, other=0.0)
        grad_end = tl.load(grad_ends + (share * N + n) * E + channels, mask=within, other=0.0)
        inward = tl.load(B + times * N + n, mask=seen, other=0.0)
        inward_before = tl.load(B + (times - 1) * N + n, mask=preceded, other=0.0)
        outward = tl.load(C + times * N + n, mask=seen, other=0.0)
        # the state before each step, not after it: h - input would lose a state that is small beside the input
        kept = tl.where(forgets_before, -1.0, tl.exp(dt_before * decay[None, :]))
        _, before = tl.associative_scan(
            (kept, tl.where(first, start[None, :], dtx_before * inward_before[:, None])), 0, then
        )
        kept = tl.where(forgets_after, -1.0, tl.exp(dt_after * decay[None, :]))
        added = grad * outward[:, None] + tl.where(last, grad_end[None, :], 0.0)
        _, grad_state = tl.associative_scan((kept, added), 0, then, reverse=True)
        carried = tl.where(forgets, 0.0, tl.exp(dt * decay[None, :]) * before)
        state = carried + dt * x * inward[:, None]
        out += outward[:, None] * state
        through_input += grad_state * inward[:, None]
        carried *= grad_state
        through_decay += carried * decay[None, :]
        tl.store(dA + (share * N + n) * E + channels, tl.sum(carried * dt, 0), mask=within)
        tl.store(dB + shares + n, tl.sum(grad_state * dt * x, 1), mask=seen)
        tl.store(dC + shares + n, tl.sum(grad * state, 1), mask=seen)
    tl.store(du + whole + place, grad * skip[None, :] + dt * through_input, mask=mask)
    grad_dt = x * through_input + through_decay
    if SOFTPLUS:
        grad_dt *= sigmoid(raw)
    grad_dt = tl.where(seen[:, None], grad_dt, 0.0)
    tl.store(ddelta + whole + place, grad_dt, mask=mask)
    tl.store(dbias + share * E + channels, tl.sum(grad_dt, 0), mask=within)
    tl.store(dD + share * E + channels, tl.sum(grad * x, 0), mask=within)
    if GATED:
        s = sigmoid(gate)
        tl.store(dz + whole + place, ungated * out * s * (1.0 + gate * (1.0 - s)), mask=mask)


@triton.jit
def step_state(
    u, delta, A, B, C, D, z, delta_bias, state, after, y, u_row, delta_row, B_row, C_row, z_row, E,
    N: tl.constexpr, SOFTPLUS: tl.constexpr, GATED: tl.constexpr, STATES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One step of one row: ``after`` ``[B, N, E]``, ``y`` ``[B, E]``. Rows of the inputs lie ``*_row`` apart."""
    channels = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.program_id(1).to(tl.int64)
    n = tl.arange(0, STATES)
    within, real = channels < E, n < N
    mask = real[:, None] & within[None, :]
    tile = n[:, None] * E + channels[None, :]
    bias = tl.load(delta_bias + channels, mask=within, other=0.0)
    dt = step_size(tl.load(delta + row * delta_row + channels, mask=within, other=0.0) + bias, SOFTPLUS)
    x = tl.load(u + row * u_row + channels, mask=within, other=0.0)
    inward = tl.load(B + row * B_row + n, mask=real, other=0.0)
    outward = tl.load(C + row * C_row + n, mask=real, other=0.0)
    kept = tl.exp(tl.load(A + tile, mask=mask, other=0.0) * dt[None, :])
    h = tl.load(state + row * N * E + tile, mask=mask, other=0.0)
    h = kept * h + inward[:, None] * (dt * x)[None, :]
    tl.store(after + row * N * E + tile, h, mask=mask)
    out = tl.sum(outward[:, None] * h, 0) + tl.load(D + channels, mask=within, other=0.0) * x
    if GATED:
        gate = tl.load(z + row * z_row + channels, mask=within, other=0.0)
        out *= gate * sigmoid(gate)
    tl.store(y + row * E + channels, out, mask=within)

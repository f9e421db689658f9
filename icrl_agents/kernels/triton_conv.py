# mypy: ignore-errors
# Triton compiles these functions; mypy knows neither its tensors nor its pointers.
"""The causal convolution's GPU programs behind :mod:`icrl_agents.kernels.triton`.

Letters as in :mod:`icrl_agents.kernels.reference`. A program has ``SPAN`` steps of ``CHANNELS`` channels of one
sequence. Pointers lead to contiguous float32; ``weight`` is [K, E] here.
"""

import triton
import triton.language as tl

from icrl_agents.kernels.triton_scan import load_forgets, sigmoid


@triton.jit
def load_inputs(x, taps, times, seen, channels, E, K: tl.constexpr):
    """Inputs at ``times``; those before the sequence are its taps ``[K - 1, E]``."""
    seen, present = seen[:, None] & (channels < E)[None, :], (times >= 0)[:, None]
    place = times.to(tl.int64)[:, None] * E + channels[None, :]
    now = tl.load(x + place, mask=seen & present, other=0.0)
    before = tl.load(taps + place + (K - 1) * E, mask=seen & (times[:, None] < 0), other=0.0)
    return tl.where(present, now, before)


@triton.jit
def convolve(x, weight, bias, taps, forget, times, seen, channels, E, K: tl.constexpr, FORGETS: tl.constexpr):
    """The convolution at ``times`` before its silu ``[SPAN, CHANNELS]``."""
    within = channels < E
    out = tl.load(bias + channels, mask=within, other=0.0)[None, :]
    out += tl.load(weight + (K - 1) * E + channels, mask=within, other=0.0)[None, :] * load_inputs(
        x, taps, times, seen, channels, E, K
    )
    sees = seen
    for back in tl.static_range(1, K):
        sees = sees & ~load_forgets(forget, times - back + 1, sees & (times - back + 1 >= 0), FORGETS)
        earlier = load_inputs(x, taps, times - back, sees, channels, E, K)
        out += tl.load(weight + (K - 1 - back) * E + channels, mask=within, other=0.0)[None, :] * earlier
    return out


@triton.jit
def conv_spans(
    x, weight, bias, taps, forget, y, L, E,
    K: tl.constexpr, FORGETS: tl.constexpr, SPAN: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Outputs ``y`` ``[B, L, E]``, after silu."""
    channels = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    times = tl.program_id(1) * SPAN + tl.arange(0, SPAN)
    row = tl.program_id(2).to(tl.int64)
    seen = times < L
    out = convolve(
        x + row * L * E, weight, bias, taps + row * (K - 1) * E, forget + row * L, times, seen, channels, E, K, FORGETS
    )
    place = row * L * E + times.to(tl.int64)[:, None] * E + channels[None, :]
    tl.store(y + place, out * sigmoid(out), mask=seen[:, None] & (channels < E)[None, :])


@triton.jit
def conv_spans_backward(
    x, weight, bias, taps, forget, grad_y, grad_out, dweight, dbias, L, E,
    K: tl.constexpr, FORGETS: tl.constexpr, SPAN: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """``grad_out`` ``[B, L, E]``, before the silu; each span's share ``dweight`` ``[B, spans, K, E]`` and ``dbias``."""
    channels = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    span, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    times = span * SPAN + tl.arange(0, SPAN)
    seen, within = times < L, channels < E
    x, taps, forget = x + row * L * E, taps + row * (K - 1) * E, forget + row * L
    out = convolve(x, weight, bias, taps, forget, times, seen, channels, E, K, FORGETS)
    place = row * L * E + times.to(tl.int64)[:, None] * E + channels[None, :]
    mask = seen[:, None] & within[None, :]
    s = sigmoid(out)
    grad = tl.load(grad_y + place, mask=mask, other=0.0) * s * (1.0 + out * (1.0 - s))
    tl.store(grad_out + place, grad, mask=mask)
    share = row * tl.num_programs(1) + span
    tl.store(dbias + share * E + channels, tl.sum(grad, 0), mask=within)
    dweight += share * K * E + channels
    tl.store(dweight + (K - 1) * E, tl.sum(grad * load_inputs(x, taps, times, seen, channels, E, K), 0), mask=within)
    sees = seen
    for back in tl.static_range(1, K):
        sees = sees & ~load_forgets(forget, times - back + 1, sees & (times - back + 1 >= 0), FORGETS)
        earlier = load_inputs(x, taps, times - back, sees, channels, E, K)
        tl.store(dweight + (K - 1 - back) * E, tl.sum(grad * earlier, 0), mask=within)


@triton.jit
def conv_inputs_backward(
    grad_out, weight, forget, dx, dtaps, L, E,
    K: tl.constexpr, FORGETS: tl.constexpr, SPAN: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """``dx`` ``[B, L, E]`` and ``dtaps`` ``[B, K - 1, E]``: each input collects from the K steps that saw it."""
    channels = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    times = tl.program_id(1) * SPAN + tl.arange(0, SPAN) - (K - 1)
    row = tl.program_id(2).to(tl.int64)
    within, present = channels < E, times >= 0
    forget += row * L
    total = tl.zeros([SPAN, CHANNELS], tl.float32)
    seen = times < L
    for ahead in tl.static_range(K):
        later = times + ahead
        seen = seen & (later < L)
        if ahead > 0:
            seen = seen & ~load_forgets(forget, later, seen & (later >= 0), FORGETS)
        kernel = tl.load(weight + (K - 1 - ahead) * E + channels, mask=within, other=0.0)
        place = row * L * E + later.to(tl.int64)[:, None] * E + channels[None, :]
        mask = (seen & (later >= 0))[:, None] & within[None, :]
        total += kernel[None, :] * tl.load(grad_out + place, mask=mask, other=0.0)
    place = times.to(tl.int64)[:, None] * E + channels[None, :]
    tl.store(dx + row * L * E + place, total, mask=(present & (times < L))[:, None] & within[None, :])
    place += (row + 1) * (K - 1) * E  # times begin at -(K - 1)
    tl.store(dtaps + place, total, mask=(times < 0)[:, None] & within[None, :])


@triton.jit
def step_taps(
    x, weight, bias, taps, after, y, x_row, E, K: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """One step of one row: ``after`` ``[B, K - 1, E]`` and ``y`` ``[B, E]``. Rows of ``x`` lie ``x_row`` apart."""
    channels = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.program_id(1).to(tl.int64)
    within = channels < E
    place = row * (K - 1) * E + channels
    out = tl.load(bias + channels, mask=within, other=0.0)
    for k in tl.static_range(K):
        if k < K - 1:
            value = tl.load(taps + place + k * E, mask=within, other=0.0)
        else:
            value = tl.load(x + row * x_row + channels, mask=within, other=0.0)
        if k > 0:
            tl.store(after + place + (k - 1) * E, value, mask=within)
        out += value * tl.load(weight + k * E + channels, mask=within, other=0.0)
    tl.store(y + row * E + channels, out * sigmoid(out), mask=within)

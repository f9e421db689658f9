# mypy: ignore-errors
# numba types and compiles these functions; mypy knows neither its intrinsics nor NumPy scalars as floats.
"""The compiled loops of the causal convolution behind :mod:`icrl_agents.kernels.cpu`.

Letters as in :mod:`icrl_agents.kernels.reference`. numba's cache looks for changes only in the file of the function
called: after an edit of what this file imports, remove ``__pycache__``.
"""

import numpy as np

from icrl_agents.kernels.cpu_loops import ONE, f32, lanes_loop, loop, sigmoid
from icrl_agents.kernels.cpu_team import for_team, on_team


@lanes_loop
def conv_step(first, last, x, kernel, bias, before, after, y):
    """Rows ``first`` to ``last`` of one step of the convolution.

    Args:
        first, last: range of rows.
        x, y: ``[B, E]``.
        kernel: ``[K, E]``.
        bias: ``[E]``.
        before, after: taps ``[B, K - 1, E]``.
    """
    taps, channels = before.shape[1], x.shape[1]
    for row in range(first, last):
        for e in range(channels):
            y[row, e] = bias[e] + kernel[taps, e] * x[row, e]
        for k in range(taps):
            for e in range(channels):
                y[row, e] += kernel[k, e] * before[row, k, e]
        for k in range(taps - 1):
            for e in range(channels):
                after[row, k, e] = before[row, k + 1, e]
        if taps:
            for e in range(channels):
                after[row, taps - 1, e] = x[row, e]
        for e in range(channels):
            y[row, e] *= sigmoid(y[row, e])


@loop
def conv_forward(first, last, x, kernel, bias, taps, forget, y):
    """Sequences ``first`` to ``last`` of the convolution.

    Args:
        first, last: range of sequences.
        x, y: ``[B, L, E]``.
        kernel: ``[K, E]``.
        bias: ``[E]``.
        taps: ``[B, K - 1, E]``.
        forget: ``[B, L]``.
    """
    length, channels, width = x.shape[1], x.shape[2], kernel.shape[0]
    for b in range(first, last):
        reach = width - 1  # earlier inputs that are seen
        for t in range(length):
            reach = 0 if forget[b, t] else min(reach + 1, width - 1)
            convolve(b, t, reach, x, kernel, bias, taps, y[b, t])
            out = y[b, t]
            for e in range(channels):
                out[e] *= sigmoid(out[e])


@loop
def convolve(b, t, reach, x, kernel, bias, taps, out):
    """One step of the convolution, before silu."""
    now, present = x[b, t], kernel[kernel.shape[0] - 1]
    for e in range(out.shape[0]):
        out[e] = bias[e] + present[e] * now[e]
    for back in range(1, reach + 1):
        row = x[b, t - back] if t >= back else taps[b, taps.shape[1] + t - back]
        tap = kernel[kernel.shape[0] - 1 - back]
        for e in range(out.shape[0]):
            out[e] += tap[e] * row[e]


@loop
def conv_backward(first, last, x, kernel, bias, taps, forget, dy, dx, dkernel, dbias, dtaps):
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
            reach = 0 if forget[b, t] else min(reach + 1, width - 1)
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


@for_team(conv_step)
@loop
def conv_step_on_team(threads, pieces, grain, *arguments):
    """:func:`conv_step` on PyTorch's threads."""
    return on_team(conv_step, threads, pieces, grain, arguments)


@for_team(conv_forward)
@loop
def conv_forward_on_team(threads, pieces, grain, *arguments):
    """:func:`conv_forward` on PyTorch's threads."""
    return on_team(conv_forward, threads, pieces, grain, arguments)


@for_team(conv_backward)
@loop
def conv_backward_on_team(threads, pieces, grain, *arguments):
    """:func:`conv_backward` on PyTorch's threads."""
    return on_team(conv_backward, threads, pieces, grain, arguments)

# mypy: ignore-errors
# numba types and compiles these functions; mypy knows neither its intrinsics nor NumPy scalars as floats.
"""Compiled loops behind :mod:`icrl_agents.training.sources.cpu_mlp`: many small networks, forward and backward.

A piece is one network on up to ``CHUNK`` samples, all its layers in one go, so that what one layer leaves is still in
the core's own cache when the next one reads it. Hidden units lie in *panels* ``[n, LANES]``, a chunk's n samples of
``LANES`` units; a layer's panels follow each other. Weights are packed block by block as they are needed: a block of
``LANES`` times ``LANES`` stays in the first-level cache for all samples of the chunk.

numba's cache looks for changes only in the file of the function called: after an edit of what this file imports from
:mod:`icrl_agents.kernels`, remove ``__pycache__``.

    I inputs, H hidden units of a layer, O outputs, n samples of a chunk, L hidden layers
"""

import numpy as np
from llvmlite import binding

from icrl_agents.kernels.cpu_loops import LANES, ONE, ZERO, add_any_order, exp2, f32, lanes_loop, loop
from icrl_agents.kernels.cpu_product import VECTOR, product, transpose_tile
from icrl_agents.kernels.cpu_team import for_team, on_team

CHUNK = 256
"""Samples of one piece."""

WIDE = binding.get_host_cpu_features().get("avx512f", False)
TILE, NARROW_TILE = 4, 8 if WIDE else 4  # rows at once: as many sums as registers hold and latency asks for
WIDTH = LANES if WIDE else VECTOR  # lanes at once
TWO_LOG2_E = f32(2.885390081777927)
T3, T5, T7, T9 = (f32(x) for x in (-1 / 3, 2 / 15, -17 / 315, 62 / 2835))  # tanh's power series
SERIES_BELOW = f32(0.3)
HIGHEST = f32(60.0)

_tile, _row = product(TILE, WIDTH), product(1, WIDTH)
_tile_adds, _row_adds = product(TILE, WIDTH, adds=True), product(1, WIDTH, adds=True)
_narrow_tile, _narrow_row = (product(rows, VECTOR, VECTOR, adds=True) for rows in (NARROW_TILE, 1))


@loop
def multiply(x, at, stride, step, panel, start, count, rows, out, to, adds):
    """``rows`` rows of ``count`` entries of x times the panel: ``[rows, LANES]``, added to what is there or not."""
    for low in range(0, LANES, WIDTH):
        done = 0
        while done + TILE <= rows:
            if adds:
                _tile_adds(x, at + done * stride, stride, step, panel, start + low, count, out, to + done * LANES + low)
            else:
                _tile(x, at + done * stride, stride, step, panel, start + low, count, out, to + done * LANES + low)
            done += TILE
        while done < rows:
            if adds:
                _row_adds(x, at + done * stride, stride, step, panel, start + low, count, out, to + done * LANES + low)
            else:
                _row(x, at + done * stride, stride, step, panel, start + low, count, out, to + done * LANES + low)
            done += 1


@loop
def multiply_narrow(x, at, stride, panel, start, count, rows, out):
    """``out [rows, VECTOR]`` += rows of x times a panel of ``VECTOR`` lanes."""
    done = 0
    while done + NARROW_TILE <= rows:
        _narrow_tile(x, at + done * stride, stride, 1, panel, start, count, out, done * VECTOR)
        done += NARROW_TILE
    while done < rows:
        _narrow_row(x, at + done * stride, stride, 1, panel, start, count, out, done * VECTOR)
        done += 1


@lanes_loop
def pack(weight, low, count, column, block):
    """Rows ``low`` to ``low + count`` of ``LANES`` columns of a matrix."""
    start = np.uintp(column)
    for k in range(count):
        to = np.uintp(k * LANES)
        for e in range(LANES):
            block[to + np.uintp(e)] = weight[low + k, start + np.uintp(e)]


@lanes_loop
def pack_transposed(weight, low, column, count, block):
    """``count`` columns of ``LANES`` rows of a matrix, each column's entries after each other."""
    width, done = weight.shape[1], 0
    while done + VECTOR <= count:
        for e in range(0, LANES, VECTOR):
            transpose_tile(weight, (low + e) * width + column + done, width, block, done * LANES + e, LANES)
        done += VECTOR
    for e in range(LANES):
        for k in range(done, count):
            block[np.uintp(k * LANES + e)] = weight[np.uintp(low + e), np.uintp(column + k)]


@lanes_loop
def activate(hidden, at, samples, bias, column, squashes):
    """Bias and activation of a panel, in place: tanh, or ReLU."""
    first = np.uintp(column)
    for n in range(samples):
        row = np.uintp(at + n * LANES)
        if squashes:
            for e in range(LANES):
                v = hidden[row + np.uintp(e)] + bias[first + np.uintp(e)]
                q = v * v
                small = v + v * q * (T3 + q * (T5 + q * (T7 + q * T9)))
                size = abs(v) * TWO_LOG2_E
                power = exp2(-(HIGHEST if size > HIGHEST else size))
                large = (ONE - power) / (ONE + power)
                large = large if v > ZERO else -large
                hidden[row + np.uintp(e)] = small if abs(v) < SERIES_BELOW else large
        else:
            for e in range(LANES):
                v = hidden[row + np.uintp(e)] + bias[first + np.uintp(e)]
                hidden[row + np.uintp(e)] = ZERO if v < ZERO else v  # in this order NaN passes


@lanes_loop
def differentiate(gradient, at, hidden, place, samples, squashes):
    """Gradient by a panel's outputs to that before its activation, in place."""
    for n in range(samples):
        row, own = np.uintp(at + n * LANES), np.uintp(place + n * LANES)
        if squashes:
            for e in range(LANES):
                h = hidden[own + np.uintp(e)]
                gradient[row + np.uintp(e)] *= ONE - h * h
        else:
            for e in range(LANES):
                h = hidden[own + np.uintp(e)]
                gradient[row + np.uintp(e)] = gradient[row + np.uintp(e)] if h > ZERO else ZERO


@lanes_loop
def sum_rows(panel, at, samples, out, column):
    """Sum over a panel's samples of each of its lanes."""
    first = np.uintp(column)
    for e in range(LANES):
        out[first + np.uintp(e)] = ZERO
    for n in range(samples):
        row = np.uintp(at + n * LANES)
        for e in range(LANES):
            out[first + np.uintp(e)] += panel[row + np.uintp(e)]


@lanes_loop
def unpack(block, rows, out, low, column):
    """``rows`` rows of a block into ``LANES`` columns of a matrix."""
    start = np.uintp(column)
    for k in range(rows):
        row = np.uintp(k * LANES)
        for e in range(LANES):
            out[low + k, start + np.uintp(e)] = block[row + np.uintp(e)]


@loop
def forward(first, last, squashes, x, weights, biases, hidden, saves, out):
    """Outputs ``[K, N, O]`` of pieces ``first`` to ``last``.

    Args:
        first, last: pieces: a network's chunks follow each other.
        squashes: whether the activation is tanh, not ReLU.
        x: inputs ``[K, N, I]``.
        weights: L + 1 of ``[K, inputs, outputs]``.
        biases: L + 1 of ``[K, 1, outputs]``.
        hidden: what hidden layers gave ``[pieces, CHUNK times all hidden units]``, if it is to be saved.
        saves: whether it is.
        out: ``[K, N, O]``.
    """
    samples, inputs = x.shape[1], x.shape[2]
    layers, outputs, chunks = len(weights) - 1, out.shape[2], -(-samples // CHUNK)
    kept = hidden if saves else np.empty((1, hidden.shape[1]), f32)
    block = np.empty(max(inputs, LANES) * LANES, f32)
    narrow = np.empty(weights[layers].shape[1] * VECTOR, f32)
    few = np.empty(CHUNK * VECTOR, f32)
    for piece in range(first, last):
        member, low = piece // chunks, piece % chunks * CHUNK
        n = min(CHUNK, samples - low)
        h = kept[piece if saves else 0]
        below, at = 0, 0
        for layer in range(layers):
            weight, bias = weights[layer][member], biases[layer][member, 0]
            for column in range(0, weight.shape[1], LANES):
                to = at + column * n
                if layer == 0:
                    pack(weight, 0, inputs, column, block)
                    multiply(x, (member * samples + low) * inputs, inputs, 1, block, 0, inputs, n, h, to, False)
                else:
                    for row in range(0, weight.shape[0], LANES):
                        pack(weight, row, LANES, column, block)
                        multiply(h, below + row * n, LANES, 1, block, 0, LANES, n, h, to, row > 0)
                activate(h, to, n, bias, column, squashes)
            below, at = at, at + weight.shape[1] * n
        weight, bias = weights[layers][member], biases[layers][member, 0]
        for column in range(0, outputs, VECTOR):
            here = min(VECTOR, outputs - column)
            pack_narrow(weight, column, here, narrow)
            few[: n * VECTOR] = ZERO
            for row in range(0, weight.shape[0], LANES):
                multiply_narrow(h, below + row * n, LANES, narrow, row * VECTOR, LANES, n, few)
            for i in range(n):
                for e in range(here):
                    out[member, low + i, column + e] = few[i * VECTOR + e] + bias[column + e]


@loop
def pack_narrow(weight, column, count, narrow):
    """``count`` columns of a whole matrix, filled up to ``VECTOR``."""
    for k in range(weight.shape[0]):
        for e in range(VECTOR):
            narrow[k * VECTOR + e] = weight[k, column + e] if e < count else ZERO


@loop
def pack_narrow_transposed(weight, row, count, narrow):
    """``count`` rows of a matrix, filled up to ``VECTOR``, as columns."""
    for k in range(weight.shape[1]):
        for e in range(VECTOR):
            narrow[k * VECTOR + e] = weight[row + e, k] if e < count else ZERO


@loop
def backward(
    first, last, squashes, x, weights, hidden, grad_out, wants_weights, wants_x, grad_weights, grad_biases, grad_x
):
    """Gradients, from pieces ``first`` to ``last``.

    Args:
        first, last, squashes, x, weights: as of :func:`forward`.
        hidden: as :func:`forward` saved it.
        grad_out: ``[K, N, O]``.
        wants_weights, wants_x: which gradients to make.
        grad_weights: L + 1 of ``[pieces, inputs, outputs]``, each piece's share.
        grad_biases: L + 1 of ``[pieces, outputs]``.
        grad_x: ``[K, N, I]``.
    """
    samples, inputs = x.shape[1], x.shape[2]
    layers, outputs, chunks = len(weights) - 1, grad_out.shape[2], -(-samples // CHUNK)
    block = np.empty(max(inputs, outputs, LANES) * LANES, f32)
    widest = 0
    for weight in weights[1:]:
        widest = max(widest, weight.shape[1])
    gradient = np.empty((2, widest * CHUNK), f32)
    narrow, few = np.empty(weights[0].shape[2] * VECTOR, f32), np.empty(CHUNK * VECTOR, f32)
    for piece in range(first, last):
        member, low = piece // chunks, piece % chunks * CHUNK
        n = min(CHUNK, samples - low)
        h = hidden[piece]
        at = 0
        for layer in range(layers - 1):
            at += weights[layer].shape[2] * n
        here, there = 0, 1
        weight = weights[layers][member]
        from_out, from_x = (member * samples + low) * outputs, (member * samples + low) * inputs
        if wants_weights:
            for e in range(outputs):
                total = ZERO
                for i in range(n):
                    total = add_any_order(total, grad_out[member, low + i, e])
                grad_biases[layers][piece, e] = total
        for row in range(0, weight.shape[0], LANES):
            if wants_weights:
                multiply(grad_out, from_out, 1, outputs, h, at + row * n, n, outputs, block, 0, False)
                for e in range(outputs):
                    for lane in range(LANES):
                        grad_weights[layers][piece, row + lane, e] = block[e * LANES + lane]
            pack_transposed(weight, row, 0, outputs, block)
            multiply(grad_out, from_out, outputs, 1, block, 0, outputs, n, gradient[here], row * n, False)
            differentiate(gradient[here], row * n, h, at + row * n, n, squashes)
        for layer in range(layers - 1, -1, -1):
            weight = weights[layer][member]
            given = gradient[here]
            below = at - weights[layer - 1].shape[2] * n if layer else 0
            if wants_weights:
                grad_weight, grad_bias = grad_weights[layer][piece], grad_biases[layer][piece]
                rows = LANES if layer else inputs
                for column in range(0, weight.shape[1], LANES):
                    sum_rows(given, column * n, n, grad_bias, column)
                    for row in range(0, weight.shape[0], rows):
                        for i in range(0, n, LANES):
                            count, panel, adds = min(LANES, n - i), column * n + i * LANES, i > 0
                            if layer:
                                at_h = below + row * n + i * LANES
                                multiply(h, at_h, 1, LANES, given, panel, count, rows, block, 0, adds)
                            else:
                                at_x = from_x + i * inputs
                                multiply(x, at_x, 1, inputs, given, panel, count, rows, block, 0, adds)
                        unpack(block, rows, grad_weight, row, column)
            if layer:
                for row in range(0, weight.shape[0], LANES):
                    for column in range(0, weight.shape[1], LANES):
                        pack_transposed(weight, row, column, LANES, block)
                        multiply(given, column * n, LANES, 1, block, 0, LANES, n, gradient[there], row * n, column > 0)
                    differentiate(gradient[there], row * n, h, below + row * n, n, squashes)
                here, there = there, here
            elif wants_x:
                for row in range(0, inputs, VECTOR):
                    some = min(VECTOR, inputs - row)
                    pack_narrow_transposed(weight, row, some, narrow)
                    few[: n * VECTOR] = ZERO
                    for column in range(0, weight.shape[1], LANES):
                        multiply_narrow(given, column * n, LANES, narrow, column * VECTOR, LANES, n, few)
                    for i in range(n):
                        for e in range(some):
                            grad_x[member, low + i, row + e] = few[i * VECTOR + e]
            at = below


@lanes_loop
def add_scaled(row, scale, total):
    """total += scale times row."""
    for e in range(total.size):
        total[e] += scale * row[e]


@loop
def forward_each(first, last, squashes, which, x, weights, biases, out):
    """Rows ``first`` to ``last``, each through the network that it names; weights are read once a row.

    Args:
        first, last: rows.
        squashes, weights, biases: as of :func:`forward`.
        which: network of each row ``[R]``.
        x: inputs ``[R, I]``.
        out: ``[R, O]``.
    """
    widest = 0
    for weight in weights:
        widest = max(widest, weight.shape[2])
    room = np.empty((2, widest), f32)
    for row in range(first, last):
        member, given = which[row], x[row]
        for layer in range(len(weights)):
            weight = weights[layer][member]
            total = room[layer % 2, : weight.shape[1]]
            total[:] = biases[layer][member, 0]
            for i in range(weight.shape[0]):
                add_scaled(weight[i], given[i], total)
            if layer < len(weights) - 1:
                for e in range(total.size):
                    total[e] = np.tanh(total[e]) if squashes else max(total[e], ZERO)
            given = total
        out[row] = given


@for_team(forward_each)
@loop
def forward_each_on_team(threads, pieces, grain, *arguments):
    """:func:`forward_each` on PyTorch's threads."""
    return on_team(forward_each, threads, pieces, grain, arguments)


@for_team(forward)
@loop
def forward_on_team(threads, pieces, grain, *arguments):
    """:func:`forward` on PyTorch's threads."""
    return on_team(forward, threads, pieces, grain, arguments)


@for_team(backward)
@loop
def backward_on_team(threads, pieces, grain, *arguments):
    """:func:`backward` on PyTorch's threads."""
    return on_team(backward, threads, pieces, grain, arguments)

# mypy: ignore-errors
# numba types and compiles these functions; mypy knows neither its intrinsics nor NumPy scalars as floats.
"""The product of a few rows with a panel of weights, sums in registers: what all fast products here are made of.

Plain loops keep the sums in memory.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from icrl_agents.kernels.cpu_loops import LANES

VECTOR = 16  # floats that one LLVM value holds; on narrower machines it becomes several registers

_float, _int32, _int64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_floats, _int32s = ir.VectorType(_float, VECTOR), ir.VectorType(_int32, VECTOR)
_STORED = {  # how a weight is stored: LLVM's type and bytes
    types.float32: (_float, 4),
    types.uint16: (ir.IntType(16), 2),  # bfloat16: the upper half of a float32
    types.int8: (ir.IntType(8), 1),
}


def _widen(builder: Any, weights: Any, kind: Any) -> Any:
    """Stored weights as floats."""
    if kind == types.uint16:
        upper = builder.shl(builder.zext(weights, _int32s), ir.Constant(_int32s, [16] * VECTOR))
        return builder.bitcast(upper, _floats)
    if kind == types.int8:
        return builder.sitofp(builder.sext(weights, _int32s), _floats)
    return weights


def product(rows: int, width: int = LANES, pitch: int = LANES, adds: bool = False) -> Any:
    """The intrinsic that multiplies ``rows`` rows with ``width`` lanes of a panel.

    It is ``(x, at, stride, step, weights, start, count, out, to)`` and does ``out[to + r pitch + e] = sum over
    k < count of x[at + r stride + k step] weights[start + k pitch + e]``; flat places in contiguous arrays; count at
    least 1.

    Args:
        rows: r; rows times lanes should fit the registers.
        width: lanes e, a multiple of ``VECTOR``.
        pitch: floats from one row of the panel, and of ``out``, to the next.
        adds: whether the sums begin with what ``out`` holds.
    """

    @intrinsic
    def multiply_rows(
        typing_context: Any, x: Any, at: Any, stride: Any, step: Any,
        weights: Any, start: Any, count: Any, out: Any, to: Any,
    ) -> Any:  # fmt: skip
        stored, size = _STORED[weights.dtype]
        vectors = range(width // VECTOR)

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            def place(i: int, index: Any) -> Any:
                return builder.gep(
                    context.make_array(signature.args[i])(context, builder, arguments[i]).data, [arguments[index]]
                )

            inputs, panel, outputs = place(0, 1), place(4, 5), place(7, 8)
            targets = [
                builder.bitcast(
                    builder.gep(outputs, [ir.Constant(_int64, r * pitch + v * VECTOR)]), _floats.as_pointer()
                )
                for r in range(rows)
                for v in vectors
            ]
            begin = [builder.load(t, align=4) if adds else ir.Constant(_floats, [0.0] * VECTOR) for t in targets]
            before, body = builder.block, builder.append_basic_block("product")
            after = builder.append_basic_block("product.end")
            builder.branch(body)
            builder.position_at_end(body)
            k = builder.phi(_int64)
            k.add_incoming(ir.Constant(_int64, 0), before)
            sums = [[builder.phi(_floats) for _ in vectors] for _ in range(rows)]
            first = builder.mul(k, ir.Constant(_int64, pitch))
            loaded = []
            for v in vectors:
                source = builder.gep(panel, [builder.add(first, ir.Constant(_int64, v * VECTOR))])
                word = builder.load(builder.bitcast(source, ir.VectorType(stored, VECTOR).as_pointer()), align=size)
                loaded.append(_widen(builder, word, weights.dtype))
            added, along = [], builder.mul(k, arguments[3])
            for r in range(rows):
                offset = builder.mul(arguments[2], ir.Constant(_int64, r))
                value = builder.load(builder.gep(inputs, [builder.add(along, offset)]))
                one = builder.insert_element(ir.Constant(_floats, ir.Undefined), value, ir.Constant(_int32, 0))
                everywhere = ir.Constant(_int32s, [0] * VECTOR)
                value = builder.shuffle_vector(one, ir.Constant(_floats, ir.Undefined), everywhere)
                for v in vectors:
                    sums[r][v].add_incoming(begin[len(added)], before)
                    term = builder.fmul(value, loaded[v], flags=("contract",))
                    added.append(builder.fadd(sums[r][v], term, flags=("contract",)))
                    sums[r][v].add_incoming(added[-1], body)
            following = builder.add(k, ir.Constant(_int64, 1))
            k.add_incoming(following, body)
            builder.cbranch(builder.icmp_signed("<", following, arguments[6]), body, after)
            builder.position_at_end(after)
            for value, target in zip(added, targets, strict=True):
                builder.store(value, target, align=4)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(x, integer, integer, integer, weights, integer, integer, out, integer), emit

    return multiply_rows


@intrinsic
def transpose_tile(typing_context: Any, source: Any, at: Any, stride: Any, out: Any, to: Any, pitch: Any) -> Any:
    """out[to + j pitch + i] = source[at + i stride + j] for i and j below ``VECTOR``; flat places in contiguous arrays.

    The halves of ever closer pairs of rows are exchanged: log2(VECTOR) rounds of shuffles, all in registers.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def row(i: int, begin: int, step: Any, r: int) -> Any:
            data = context.make_array(signature.args[i])(context, builder, arguments[i]).data
            place = builder.add(arguments[begin], builder.mul(step, ir.Constant(_int64, r)))
            return builder.bitcast(builder.gep(data, [place]), _floats.as_pointer())

        rows = [builder.load(row(0, 1, arguments[2], r), align=4) for r in range(VECTOR)]
        distance = VECTOR // 2
        while distance:
            first = [c if not c & distance else VECTOR + c - distance for c in range(VECTOR)]
            second = [c + distance if not c & distance else VECTOR + c for c in range(VECTOR)]
            for r in range(VECTOR):
                if not r & distance:
                    pair = rows[r], rows[r + distance]
                    for kept, mask in ((r, first), (r + distance, second)):
                        rows[kept] = builder.shuffle_vector(*pair, ir.Constant(_int32s, mask))
            distance //= 2
        for r in range(VECTOR):
            builder.store(rows[r], row(3, 4, arguments[5], r), align=4)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(source, integer, integer, out, integer, integer), emit

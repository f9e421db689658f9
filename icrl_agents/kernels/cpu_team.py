# mypy: ignore-errors
# numba types and compiles these functions; mypy knows neither its intrinsics nor NumPy scalars as floats.
"""Compiled loops on the very threads that PyTorch's own operations run on.

PyTorch's OpenMP threads go on spinning for a while after each operation. Threads of another pool would have to fight
them for the cores; these are at hand within a microsecond. So loops go to the OpenMP library that PyTorch has loaded:
``GOMP_parallel`` is the call that compilers emit for ``#pragma omp parallel``.
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from icrl_agents.kernels.threads import goes_on_team

_byte, _int32, _int64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def _find() -> int | None:
    """Address of ``GOMP_parallel`` in a library that is loaded already, or None."""
    if not hasattr(os, "RTLD_NOLOAD"):
        return None
    beside = sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*"))
    for name in (*map(str, beside), "libgomp.so.1"):
        try:
            library = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


_address = _find()
if _address is not None:
    binding.add_symbol("GOMP_parallel", _address)


def for_team(loop: Callable[..., None]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorator of a function that calls ``loop`` :func:`on_team`: used where there is a team.

    Each loop has one written out beside it, because numba caches no function that was made by another.
    """
    return goes_on_team(loop) if _address is not None else lambda on_team: on_team


@intrinsic
def on_team(typing_context: Any, loop: Any, threads: Any, pieces: Any, grain: Any, arguments: Any) -> Any:
    """``loop(first, last, *arguments)`` over all of ``range(pieces)``, ``grain`` at a time for whoever is free.

    Returns how many threads ended with an error, e.g. for want of memory.
    """
    called = (types.int64, types.int64, *arguments)
    loop.get_call_type(typing_context, called, {})
    compiled = loop.dispatcher.overloads[called]

    def emit(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        _, workers, count, step, values = given
        context.active_code_library.add_linking_library(compiled.library)
        values = cgutils.unpack_tuple(builder, values)
        # what the threads share: the next piece, errors, pieces, grain, arguments
        begin = [ir.Constant(_int64, 0), ir.Constant(_int64, 0), count, step, *values]
        shared = cgutils.alloca_once_value(builder, cgutils.pack_struct(builder, begin))
        body = ir.Function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [_byte.as_pointer()]),
            builder.module.get_unique_name("on_team"),
        )
        body.linkage = "internal"
        _emit_thread(context, body, shared.type)
        parallel = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [body.type, _byte.as_pointer(), _int32, _int32]),
            "GOMP_parallel",
        )
        number = builder.trunc(workers, _int32)
        builder.call(parallel, [body, builder.bitcast(shared, _byte.as_pointer()), number, ir.Constant(_int32, 0)])
        return builder.load(cgutils.gep_inbounds(builder, shared, 0, 1))

    def _emit_thread(context: Any, body: Any, shared_type: Any) -> None:
        """Take pieces until none is left."""
        builder = ir.IRBuilder(body.append_basic_block("entry"))
        shared = builder.bitcast(body.args[0], shared_type)
        place = [cgutils.gep_inbounds(builder, shared, 0, i) for i in range(4 + len(arguments))]
        count, step, *values = (builder.load(p) for p in place[2:])
        take, work, leave = (body.append_basic_block(name) for name in ("take", "work", "leave"))
        builder.branch(take)
        builder.position_at_end(take)
        first = builder.atomic_rmw("add", place[0], step, "acq_rel")
        builder.cbranch(builder.icmp_signed("<", first, count), work, leave)
        builder.position_at_end(work)
        after = builder.add(first, step)
        last = builder.select(builder.icmp_signed("<", after, count), after, count)
        function = context.declare_function(builder.module, compiled.fndesc)
        status, _ = context.call_conv.call_function(
            builder, function, compiled.fndesc.restype, compiled.fndesc.argtypes, [first, last, *values]
        )
        failed = builder.zext(status.is_error, _int64)
        builder.atomic_rmw("add", place[1], failed, "acq_rel")
        builder.branch(take)
        builder.position_at_end(leave)
        builder.ret_void()

    return types.int64(loop, types.int64, types.int64, types.int64, arguments), emit

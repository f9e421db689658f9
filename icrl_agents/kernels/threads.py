"""Pieces of work on as many threads as PyTorch uses."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from threading import Lock
from typing import Any

import torch

SMALL = 4096
"""Pieces times steps below which starting threads costs more than it saves."""

_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_lock = Lock()


def run_pieces(loop: Callable[..., None], pieces: int, steps: int, *arguments: Any) -> None:
    """Call ``loop(first, last, *arguments)`` over all of ``range(pieces)``, in parallel where that pays.

    Args:
        loop: compiled, releases the interpreter lock; pieces must not write to the same places.
        pieces: how many there are.
        steps: length of one piece, to judge the cost.
    """
    workers = min(torch.get_num_threads(), pieces)
    if workers <= 1 or pieces * steps < SMALL:
        loop(0, pieces, *arguments)
        return
    bounds = [pieces * i // workers for i in range(workers + 1)]
    pool = _threads(workers - 1)
    futures: list[Future[None]] = [pool.submit(loop, first, last, *arguments) for first, last in pairwise(bounds[1:])]
    loop(0, bounds[1], *arguments)
    for future in futures:
        future.result()


def run_together(loop: Callable[..., None], workers: int, *arguments: Any) -> None:
    """Call ``loop(*arguments)`` here and, as soon as they are free, on up to ``workers - 1`` further threads.

    Args:
        loop: compiled, releases the interpreter lock. Its calls share the work out among themselves; each returns only
            when all of it is done, and one that begins after that touches nothing.
        workers: calls in all; never more than PyTorch's threads.
    """
    workers = min(torch.get_num_threads(), workers)
    if workers > 1:
        pool = _threads(workers - 1)
        for _ in range(workers - 1):
            pool.submit(loop, *arguments)
    loop(*arguments)


def _threads(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < count:
            _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="icrl-scan"), count
        return _pool


def _after_fork() -> None:
    """A forked child has none of its parent's threads."""
    global _pool, _lock
    _pool, _lock = None, Lock()


os.register_at_fork(after_in_child=_after_fork)

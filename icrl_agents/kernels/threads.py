"""Pieces of work on as many threads as PyTorch uses.

Help is never waited for: whatever no thread has begun when the caller is through with its own part, the caller does
itself. So a busy pool, or one that takes nothing more because the interpreter shuts down, costs only time.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Lock, Semaphore
from typing import Any

import torch

SMALL = 4096
"""Pieces times steps below which starting threads costs more than it saves."""

QUEUE = 64
"""Shares that may lie in the pool's queue, all callers' together."""

_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_lock = Lock()
_places = Semaphore(QUEUE)


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
    shares = [_Share(loop, first, last, *arguments) for first, last in pairwise(bounds[1:])]
    try:
        _offer(shares)
        loop(0, bounds[1], *arguments)
        for share in shares:
            share.finish()
    finally:
        for share in shares:
            share.withdraw()


def run_together(loop: Callable[..., None], workers: int, *arguments: Any, keep: object = None) -> None:
    """Call ``loop(*arguments)`` here and, as soon as they are free, on up to ``workers - 1`` further threads.

    Args:
        loop: compiled, releases the interpreter lock. Its calls share the work out among themselves; each returns only
            when all of it is done, and one that begins after that touches nothing.
        workers: calls in all; never more than PyTorch's threads.
        keep: owns memory that the arguments only name; no thread outlives it.
    """
    workers = min(torch.get_num_threads(), workers)
    if workers <= 1:
        loop(*arguments)
        return
    shares = [_Share(loop, *arguments, keep=keep) for _ in range(workers - 1)]
    try:
        _offer(shares)
        loop(*arguments)
    except BaseException:  # an interrupt before or after the loop: none of the others may write after it
        for share in shares:
            share.withdraw()
        raise
    for share in shares:
        share.empty()


class _Share:
    """A call for whoever takes it first: a thread of the pool, or the caller back again."""

    def __init__(self, loop: Callable[..., None], *arguments: Any, keep: object = None) -> None:
        self._work = [(loop, arguments, keep)]  # popped by who takes it; a share that is done holds on to nothing
        self._running = Lock()
        self._error: BaseException | None = None

    def __call__(self) -> None:
        """The call, on a thread of the pool."""
        _places.release()
        with self._running:
            try:
                self._run()
            except BaseException as error:
                self._error = error

    def finish(self) -> None:
        """Return when the call is done, by this thread if no other has begun it; raises what it raised."""
        self._run()
        with self._running:
            pass
        if self._error is not None:
            raise self._error

    def withdraw(self) -> None:
        """Return when no thread runs the call, nor ever will."""
        self.empty()
        with self._running:
            pass

    def empty(self) -> None:
        """See to it that no thread begins the call any more."""
        self._work.clear()

    def _run(self) -> None:
        try:
            loop, arguments, keep = self._work.pop()
        except IndexError:
            return
        loop(*arguments)
        del keep  # not before the end of the loop


def _offer(shares: Sequence[_Share]) -> None:
    """Put shares into the pool's queue, as far as it takes them."""
    try:
        pool = _threads(len(shares))
        for share in shares:
            if not _places.acquire(blocking=False):
                return
            pool.submit(share)
    except RuntimeError:  # the interpreter is shutting down, or the system has no more threads
        return


def _threads(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < count:
            _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="icrl-scan"), count
        return _pool


def _after_fork() -> None:
    """A forked child has none of its parent's threads."""
    global _pool, _lock, _places
    _pool, _lock, _places = None, Lock(), Semaphore(QUEUE)


os.register_at_fork(after_in_child=_after_fork)

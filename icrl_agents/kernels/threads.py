"""Pieces of work on as many threads as PyTorch uses, and on PyTorch's own ones where its OpenMP library is known.

They are at hand within a microsecond, while threads of another pool have to fight them for the cores: they spin for a
while after each of PyTorch's operations (:mod:`icrl_agents.kernels.cpu_team`).

Elsewhere, and in a forked child, where OpenMP hangs, a pool of our own helps. Its help is never waited for: whatever no
thread has begun when the caller is through with its own part, the caller does itself. So a busy pool, or one that takes
nothing more because the interpreter shuts down, costs only time.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Lock, Semaphore
from typing import Any

import torch

from icrl_agents import forks

SMALL = 512
"""Pieces times steps below which starting threads costs more than it saves."""

SHARES = 8
"""Portions of the pieces a thread takes one after the other, so that a slow one does not keep the rest waiting."""

QUEUE = 64
"""Shares that may lie in the pool's queue, all callers' together."""

_on_team: dict[Callable[..., None], Callable[..., int]] = {}
_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_lock = Lock()
_places = Semaphore(QUEUE)


def goes_on_team(loop: Callable[..., None]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorator: from now on :func:`run_pieces` calls this function, which calls ``loop`` on PyTorch's threads.

    It is called with threads, pieces, how many of them are taken at once, and the arguments of the loop, and returns
    how many of its calls failed.
    """

    def keep(on_team: Callable[..., int]) -> Callable[..., int]:
        _on_team[loop] = on_team
        return on_team

    return keep


def run_pieces(loop: Callable[..., None], pieces: int, steps: int, *arguments: Any) -> None:
    """Call ``loop(first, last, *arguments)`` over all of ``range(pieces)``, in parallel where that pays.

    Args:
        loop: compiled, releases the interpreter lock; pieces must not write to the same places.
        pieces: how many there are.
        steps: length of one piece, to judge the cost.

    Raises:
        MemoryError: a loop found no memory for its scratch.
    """
    workers = min(torch.get_num_threads(), pieces)
    if workers <= 1 or pieces * steps < SMALL:
        loop(0, pieces, *arguments)
    elif loop in _on_team and not forks.forked:
        if _on_team[loop](workers, pieces, max(1, pieces // (SHARES * workers)), *arguments):
            raise MemoryError("a compiled loop ended early, most likely for want of memory")
    else:
        _run_on_pool(loop, pieces, workers, arguments)


def _run_on_pool(loop: Callable[..., None], pieces: int, workers: int, arguments: tuple[Any, ...]) -> None:
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


class _Share:
    """A call for whoever takes it first: a thread of the pool, or the caller back again."""

    def __init__(self, loop: Callable[..., None], *arguments: Any) -> None:
        self._work = [(loop, arguments)]  # popped by who takes it; a share that is done holds on to nothing
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
        self._work.clear()
        with self._running:
            pass

    def _run(self) -> None:
        try:
            loop, arguments = self._work.pop()
        except IndexError:
            return
        loop(*arguments)


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


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

"""Work on further threads: all of it done once, whatever the pool does, and none after the caller has left."""

import os
import subprocess
import sys
from threading import Event

import numpy as np
import pytest
import torch

from icrl_agents import forks
from icrl_agents.kernels import cpu_loops, threads
from icrl_agents.kernels.cpu_team import for_team, on_team


class Pool:
    """A pool that begins nothing by itself."""

    def __init__(self, begin=False, error=None):
        self.begin, self.error, self.shares = begin, error, []

    def submit(self, share):
        self.shares.append(share)
        if self.begin:
            share()
        if self.error is not None:
            raise self.error


@pytest.fixture
def use_pool(monkeypatch):
    """Three threads and no work too small for them, on the pool given."""
    monkeypatch.setattr(threads, "SMALL", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    return lambda pool: monkeypatch.setattr(threads, "_threads", lambda count: pool)


REFUSAL = RuntimeError("cannot schedule new futures after interpreter shutdown")


@pytest.mark.parametrize("pool", [Pool(), Pool(begin=True), Pool(error=REFUSAL), Pool(begin=True, error=REFUSAL)])
def test_every_piece_is_done_once(use_pool, pool):
    use_pool(pool)
    done = []
    threads.run_pieces(lambda first, last, scale: done.extend(scale * i for i in range(first, last)), 7, 1, 10)
    for share in pool.shares:
        share()  # a thread that comes too late
    assert sorted(done) == [0, 10, 20, 30, 40, 50, 60]


def test_shares_do_not_pile_up_in_a_busy_pool(use_pool, monkeypatch):
    pool = Pool()
    use_pool(pool)
    monkeypatch.setattr(threads, "_places", threads.Semaphore(5))
    for _ in range(10):
        threads.run_pieces(lambda first, last: None, 3, 1)
    assert len(pool.shares) == 5


def test_an_interrupt_waits_for_those_that_began(monkeypatch):
    """Whoever catches it may free or reuse what the loop writes to."""
    monkeypatch.setattr(threads, "SMALL", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    began, ended = Event(), Event()

    def loop(first, last):
        if began.is_set():  # the caller, after the helper began
            raise KeyboardInterrupt
        began.set()
        ended.wait(0.1)
        ended.set()

    submit = threads._threads(1).submit

    class Begun:
        def submit(self, share):
            submit(share)
            assert began.wait(30)

    use = Begun()
    monkeypatch.setattr(threads, "_threads", lambda count: use)
    with pytest.raises(KeyboardInterrupt):
        threads.run_pieces(loop, 2, 1)
    assert ended.is_set()


@cpu_loops.loop
def fill(first, last, out, room):
    """Count the calls of each piece; room is scratch that there may be too little memory for."""
    scratch = np.empty(room, np.float32)
    for piece in range(first, last):
        out[piece] += 1 + 0 * scratch.size


@for_team(fill)
@cpu_loops.loop
def fill_on_team(threads, pieces, grain, *arguments):
    return on_team(fill, threads, pieces, grain, arguments)


@pytest.mark.parametrize("forked", [False, True])
@pytest.mark.parametrize("pieces", [2, 3, 100])
def test_a_compiled_loop_does_every_piece_once(monkeypatch, pieces, forked):
    monkeypatch.setattr(forks, "forked", forked)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    counts = np.zeros(pieces, np.int64)
    threads.run_pieces(fill, pieces, threads.SMALL, counts, 1)
    assert (counts == 1).all()


def test_a_loop_without_memory_says_so(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with pytest.raises(MemoryError):
        threads.run_pieces(fill, 3, threads.SMALL, np.zeros(3, np.int64), 2**60)


FORK = """
import os, torch, warnings
import icrl_agents

torch.ones(10**7).add_(1)  # starts the parent's OpenMP threads
warnings.simplefilter("ignore")  # Python warns of any fork beside threads
if child := os.fork():
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
from icrl_agents.kernels import threads
from icrl_agents.kernels.cpu import causal_conv

threads.SMALL = 0
torch.get_num_threads = lambda: 2
causal_conv(torch.ones(4, 8, 3), torch.ones(3, 2), None, None, None)
os._exit(7)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_before_the_first_compiled_loop_does_not_hang():
    assert subprocess.run([sys.executable, "-c", FORK], timeout=60).returncode == 7

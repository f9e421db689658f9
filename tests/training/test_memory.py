"""Freed memory stays with a process that asked for it."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from icrl_agents.training.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 * 2**20)  # 256 MB, that is 65,536 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
without = min(faults() for _ in range(3))
print(keep_freed_memory(), without, min(faults() for _ in range(6)))  # a block may first have to find a place to stay
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_a_block_that_was_freed_costs_no_page_faults_again():
    known, without, kept = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    ).stdout.split()
    if known == "False":
        pytest.skip("this C library is not glibc")
    assert int(without) > 100
    assert int(kept) < int(without) / 10

"""No checkpoint or state file crashes the interpreter or makes it allocate gigabytes; see checkpoint_fuzz.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("checkpoint_fuzz.py")


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on address space is Linux's")
@pytest.mark.parametrize("cases", [120, pytest.param(10_000, marks=pytest.mark.soak)])
def test_every_damaged_file_ends_in_an_agent_or_an_error_of_ours(cases):
    done = subprocess.run([sys.executable, str(FUZZ), str(cases)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    outcomes = json.loads(done.stdout.splitlines()[-1])
    print(outcomes)  # with pytest -s
    assert sum(outcomes.values()) >= cases * 0.9
    # it does try both what is refused and what is not
    assert {"agent that acts", "ConfigError", "CheckpointError", "state: CheckpointError"} <= set(outcomes)

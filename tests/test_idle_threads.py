"""How long idle threads spin: decided once, by the user first, and before PyTorch is loaded."""

import os
import subprocess
import sys

import pytest


def decided(code: str, **environment: str) -> str:
    inherited = {n: v for n, v in os.environ.items() if n not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


ASK = "import os; from icrl_agents.idle_threads import *; print(let_idle_threads_sleep(), os.getenv('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(
    ("code", "environment", "expected"),
    [
        (ASK, {}, "True 3000"),
        (ASK, {"GOMP_SPINCOUNT": "7"}, "False 7"),
        (ASK, {"OMP_WAIT_POLICY": "active"}, "False None"),
        (f"import torch; {ASK}", {}, "False None"),
    ],
    ids=["nothing set", "count set", "policy set", "too late"],
)
def test_the_user_decides_first(code: str, environment: dict[str, str], expected: str) -> None:
    assert decided(code, **environment) == expected


def test_the_command_line_decides_before_pytorch_is_loaded() -> None:
    code = (
        "import os, sys\n"
        "from icrl_agents.cli import main\n"
        "assert 'torch' not in sys.modules\n"
        "main(['list', '--kernels'])\n"
        "assert 'torch' in sys.modules\n"
        "print(os.environ['GOMP_SPINCOUNT'])"
    )
    assert decided(code).endswith("3000")

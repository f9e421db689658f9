"""The Triton kernel: its checks in the interpreter and, where there is a GPU, on it; and it compiles for GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="the test extra installs Triton on Linux only")

from triton.backends.compiler import GPUTarget  # noqa: E402  (only where Triton is)
from triton.compiler import ASTSource  # noqa: E402

from icrl_agents.kernels import triton as kernel  # noqa: E402
from icrl_agents.kernels import triton_conv, triton_scan  # noqa: E402

CHECKS = Path(__file__).with_name("triton_checks.py")
SIZES = {"N": 16, "STATES": 16, "K": 4, "SPAN": kernel.SPAN, "CHANNELS": kernel.CHANNELS}
INTEGERS = {"L", "E", "spans"}
PROGRAMS = {
    triton_scan.span_ends: kernel.WARPS,
    triton_scan.chain_spans: kernel.STEP_WARPS,
    triton_scan.scan_spans: kernel.WARPS,
    triton_scan.span_ends_backward: kernel.BACKWARD_WARPS,
    triton_scan.scan_spans_backward: kernel.BACKWARD_WARPS,
    triton_scan.step_state: kernel.STEP_WARPS,
    triton_conv.conv_spans: kernel.WARPS,
    triton_conv.conv_spans_backward: kernel.WARPS,
    triton_conv.conv_inputs_backward: kernel.WARPS,
    triton_conv.step_taps: kernel.STEP_WARPS,
}


@pytest.mark.parametrize(
    "interpret",
    [
        pytest.param("1", id="interpreted"),
        pytest.param(
            "0",
            id="cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
        ),
    ],
)
def test_its_checks_pass(interpret):
    """In a process of its own: Triton decides when it is imported whether to interpret."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "ICRL_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS)]
    done = subprocess.run(
        command, env=environment | {"TRITON_INTERPRET": interpret}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.parametrize(("capability", "plain"), [(80, False), (90, True)], ids=["all options, aligned", "plain"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_programs_compile_for_gpus(program, capability, plain):
    """To machine code, for which no GPU is needed; the interpreter accepts more than the compiler.

    Plain: no option, sizes that nothing divides, and a mask that is not there, in whose place floats are given.
    """
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(program.params):
        name = parameter.name
        if parameter.is_constexpr:
            signature[name], constants[(i,)] = "constexpr", SIZES.get(name, not plain)
        elif name in INTEGERS or name.endswith("_row"):
            signature[name] = "i32"
            if not plain:
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "*u8" if name == "forget" and not plain else "*fp32"
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(program, signature=signature, constexprs=constants, attrs=attributes)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": PROGRAMS[program]})
    assert built.asm["cubin"].startswith(b"\x7fELF")
    assert built.metadata.shared <= 48 * 1024

"""The one place that chooses a kernel."""

import subprocess
import sys
import warnings

import pytest
import torch

import icrl_agents.kernels as kernels
from icrl_agents.errors import ConfigError, UnknownNameError
from icrl_agents.kernels import (
    available_kernels,
    causal_conv,
    choice,
    compiled,
    conv_step,
    cpu,
    kernel_status,
    reference,
    selective_scan,
    selective_step,
)

NAMES = ("cpu", "triton", "mamba-ssm", "reference")


@pytest.fixture(autouse=True)
def no_choice_in_the_environment(monkeypatch):
    for name in ("ICRL_KERNEL", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def calls(monkeypatch):
    """Names of the kernels whose scan or convolution ran."""
    seen = []
    for module in (cpu, reference):
        for function in ("selective_scan", "causal_conv"):
            name, run = module.__name__.rpartition(".")[2], getattr(module, function)
            monkeypatch.setattr(module, function, lambda *a, n=name, f=run: (seen.append(n), f(*a))[1])
    return seen


@pytest.fixture
def without(monkeypatch):
    """Make a package and the kernel modules over it not importable."""

    def hide(package, *modules):
        monkeypatch.setitem(sys.modules, package, None)
        for name in modules:
            monkeypatch.delitem(sys.modules, f"icrl_agents.kernels.{name}", raising=False)
            monkeypatch.delattr(kernels, name, raising=False)
        choice._load.cache_clear()
        choice._warn_once.cache_clear()

    yield hide
    choice._load.cache_clear()
    choice._warn_once.cache_clear()


def scan(dtype=torch.float32, **options):
    u = torch.ones(1, 3, 2, dtype=dtype)
    return selective_scan(u, u, -torch.ones(2, 2, dtype=dtype), u, u, **options)


def test_float32_on_the_cpu_runs_compiled_and_the_rest_by_reference(calls):
    scan()
    scan(torch.float64)
    assert calls == ["cpu", "reference"]


def test_argument_goes_before_environment(calls, monkeypatch):
    monkeypatch.setenv("ICRL_KERNEL", "reference")
    scan()
    scan(kernel="cpu")
    assert calls == ["reference", "cpu"]


def test_an_empty_variable_is_no_choice(calls, monkeypatch):
    monkeypatch.setenv("ICRL_KERNEL", "")
    scan()
    assert calls == ["cpu"]


def test_unknown_kernels_are_refused_with_the_known_ones(monkeypatch):
    with pytest.raises(UnknownNameError, match="cpu, mamba-ssm, reference, triton"):
        scan(kernel="nonsense")
    monkeypatch.setenv("ICRL_KERNEL", "nonsense")
    for call in (scan, kernel_status, compiled):
        with pytest.raises(UnknownNameError, match="nonsense"):
            call()
    with pytest.raises(UnknownNameError):
        causal_conv(torch.ones(1, 3, 2), torch.ones(2, 4))


def test_a_named_kernel_that_does_not_serve_says_why_and_who_does(monkeypatch):
    with pytest.raises(ConfigError, match=r"kernel=cpu cannot run selective_scan: .* float64 on cpu.*: reference$"):
        scan(torch.float64, kernel="cpu")
    with pytest.raises(ConfigError, match=r"kernel=triton .* float32 on cuda, got float32 on cpu.*: cpu, reference$"):
        scan(kernel="triton")
    monkeypatch.setenv("ICRL_KERNEL", "cpu")
    with pytest.raises(ConfigError, match="ICRL_KERNEL=cpu cannot run"):
        scan(torch.float64)


def test_a_named_kernel_without_its_package_says_what_to_install(without):
    without("numba", "cpu", "cpu_loops")
    with pytest.raises(ConfigError, match=r"kernel=cpu .*numba is not installed \(pip install numba\)"):
        scan(kernel="cpu")


def test_a_package_that_breaks_on_import_is_told_in_one_line(without, monkeypatch):
    def broken(name):
        raise OSError("libcudart.so.11.0: cannot open shared object file\nand a page more")

    without("mamba_ssm")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(choice, "import_module", broken)
    assert choice.why_unavailable("mamba-ssm") == (
        "its import failed with OSError: libcudart.so.11.0: cannot open shared object file"
    )


def test_a_step_with_gradients_is_a_scan_by_the_same_kernel(calls):
    u = torch.ones(1, 2, requires_grad=True)
    for kernel in ("cpu", "reference"):
        selective_step(
            u, u, -torch.ones(2, 3), *torch.ones(2, 1, 3), None, None, None, True, torch.ones(1, 3, 2), kernel
        )
        conv_step(u, torch.ones(2, 4), None, torch.ones(1, 3, 2), kernel)
    assert calls == ["cpu", "cpu", "reference", "reference"]


def test_without_numba_the_reference_runs_after_one_warning(without):
    expected = scan()
    without("numba", "cpu", "cpu_loops")
    with pytest.warns(UserWarning, match="numba is not installed") as warned:
        outputs = scan()
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scan()
        assert "cpu" not in available_kernels()
        assert not compiled()
        rows = {row.name: row for row in kernel_status()}
    assert rows["cpu"].state == "unavailable"
    assert "pip install numba" in rows["cpu"].detail
    assert rows["reference"].state == "in use"
    for output, value in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, value)


def test_kernels_are_imported_when_they_are_chosen():
    code = (
        "import sys, icrl_agents.kernels as k\n"
        "assert not {'numba', 'triton', 'mamba_ssm'} & set(sys.modules), 'eager'\n"
        "import torch\n"
        "assert k.choice.choose(None, 'selective_scan', torch.ones(1, 3, 2)).__name__.endswith('.cpu')\n"
        "assert 'numba' in sys.modules and not {'triton', 'mamba_ssm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_status_tells_of_every_kernel_what_it_runs_or_why_it_does_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = kernel_status()
    assert tuple(row.name for row in rows) == NAMES
    assert {row.name for row in rows if row.state != "unavailable"} == set(available_kernels())
    states = {row.name: row.state for row in rows}
    assert states == {
        "cpu": "in use",
        "triton": "unavailable",
        "mamba-ssm": "unavailable",
        "reference": "available",
    }
    assert "no CUDA device" in rows[1].detail
    monkeypatch.setenv("ICRL_KERNEL", "reference")
    rows = {row.name: row for row in kernel_status()}
    assert (rows["cpu"].state, rows["reference"].state) == ("available", "in use")
    assert "ICRL_KERNEL=reference" in rows["cpu"].detail
    monkeypatch.setenv("ICRL_KERNEL", "triton")
    assert "in use" not in {row.state for row in kernel_status()}
    assert not compiled()

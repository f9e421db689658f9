"""The one place that chooses a kernel."""

import sys
import warnings

import pytest
import torch

import icrl_agents.kernels as kernels
from icrl_agents.errors import UnknownNameError
from icrl_agents.kernels import available_kernels, causal_conv, cpu, reference, selective_scan


@pytest.fixture(autouse=True)
def no_choice_in_the_environment(monkeypatch):
    monkeypatch.delenv("ICRL_KERNEL", raising=False)


@pytest.fixture
def calls(monkeypatch):
    """Names of the kernels whose scan ran."""
    seen = []
    for module in (cpu, reference):
        name, scan = module.__name__.rpartition(".")[2], module.selective_scan
        monkeypatch.setattr(module, "selective_scan", lambda *a, n=name, f=scan: (seen.append(n), f(*a))[1])
    return seen


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
    with pytest.raises(UnknownNameError, match="cpu, reference"):
        scan(kernel="nonsense")
    monkeypatch.setenv("ICRL_KERNEL", "nonsense")
    with pytest.raises(UnknownNameError, match="nonsense"):
        scan()
    with pytest.raises(UnknownNameError):
        causal_conv(torch.ones(1, 3, 2), torch.ones(2, 4))


def test_without_numba_the_reference_runs_after_one_warning(monkeypatch):
    expected = scan()
    assert available_kernels() == ("cpu", "reference")
    monkeypatch.setitem(sys.modules, "numba", None)
    for name in ("cpu", "cpu_loops"):
        monkeypatch.delitem(sys.modules, f"icrl_agents.kernels.{name}")
    monkeypatch.delattr(kernels, "cpu")
    kernels._cpu_kernel.cache_clear()
    try:
        with pytest.warns(UserWarning, match="numba") as warned:
            outputs = scan()
        assert len(warned) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scan()
            assert available_kernels() == ("reference",)
    finally:
        kernels._cpu_kernel.cache_clear()
    for output, value in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, value)

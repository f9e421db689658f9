"""The adapter to mamba_ssm, over a stand-in with its documented signatures, layouts and faults."""

import sys
from types import ModuleType

import pytest
import torch

from icrl_agents.errors import ConfigError
from icrl_agents.kernels import causal_conv, choice, reference, selective_scan, selective_step

SCAN = "mamba_ssm.ops.selective_scan_interface"
STEP = "mamba_ssm.ops.triton.selective_state_update"


def selective_scan_fn(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
):
    """u, delta, z [B, E, L]; A [E, N]; B, C [B, N, L]; D, delta_bias [E]; last state [B, E, N], without gradient."""
    batch, channels, length = u.shape
    states = A.shape[1]
    assert delta.shape == (batch, channels, length)
    assert A.shape == (channels, states)
    assert B.shape == C.shape == (batch, states, length)
    assert z is None or z.shape == u.shape
    assert all(t is None or t.stride(-1) == 1 for t in (u, delta, A, B, C, z))  # theirs copies otherwise
    lines = [None if t is None else t.transpose(1, 2) for t in (u, delta, B, C, z)]
    y, state = reference.selective_scan(
        lines[0], lines[1], A, lines[2], lines[3], D, lines[4], delta_bias, delta_softplus, None, None
    )
    y, state = y.transpose(1, 2), state.transpose(1, 2)
    return (y, state) if return_last_state else y


def selective_state_update(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False):
    """state [B, E, N], updated in place; x, dt, z [B, E]; A [E, N]; B, C [B, N]; D, dt_bias [E]."""
    dt_bias = dt_bias.contiguous()  # theirs crashes on None
    y, after = reference.selective_step(x, dt, A, B, C, D, z, dt_bias, dt_softplus, state.transpose(1, 2))
    state.copy_(after.transpose(1, 2))
    return y


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """mamba_ssm "installed", and a GPU that is the CPU."""
    modules = {name: ModuleType(name) for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", SCAN, STEP)}
    modules[SCAN].selective_scan_fn = selective_scan_fn
    modules[STEP].selective_state_update = selective_state_update
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "icrl_agents.kernels.mamba_ssm", raising=False)
    monkeypatch.delenv("ICRL_KERNEL", raising=False)
    served = choice._KERNELS["mamba-ssm"]._replace(device="cpu")
    monkeypatch.setitem(choice._KERNELS, "mamba-ssm", served)
    choice._load.cache_clear()
    yield
    sys.modules.pop("icrl_agents.kernels.mamba_ssm", None)
    choice._load.cache_clear()


def arguments(batch=2, length=7, channels=5, states=3):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    sequence, inward = (batch, length, channels), (batch, length, states)
    rest = {"D": normal(channels), "z": normal(*sequence), "delta_bias": normal(channels)}
    A = -torch.exp(normal(channels, states))
    return {
        "u": normal(*sequence),
        "delta": normal(*sequence),
        "A": A,
        "B": normal(*inward),
        "C": normal(*inward),
    } | rest


@pytest.mark.parametrize("absent", [(), ("D", "z", "delta_bias")])
def test_scan_and_gradients_are_the_reference(absent):
    results = []
    for kernel in ("mamba-ssm", "reference"):
        leaves = {k: x.clone().requires_grad_() for k, x in arguments().items() if k not in absent}
        y, state = selective_scan(**leaves, kernel=kernel)
        results.append([y, state, *torch.autograd.grad(y.square().sum(), list(leaves.values()))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("absent", [(), ("D", "z", "delta_bias")])
def test_step_is_the_reference_and_leaves_the_state(absent):
    rows = {k: x[:, 0] if x.ndim == 3 else x for k, x in arguments().items()} | dict.fromkeys(absent)
    state = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    before = state.clone()
    ours = selective_step(**rows, delta_softplus=True, state=state, kernel="mamba-ssm")
    theirs = selective_step(**rows, delta_softplus=True, state=state, kernel="reference")
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(state, before)


def test_a_gradient_that_it_would_drop_is_an_error():
    leaves = {k: x.requires_grad_() for k, x in arguments().items()}
    y, state = selective_scan(**leaves, kernel="mamba-ssm")
    (y.sum() + state.sum().detach()).backward(retain_graph=True)
    with pytest.raises(ConfigError, match="final state"):
        state.sum().backward()


def test_what_it_cannot_do_is_refused_and_left_to_others(monkeypatch):
    given = arguments()
    state, forget = torch.zeros(2, 3, 5), torch.zeros(2, 7, dtype=torch.bool)
    for options in ({"initial_state": state}, {"forget_before": forget}):
        with pytest.raises(ConfigError, match="neither initial states nor forgetting"):
            selective_scan(**given, **options, kernel="mamba-ssm")
    with pytest.raises(ConfigError, match="has only selective_scan and selective_step"):
        causal_conv(given["u"], torch.ones(5, 4), kernel="mamba-ssm")
    monkeypatch.setenv("ICRL_KERNEL", "mamba-ssm")
    causal_conv(given["u"], torch.ones(5, 4))  # not its function: the variable leaves it to others
    with pytest.raises(ConfigError, match="ICRL_KERNEL=mamba-ssm"):
        selective_scan(**given, initial_state=state)

"""The compiled scan and convolution are the reference in float64, forward and backward."""

import multiprocessing
import subprocess
import sys
import warnings
from threading import Thread

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import icrl_agents.kernels as kernels
from icrl_agents.kernels import causal_conv, conv_step, cpu, selective_scan, selective_step
from icrl_agents.kernels.threads import run_pieces

TOLERANCE = 1e-5
SCAN_NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


SUMMED = ("A", "D", "delta_bias", "weight", "bias")
"""Arguments whose gradients are sums over batch and time, whose terms may cancel."""


def assert_near(fast, exact, name, scale=None):
    """Largest error over ``scale``, by default the largest value; 1e-7 where the values themselves vanish."""
    error = (fast.double() - exact).abs().max().item()
    scale = exact.abs().max().item() if scale is None else scale
    assert error <= TOLERANCE * scale + 1e-7, f"{name}: {error}"


def scan_arguments(generator, batch, length, channels, states, decay):
    """Float32 arguments of the scan, by name; ``decay`` scales log(-A)."""

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "u": normal(batch, length, channels),
        "delta": 2 * normal(batch, length, channels),
        "A": -torch.exp(decay * normal(channels, states)),
        "B": normal(batch, length, states),
        "C": normal(batch, length, states),
        "D": normal(channels),
        "z": 4 * normal(batch, length, channels),
        "delta_bias": normal(channels),
        "initial_state": normal(batch, states, channels),
    }


def results_and_gradients(function, arguments, weights, **options):
    """Outputs of ``function``, then the gradients of every argument given."""
    leaves = {k: None if x is None else x.detach().clone().requires_grad_() for k, x in arguments.items()}
    outputs = function(**leaves, **options)
    wanted = [x for x in leaves.values() if x is not None]
    grads = torch.autograd.grad(outputs, wanted, [w.to(o.dtype) for w, o in zip(weights, outputs, strict=True)])
    named = dict(zip((k for k, x in leaves.items() if x is not None), grads, strict=True))
    return dict(zip(("y", "final"), (o.detach() for o in outputs), strict=True)) | named


def compare(function, arguments, weights, **options):
    fast = results_and_gradients(function, arguments, weights, kernel="cpu", **options)
    double = {k: None if x is None else x.double() for k, x in arguments.items()}
    exact = results_and_gradients(function, double, weights, kernel="reference", **options)
    largest = max(value.abs().max().item() for value in exact.values())
    for name, value in exact.items():
        assert_near(fast[name], value, name, largest if name in SUMMED else None)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 50),
    channels=st.sampled_from([1, 7, 63, 64, 65, 130]),
    states=st.integers(1, 17),
    decay=st.sampled_from([0.5, 2.0, 6.0]),
    absent=st.sets(st.sampled_from(["D", "z", "delta_bias", "initial_state"])),
    softplus=st.booleans(),
    forgetting=st.sampled_from([None, 0.0, 0.1, 1.0]),
    seed=st.integers(0, 2**20),
)
@example(2, 31, 1, 1, 0.5, set(), False, None, 0)  # 62 gradients of up to 25 that add up to 0.35
def test_scan_is_the_reference(batch, length, channels, states, decay, absent, softplus, forgetting, seed):
    generator = torch.Generator().manual_seed(seed)
    arguments = scan_arguments(generator, batch, length, channels, states, decay)
    if not softplus:
        arguments["delta"].abs_()
        arguments["delta_bias"].abs_()
    arguments |= dict.fromkeys(absent)
    forget = None if forgetting is None else torch.rand(batch, length, generator=generator) < forgetting
    weights = [torch.randn(s, generator=generator) for s in ((batch, length, channels), (batch, states, channels))]
    compare(selective_scan, arguments, weights, delta_softplus=softplus, forget_before=forget)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 20),
    channels=st.integers(1, 70),
    width=st.integers(2, 5),
    absent=st.sets(st.sampled_from(["bias", "initial_taps"])),
    forgetting=st.sampled_from([None, 0.2, 1.0]),
    seed=st.integers(0, 2**20),
)
def test_convolution_is_the_reference(batch, length, channels, width, absent, forgetting, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "x": (batch, length, channels),
        "weight": (channels, width),
        "bias": (channels,),
        "initial_taps": (batch, width - 1, channels),
    }
    arguments = {k: 2 * torch.randn(shape, generator=generator) for k, shape in shapes.items()}
    arguments |= dict.fromkeys(absent)
    forget = None if forgetting is None else torch.rand(batch, length, generator=generator) < forgetting
    weights = [torch.randn(shapes[k], generator=generator) for k in ("x", "initial_taps")]
    compare(causal_conv, arguments, weights, forget_before=forget)


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 70),
    states=st.integers(1, 17),
    absent=st.sets(st.sampled_from(["D", "z", "delta_bias"])),
    softplus=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_step_is_the_reference(batch, channels, states, absent, softplus, seed):
    arguments = scan_arguments(torch.Generator().manual_seed(seed), batch, 1, channels, states, 2.0)
    state = arguments.pop("initial_state")
    rows = {k: x[:, 0] if x.ndim == 3 else x for k, x in arguments.items()}
    if not softplus:
        rows["delta"].abs_()
        rows["delta_bias"].abs_()
    rows |= dict.fromkeys(absent) | {"state": state}
    before = state.clone()
    double = {k: None if x is None else x.double() for k, x in rows.items()}
    fast = selective_step(**rows, delta_softplus=softplus, kernel="cpu")
    exact = selective_step(**double, delta_softplus=softplus)
    for name, a, b in zip(("y", "state"), fast, exact, strict=True):
        assert_near(a, b, name)
    assert torch.equal(state, before)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("batch", "channels", "width"), [(1, 3, 1), (1, 3, 2), (3, 70, 4), (2, 64, 5)])
def test_convolution_step_is_the_reference(batch, channels, width, with_bias):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * batch, channels, generator=generator)[::2]
    weight = torch.randn(channels, width, generator=generator)
    bias = torch.randn(channels, generator=generator) if with_bias else None
    taps = torch.randn(batch, width - 1, channels, generator=generator)
    before = taps.clone()
    y, after = conv_step(x, weight, bias, taps, kernel="cpu")
    double = None if bias is None else bias.double()
    exact, exact_after = conv_step(x.double(), weight.double(), double, taps.double())
    assert_near(y, exact, "y")
    assert torch.equal(after.double(), exact_after)
    assert torch.equal(taps, before)


@pytest.mark.parametrize("kernel", ["cpu", "reference"])
def test_a_convolution_over_the_present_alone_remembers_nothing(kernel):
    x, weight = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[100.0]], requires_grad=True)
    y, final = causal_conv(x, weight, torch.tensor([50.0]), kernel=kernel)
    assert y.flatten().tolist() == [150.0, 250.0]  # silu(v) is v in float32 here
    assert final.shape == (1, 0, 1)
    (grad,) = torch.autograd.grad(y.sum(), weight)
    assert grad.item() == 3.0
    y, taps = conv_step(x[:, 1], weight.detach(), None, final, kernel=kernel)
    assert (y.item(), taps.shape) == (200.0, (1, 0, 1))


@pytest.mark.parametrize("delta", [-90.0, -20.0, 0.0, 20.0, 90.0])
@pytest.mark.parametrize("rate", [1e-6, 1.0, 1e6])
def test_extremes_of_step_size_and_decay_are_finite_and_right(delta, rate):
    """From a state that never decays to one gone at once, and gates from closed to open."""
    generator = torch.Generator().manual_seed(0)
    arguments = scan_arguments(generator, 1, 20, 5, 3, 1.0)
    arguments["delta"].fill_(delta)
    arguments["A"].fill_(-rate)
    arguments["z"] = torch.linspace(-200, 200, 100).view(1, 20, 5)
    compare(selective_scan, arguments, [torch.ones(1, 20, 5), torch.ones(1, 3, 5)])


def test_strided_arguments():
    generator = torch.Generator().manual_seed(0)
    arguments = scan_arguments(generator, 2, 9, 6, 3, 1.0)
    plain = selective_scan(**arguments, kernel="cpu")
    strided = {k: x.transpose(0, -1).contiguous().transpose(0, -1) for k, x in arguments.items()}
    for a, b in zip(plain, selective_scan(**strided, kernel="cpu"), strict=True):
        assert torch.equal(a, b)


def test_arguments_stay_as_they_were():
    arguments = scan_arguments(torch.Generator().manual_seed(0), 2, 9, 6, 3, 1.0)
    before = {k: x.clone() for k, x in arguments.items()}
    selective_scan(**arguments, kernel="cpu")
    assert all(torch.equal(arguments[k], before[k]) for k in SCAN_NAMES)


def test_threads_change_nothing(monkeypatch):
    """Several pieces on two threads, and two callers at once: the same bits."""
    arguments = scan_arguments(torch.Generator().manual_seed(0), 4, 40, 70, 3, 1.0)
    alone = results_and_gradients(selective_scan, arguments, [torch.ones(4, 40, 70), torch.ones(4, 3, 70)])
    monkeypatch.setattr("icrl_agents.kernels.threads.SMALL", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    seen = []

    def call():
        weights = [torch.ones(4, 40, 70), torch.ones(4, 3, 70)]
        seen.append(results_and_gradients(selective_scan, arguments, weights))

    callers = [Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(seen) == 2
    for results in seen:
        assert all(torch.equal(results[name], value) for name, value in alone.items())


def test_an_error_on_a_thread_is_raised(monkeypatch):
    monkeypatch.setattr("icrl_agents.kernels.threads.SMALL", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)

    def loop(first, last):
        if last == 3:
            raise ArithmeticError("the last piece")

    with pytest.raises(ArithmeticError, match="the last piece"):
        run_pieces(loop, 3, 1)


def _scan_in_child(arguments, results):
    results.put(selective_scan(**arguments)[0].sum().item())


def test_a_forked_child_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr("icrl_agents.kernels.threads.SMALL", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    arguments = scan_arguments(torch.Generator().manual_seed(0), 2, 9, 6, 3, 1.0)
    expected = selective_scan(**arguments)[0].sum().item()  # starts the parent's threads
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of any fork beside threads
        child = context.Process(target=_scan_in_child, args=(arguments, results))
        child.start()
    assert results.get(timeout=30) == expected
    child.join(30)
    assert child.exitcode == 0


def test_no_gradient_saves_no_states(monkeypatch):
    seen = []
    original = cpu.run_pieces
    monkeypatch.setattr(cpu, "run_pieces", lambda *a: (seen.append(a[-1].size), original(*a))[1])
    arguments = scan_arguments(torch.Generator().manual_seed(0), 1, 20, 5, 3, 1.0)
    kernels.selective_scan(**arguments)
    arguments["u"].requires_grad_()
    with torch.no_grad():
        kernels.selective_scan(**arguments)
    kernels.selective_scan(**arguments)
    assert seen[:2] == [0, 0]
    assert seen[2] > 0


def test_where_nothing_can_be_written_it_compiles_for_itself():
    """numba finds no place for its cache: no error, and the same numbers."""
    program = """
import numba.core.caching as caching
caching.CacheImpl._locator_classes = []
from icrl_agents.kernels import cpu_loops
assert not cpu_loops.CACHE
import numpy as np
row, lanes = np.arange(70, dtype=np.float32).reshape(1, 70), np.ones((1, cpu_loops.LANES), np.float32)
cpu_loops.load(row, 0, 64, 6, lanes, 0)
assert lanes[0, :6].tolist() == [64, 65, 66, 67, 68, 69] and not lanes[0, 6:].any()
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", SCAN_NAMES)
def test_what_is_not_a_number_stays_so(name):
    arguments = scan_arguments(torch.Generator().manual_seed(0), 2, 9, 70, 3, 1.0)
    arguments[name].view(-1)[0] = torch.nan
    double = {k: x.double() for k, x in arguments.items()}
    for fast, exact in zip(selective_scan(**arguments), selective_scan(**double, kernel="reference"), strict=True):
        assert torch.equal(fast.isnan(), exact.isnan())
    step = {k: x[:, 0] if x.ndim == 3 and k != "initial_state" else x for k, x in arguments.items()}
    step["state"] = step.pop("initial_state")
    double = {k: x.double() for k, x in step.items()}
    stepped = selective_step(**step, delta_softplus=True, kernel="cpu")
    for fast, exact in zip(stepped, selective_step(**double, delta_softplus=True, kernel="reference"), strict=True):
        assert torch.equal(fast.isnan(), exact.isnan())


def test_autocast_scans_in_float32():
    arguments = scan_arguments(torch.Generator().manual_seed(0), 2, 9, 6, 3, 1.0)
    arguments["u"] = arguments["u"].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y, state = selective_scan(**arguments, kernel="cpu")
        _, taps = causal_conv(arguments["u"], torch.ones(6, 4), kernel="cpu")
    assert y.dtype == state.dtype == taps.dtype == torch.float32
    expected, _ = selective_scan(**arguments | {"u": arguments["u"].float()}, kernel="cpu")
    assert torch.equal(y, expected)


def test_defaults_for_new_tensors_do_not_reach_inside():
    arguments = scan_arguments(torch.Generator().manual_seed(0), 1, 4, 6, 3, 1.0) | {"D": None, "delta_bias": None}
    expected, _ = selective_scan(**arguments)
    with torch.device("meta"):
        y, _ = selective_scan(**arguments)
    assert torch.equal(y, expected)


def test_final_taps_hold_on_to_nothing_else():
    _, taps = causal_conv(torch.ones(1, 100, 6), torch.ones(6, 4))
    assert taps.untyped_storage().nbytes() == taps.numel() * taps.element_size()

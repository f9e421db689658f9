"""What the Triton kernel must do, in Triton's interpreter on the CPU or on a GPU: test_triton.py runs this file."""

import os

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from icrl_agents.backbones.mamba import Mamba, MambaConfig
from icrl_agents.errors import InputError
from icrl_agents.kernels import causal_conv, conv_step, selective_scan, selective_step, triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCE = 1e-5
SEARCH = settings(
    max_examples=5 if INTERPRETED else 50,
    phases=(Phase.explicit, Phase.generate),  # the interpreter is too slow to shrink a failure
    derandomize=True,
    deadline=None,
)
LENGTH, CHANNELS, STATES = (18, 9, 3) if INTERPRETED else (300, 130, 17)
SUMMED = ("A", "D", "delta_bias", "weight", "bias")
"""Arguments whose gradients are sums over batch and time, whose terms may cancel."""


@pytest.fixture(autouse=True, scope="module")
def small_programs():
    """The interpreter is slow: three spans and two blocks of channels must be little work."""
    if not INTERPRETED:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, "SPAN", 8)
        patch.setattr(triton, "CHANNELS", 8)
        yield


def arguments_of(shapes, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {k: (scale * torch.randn(s, generator=generator)).to(DEVICE) for k, s in shapes.items()}


def scan_arguments(batch, length, channels, states, decay, seed):
    sequence, inward = (batch, length, channels), (batch, length, states)
    shapes = {"u": sequence, "delta": sequence, "A": (channels, states), "B": inward, "C": inward, "D": (channels,)}
    shapes |= {"z": sequence, "delta_bias": (channels,), "initial_state": (batch, states, channels)}
    arguments = arguments_of(shapes, seed)
    arguments["A"] = -torch.exp(decay * arguments["A"])
    arguments["delta"] *= 2
    arguments["z"] *= 4
    return arguments


def forgets(batch, length, rate, seed):
    return (torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < rate).to(DEVICE)


def results_and_gradients(function, arguments, **options):
    """Outputs, then the gradients of their sum with random weights in every argument."""
    leaves = {k: x.detach().clone().requires_grad_() for k, x in arguments.items() if x is not None}
    outputs = function(**arguments | leaves, **options)
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(o.shape, generator=generator).to(o) for o in outputs]
    grads = torch.autograd.grad(outputs, list(leaves.values()), weights)
    return dict(zip(("y", "final", *leaves), (*(o.detach() for o in outputs), *grads), strict=True))


def assert_near(fast, exact, name, scale=None):
    error = (fast.double() - exact).abs().max().item() if exact.numel() else 0.0
    scale = exact.abs().max().item() if scale is None and exact.numel() else scale or 0.0
    assert error <= TOLERANCE * scale + 1e-7, f"{name}: {error} of {scale}"


def compare(function, arguments, **options):
    fast = results_and_gradients(function, arguments, kernel="triton", **options)
    double = {k: None if x is None else x.double() for k, x in arguments.items()}
    exact = results_and_gradients(function, double, kernel="reference", **options)
    largest = max(value.abs().max().item() for value in exact.values() if value.numel())
    for name, value in exact.items():
        assert_near(fast[name], value, name, largest if name in SUMMED else None)


@SEARCH
@given(
    batch=st.integers(1, 2),
    length=st.integers(1, LENGTH),
    channels=st.integers(1, CHANNELS),
    states=st.integers(1, STATES),
    decay=st.sampled_from([0.5, 2.0, 6.0]),
    absent=st.sets(st.sampled_from(["D", "z", "delta_bias", "initial_state"])),
    softplus=st.booleans(),
    forgetting=st.sampled_from([None, 0.0, 0.1, 1.0]),
    seed=st.integers(0, 2**20),
)
@example(2, LENGTH, CHANNELS, STATES, 2.0, set(), True, 0.1, 0)
def test_scan_is_the_reference(batch, length, channels, states, decay, absent, softplus, forgetting, seed):
    arguments = scan_arguments(batch, length, channels, states, decay, seed)
    if not softplus:
        arguments["delta"].abs_()
        arguments["delta_bias"].abs_()
    forget = None if forgetting is None else forgets(batch, length, forgetting, seed)
    compare(selective_scan, arguments | dict.fromkeys(absent), delta_softplus=softplus, forget_before=forget)


def test_extremes_of_step_size_and_decay_are_finite_and_right():
    """From a state that never decays to one gone at once, and gates from closed to open."""
    arguments = scan_arguments(1, 9, 15, 2, 1.0, 0)
    deltas, rates = torch.tensor([-90.0, -20.0, 0.0, 20.0, 90.0]), torch.tensor([1e-6, 1.0, 1e6])
    arguments["delta"] = deltas.repeat(3).expand(1, 9, 15).contiguous().to(DEVICE)
    arguments["A"] = -rates.repeat_interleave(5)[:, None].expand(15, 2).contiguous().to(DEVICE)
    arguments["delta_bias"].zero_()
    arguments["z"] = torch.linspace(-200, 200, 135).view(1, 9, 15).to(DEVICE)
    fast = results_and_gradients(selective_scan, arguments, kernel="triton")
    double = {k: x.double() for k, x in arguments.items()}
    exact = results_and_gradients(selective_scan, double, kernel="reference")
    for name, value in exact.items():
        by_channel = value if name in ("A", "D", "delta_bias") else value.movedim(-1, 0)
        if name in ("B", "C"):
            assert_near(fast[name], value, name)
            continue
        for channel, expected in enumerate(by_channel):
            got = fast[name] if name in ("A", "D", "delta_bias") else fast[name].movedim(-1, 0)
            assert_near(got[channel], expected, f"{name}, channel {channel}")


@pytest.mark.parametrize("name", ["u", "delta", "B", "C", "z", "initial_state"])
def test_what_is_not_a_number_stays_so_until_it_is_forgotten(name):
    """Three spans: it is forgotten in the one where it came, or in the next, or comes in the last."""
    arguments = scan_arguments(3, 18, 3, 2, 1.0, 0)
    forget = torch.zeros(3, 18, dtype=torch.bool, device=DEVICE)
    forget[0, 3] = forget[1, 10] = True
    if name == "initial_state":
        arguments[name].view(-1)[0] = torch.nan
    else:
        for row, t in enumerate((1, 1, 17)):
            arguments[name][row, t, 0] = torch.nan
    fast = results_and_gradients(selective_scan, arguments, kernel="triton", forget_before=forget)
    double = {k: x.double() for k, x in arguments.items()}
    exact = results_and_gradients(selective_scan, double, kernel="reference", forget_before=forget)
    for of, value in exact.items():
        assert torch.equal(fast[of].isnan(), value.isnan()), of


def test_more_rows_than_a_grid_has_are_an_error(monkeypatch):
    monkeypatch.setattr(triton, "GRID_LIMIT", 2)
    with pytest.raises(InputError, match="at most 2 rows"):
        selective_scan(**scan_arguments(3, 2, 3, 2, 1.0, 0), kernel="triton")


@SEARCH
@given(
    batch=st.integers(1, 2),
    length=st.integers(1, LENGTH),
    channels=st.integers(1, CHANNELS),
    width=st.integers(2, 5),
    absent=st.sets(st.sampled_from(["bias", "initial_taps"])),
    forgetting=st.sampled_from([None, 0.2, 1.0]),
    seed=st.integers(0, 2**20),
)
@example(2, LENGTH, CHANNELS, 4, set(), 0.2, 0)
def test_convolution_is_the_reference(batch, length, channels, width, absent, forgetting, seed):
    shapes = {"x": (batch, length, channels), "weight": (channels, width), "bias": (channels,)}
    arguments = arguments_of(shapes | {"initial_taps": (batch, width - 1, channels)}, seed, scale=2.0)
    forget = None if forgetting is None else forgets(batch, length, forgetting, seed)
    compare(causal_conv, arguments | dict.fromkeys(absent), forget_before=forget)


@pytest.mark.parametrize(("absent", "softplus"), [(set(), True), ({"D", "z", "delta_bias"}, False)])
def test_step_is_the_reference(absent, softplus):
    """Also with rows of the inputs apart, as the parts of a wider product are."""
    arguments = scan_arguments(2, 2, 11, 3, 2.0, 0)
    state = arguments.pop("initial_state")
    rows = {k: x[:, 0] if x.ndim == 3 else x for k, x in arguments.items()} | {"state": state}
    if not softplus:
        rows["delta"].abs_()
    rows |= dict.fromkeys(absent)
    before = state.clone()
    fast = selective_step(**rows, delta_softplus=softplus, kernel="triton")
    double = {k: None if x is None else x.double() for k, x in rows.items()}
    exact = selective_step(**double, delta_softplus=softplus, kernel="reference")
    for name, a, b in zip(("y", "state"), fast, exact, strict=True):
        assert_near(a, b, name)
    assert torch.equal(state, before)


@pytest.mark.parametrize("width", [1, 4])
def test_convolution_step_is_the_reference(width):
    shapes = {"x": (4, 11), "weight": (11, width), "bias": (11,), "taps": (2, width - 1, 11)}
    arguments = arguments_of(shapes, 0)
    arguments["x"] = arguments["x"][::2]
    y, after = conv_step(**arguments, kernel="triton")
    double = {k: x.double() for k, x in arguments.items()}
    exact, exact_after = conv_step(**double, kernel="reference")
    assert_near(y, exact, "y")
    assert torch.equal(after.double(), exact_after)


def test_nothing_to_do():
    arguments = scan_arguments(2, 0, 3, 2, 1.0, 0)
    y, state = selective_scan(**arguments, kernel="triton")
    assert y.shape == (2, 0, 3)
    assert torch.equal(state, arguments["initial_state"])
    y, taps = causal_conv(arguments["u"], torch.ones(3, 4, device=DEVICE), kernel="triton")
    assert (y.shape, taps.shape) == ((2, 0, 3), (2, 3, 3))


def test_a_step_with_gradients_is_a_scan_of_the_same_kernel():
    arguments = scan_arguments(1, 1, 3, 2, 1.0, 0)
    rows = {k: x[:, 0] if x.ndim == 3 and k != "initial_state" else x for k, x in arguments.items()}
    state = rows.pop("initial_state")
    rows["u"].requires_grad_()
    y, _ = selective_step(**rows, delta_softplus=True, state=state, kernel="triton")
    assert "_Scan" in type(y.grad_fn.next_functions[0][0]).__name__
    y, _ = conv_step(rows["u"], torch.ones(3, 4, device=DEVICE), None, state[:, :1].expand(1, 3, 3), kernel="triton")
    assert "_Conv" in type(y.grad_fn.next_functions[0][0]).__name__


@torch.no_grad()
def test_a_stack_steps_as_it_scans(monkeypatch):
    monkeypatch.setenv("ICRL_KERNEL", "triton")
    torch.manual_seed(0)
    mamba = Mamba(MambaConfig(d_model=4, n_layers=1, d_state=2)).to(DEVICE)
    x = torch.randn(2, 10, 4, device=DEVICE)
    forget = torch.zeros(2, 10, dtype=torch.bool, device=DEVICE)
    forget[0, 6] = True
    whole, end = mamba(x, None, forget)
    carry, steps = mamba.initial_carry(2), []
    for t in range(10):
        carry = mamba.forget(carry, forget[:, t])
        y, carry = mamba.step(x[:, t], carry)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=1e-5, atol=1e-6)
    for stepped, scanned in zip(carry[0], end[0], strict=True):
        torch.testing.assert_close(stepped, scanned, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(INTERPRETED, reason="one program after the other")
def test_two_runs_give_the_same_bits():
    arguments = scan_arguments(4, 500, 130, 16, 1.0, 0)
    first, second = (results_and_gradients(selective_scan, arguments, kernel="triton") for _ in range(2))
    assert all(torch.equal(first[name], value) for name, value in second.items())

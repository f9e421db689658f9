"""The readable scan, step and convolution: worked by hand, and differentiable."""

import math

import pytest
import torch

from icrl_agents.errors import InputError
from icrl_agents.kernels import causal_conv, conv_step, selective_scan, selective_step

DOUBLE = torch.float64


def column(*values):
    """A sequence of one channel ``[1, L, 1]``."""
    return torch.tensor(values, dtype=DOUBLE).view(1, -1, 1)


def scan_by_hand(forget_before=None, z=None):
    """Two steps, one channel, one state, decay exp(-ln 2 * 1) = 1/2 a step of size 1."""
    return selective_scan(
        u=column(4.0, 2.0),
        delta=column(1.0, 1.0),
        A=torch.tensor([[-math.log(2)]], dtype=DOUBLE),
        B=column(1.0, 3.0),
        C=column(1.0, 10.0),
        D=torch.tensor([0.5], dtype=DOUBLE),
        z=z,
        delta_softplus=False,
        initial_state=torch.full((1, 1, 1), 8.0, dtype=DOUBLE),
        forget_before=forget_before,
    )


def test_scan_by_hand():
    y, state = scan_by_hand()
    # h1 = 8/2 + 1*4 = 8, y1 = 8 + 2;  h2 = 8/2 + 3*2 = 10, y2 = 10*10 + 1
    torch.testing.assert_close(y, column(10.0, 101.0))
    torch.testing.assert_close(state, column(10.0))


def test_a_forgotten_state_is_zero_before_the_step():
    y, state = scan_by_hand(forget_before=torch.tensor([[False, True]]))
    torch.testing.assert_close(y, column(10.0, 61.0))  # h2 = 0 + 3*2
    torch.testing.assert_close(state, column(6.0))


def test_the_gate_multiplies_by_silu():
    y, _ = scan_by_hand(z=column(0.0, math.log(3)))
    torch.testing.assert_close(y, column(0.0, 101.0 * math.log(3) * 0.75))  # sigmoid(ln 3) = 3/4


def test_softplus_and_bias_apply_to_delta():
    one = torch.ones(1, dtype=DOUBLE)
    delta = column(math.log(math.expm1(1.0)) - 1.0)  # softplus(delta + 1) = 1
    y, state = selective_scan(column(4.0), delta, -one[:, None], column(1.0), column(1.0), delta_bias=one)
    torch.testing.assert_close(y, column(4.0))
    torch.testing.assert_close(state, column(4.0))


def test_convolution_by_hand():
    x = column(1.0, 2.0, 3.0)
    weight = torch.tensor([[100.0, 10.0, 1.0]], dtype=DOUBLE)  # K = 3, the present last
    bias = torch.tensor([50.0], dtype=DOUBLE)
    taps = column(8.0, 9.0)
    y, final = causal_conv(x, weight, bias, taps)
    # silu(v) is v to 1e-16 here
    torch.testing.assert_close(y, column(50.0 + 891, 50.0 + 912, 50.0 + 123))
    torch.testing.assert_close(final, column(2.0, 3.0))


def test_convolution_does_not_see_across_a_forget():
    x = column(1.0, 2.0, 3.0)
    weight = torch.tensor([[100.0, 10.0, 1.0]], dtype=DOUBLE)
    bias = torch.tensor([50.0], dtype=DOUBLE)
    forget = torch.tensor([[False, True, False]])
    y, final = causal_conv(x, weight, bias, column(8.0, 9.0), forget)
    torch.testing.assert_close(y, column(50.0 + 891, 50.0 + 2, 50.0 + 23))
    torch.testing.assert_close(final, column(2.0, 3.0))
    _, final = causal_conv(x, weight, bias, column(8.0, 9.0), forget.roll(1, 1))
    torch.testing.assert_close(final, column(0.0, 3.0))


def test_gradients_of_the_scan():
    torch.manual_seed(0)
    batch, length, channels, states = 2, 4, 3, 2
    shapes = [(batch, length, channels)] * 2 + [(channels, states)] + [(batch, length, states)] * 2
    shapes += [(channels,), (batch, length, channels), (channels,), (batch, states, channels)]
    arguments = [torch.randn(shape, dtype=DOUBLE, requires_grad=True) for shape in shapes]
    forget = torch.tensor([[False, False, True, False], [True, False, False, False]])

    def scan(u, delta, A, B, C, D, z, delta_bias, initial_state):
        return selective_scan(u, delta, -A.exp(), B, C, D, z, delta_bias, True, initial_state, forget)

    assert torch.autograd.gradcheck(scan, arguments)


def test_a_step_leaves_the_state_it_was_given():
    torch.manual_seed(0)
    state = torch.randn(2, 3, 4)
    before = state.clone()
    A, D = -torch.rand(4, 3), torch.rand(4)
    selective_step(
        torch.randn(2, 4),
        torch.randn(2, 4),
        A,
        torch.randn(2, 3),
        torch.randn(2, 3),
        D,
        None,
        None,
        True,
        state,
    )
    assert torch.equal(state, before)


def test_shapes_that_do_not_fit_are_named():
    u = torch.zeros(2, 5, 3)
    with pytest.raises(InputError, match=r"B: expected shape \[2, 5, 4\]"):
        selective_scan(u, u, torch.zeros(3, 4), torch.zeros(2, 5, 1), torch.zeros(2, 5, 4))
    with pytest.raises(InputError, match="u: expected"):
        selective_scan(u[0], u[0], torch.zeros(3, 4), u, u)
    with pytest.raises(InputError, match=r"A: expected \[channels, states\]"):
        selective_scan(u, u, torch.zeros(()), u, u)
    with pytest.raises(InputError, match="initial_taps"):
        causal_conv(u, torch.zeros(3, 4), initial_taps=torch.zeros(2, 4, 3))
    with pytest.raises(InputError, match=r"weight: expected shape \[3, 1\]"):
        causal_conv(u, torch.zeros(3, 0))


def test_a_mask_is_bool_and_beside_the_inputs():
    """Kernels read its bytes."""
    u, states = torch.zeros(2, 5, 3), torch.zeros(2, 5, 4)
    for mask in (torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5, device="meta").bool()):
        with pytest.raises(InputError, match=r"forget_before: expected torch\.bool on cpu"):
            selective_scan(u, u, torch.zeros(3, 4), states, states, forget_before=mask)
        with pytest.raises(InputError, match=r"forget_before: expected torch\.bool on cpu"):
            causal_conv(u, torch.zeros(3, 4), forget_before=mask)


STEP_SHAPES = {
    "u": (2, 3),
    "delta": (2, 3),
    "A": (3, 4),
    "B": (2, 4),
    "C": (2, 4),
    "D": (3,),
    "z": (2, 3),
    "delta_bias": (3,),
    "state": (2, 4, 3),
}
CONV_STEP_SHAPES = {"x": (2, 3), "weight": (3, 4), "bias": (3,), "taps": (2, 3, 3)}


def grown(shapes):
    """Each argument of a step with one of its axes longer by one, or with one axis more."""
    for name, shape in shapes.items():
        for axis in range(len(shape)):
            yield name, (*shape[:axis], shape[axis] + 1, *shape[axis + 1 :])
        yield name, (*shape, 1)


@pytest.mark.parametrize("kernel", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("step", "shapes", "options"),
    [(selective_step, STEP_SHAPES, {"delta_softplus": True}), (conv_step, CONV_STEP_SHAPES, {})],
    ids=["scan", "convolution"],
)
def test_a_step_refuses_every_shape_that_does_not_fit(step, shapes, options, kernel):
    """Compiled code reads and writes where it is told to: a wrong shape would end the process."""
    arguments = {name: torch.zeros(shape) for name, shape in shapes.items()}
    step(**arguments, **options, kernel=kernel)
    for name, shape in grown(shapes):
        with pytest.raises(InputError, match=r"expected (shape )?\["):
            step(**arguments | {name: torch.zeros(shape)}, **options, kernel=kernel)
    for name, shape in shapes.items():
        if name not in ("u", "x", "A", "weight"):  # these say what the others have to be
            with pytest.raises(InputError, match=rf"^{name}: expected shape"):
                step(**arguments | {name: torch.zeros(7, *shape[1:])}, **options, kernel=kernel)


def test_six_inputs_with_the_carry_of_two_rows_are_refused():
    x = torch.zeros(6, 3)
    with pytest.raises(InputError, match=r"taps: expected shape \[6, 3, 3\], got \[2, 3, 3\]"):
        conv_step(x, torch.zeros(3, 4), None, torch.zeros(2, 3, 3))
    B = torch.zeros(6, 4)
    with pytest.raises(InputError, match=r"state: expected shape \[6, 4, 3\], got \[2, 4, 3\]"):
        selective_step(x, x, torch.zeros(3, 4), B, B, None, None, None, True, torch.zeros(2, 4, 3))

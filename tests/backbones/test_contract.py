"""What every registered backbone must do: the contract in icrl_agents.backbones.base."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from icrl_agents.backbones import carry_bytes, clone_carry
from icrl_agents.testing import check_backbone

TOLERANCE = 1e-5

seeds = st.integers(0, 2**20)


def assert_same(a, b):
    """Relative to the largest output."""
    assert a.shape == b.shape
    assert (a - b).abs().max() <= TOLERANCE * b.abs().max()


def inputs(backbone, batch, length, seed, forgetting=0.0):
    """``[B, L, D]`` inputs and ``[B, L]`` forgets of that probability."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, backbone.d_model, generator=generator)
    return x, torch.rand(batch, length, generator=generator) < forgetting


def stepped(backbone, x, forget, carry=None):
    """The outputs of one step after the other, and the last carry."""
    carry = backbone.initial_carry(len(x)) if carry is None else clone_carry(carry)
    outputs = []
    for t in range(x.shape[1]):
        carry = backbone.forget(carry, forget[:, t])
        y, carry = backbone.step(x[:, t], carry)
        outputs.append(y)
    return torch.stack(outputs, 1), carry


def assert_same_future(backbone, a, b, batch):
    """Two carries from which everything that follows is the same."""
    x, _ = inputs(backbone, batch, 8, seed=99)
    nothing = torch.zeros(batch, 8, dtype=torch.bool)
    assert_same(stepped(backbone, x, nothing, a)[0], stepped(backbone, x, nothing, b)[0])
    assert_same(backbone(x, a)[0], backbone(x, b)[0])


@settings(max_examples=12, deadline=None)
@given(
    batch=st.integers(2, 4),
    length=st.integers(2, 40),
    forgetting=st.sampled_from([0.0, 0.1, 0.5]),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    seed=seeds,
)
def test_the_contract(backbone, batch, length, forgetting, cuts, seed):
    check_backbone(backbone, batch=batch, length=length, forgetting=forgetting, cuts=cuts, seed=seed)


@torch.no_grad()
def test_a_single_row_and_a_single_step(backbone):
    x, forget = inputs(backbone, 1, 1, seed=0)
    assert_same(backbone(x)[0], stepped(backbone, x, forget)[0])


@torch.no_grad()
def test_the_past_matters_until_it_is_forgotten(backbone):
    x, forget = inputs(backbone, 1, 12, seed=0)
    other = x.clone()
    other[:, 8] += 1.0
    assert (backbone(x)[0] - backbone(other)[0])[:, 11].abs().max() > 1e-4
    forget[:, 9] = True
    a, b = backbone(x, None, forget)[0], backbone(other, None, forget)[0]
    assert torch.equal(a[:, 9:], b[:, 9:])


@torch.no_grad()
def test_a_clone_shares_nothing(backbone):
    x, forget = inputs(backbone, 2, 9, seed=3)
    _, carry = backbone(x)
    clone = clone_carry(carry)
    kept = [leaf.clone() for leaf in pytree.tree_leaves(clone)]
    stepped_on = carry
    for t in range(9):
        _, stepped_on = backbone.step(x[:, t], stepped_on)  # consumes, may write in place
    assert all(torch.equal(a, b) for a, b in zip(kept, pytree.tree_leaves(clone), strict=True))
    assert_same_future(backbone, clone, backbone(x, None, forget)[1], 2)


def test_a_carry_grows_with_its_rows(backbone):
    assert carry_bytes(backbone.initial_carry(6)) == 2 * carry_bytes(backbone.initial_carry(3))


def test_gradients_of_steps_are_those_of_forward(backbone):
    x, forget = inputs(backbone, 2, 7, seed=5, forgetting=0.2)
    weights = list(backbone.parameters())
    direction = torch.randn(2, 7, backbone.d_model, generator=torch.Generator().manual_seed(6))
    of_forward = torch.autograd.grad(backbone(x, None, forget)[0], weights, direction, allow_unused=True)
    of_steps = torch.autograd.grad(stepped(backbone, x, forget)[0], weights, direction, allow_unused=True)
    for a, b in zip(of_forward, of_steps, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a - b).abs().max() <= 1e-4 * b.abs().max() + 1e-7


def test_gradients_flow_through_the_carry(backbone):
    """Two chunks with the carry between them: the gradient of the whole."""
    x, _ = inputs(backbone, 2, 10, seed=7)
    weights = list(backbone.parameters())
    direction = torch.randn(2, 4, backbone.d_model, generator=torch.Generator().manual_seed(8))
    _, carry = backbone(x[:, :6])
    chunked = torch.autograd.grad(backbone(x[:, 6:], carry)[0], weights, direction, allow_unused=True)
    whole = torch.autograd.grad(backbone(x)[0][:, 6:], weights, direction, allow_unused=True)
    for a, b in zip(chunked, whole, strict=True):
        if b is not None:
            assert (a - b).abs().max() <= 1e-4 * b.abs().max() + 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_initial_carry_takes_a_dtype(backbone, dtype):
    carry = backbone.initial_carry(2, dtype=dtype, device="cpu")
    floating = [leaf for leaf in pytree.tree_leaves(carry) if leaf.is_floating_point()]
    assert floating
    assert all(leaf.dtype == dtype for leaf in floating)

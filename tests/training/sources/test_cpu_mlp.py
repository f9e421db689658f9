"""Compiled networks against PyTorch's own in float64."""

from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from icrl_agents.kernels.choice import forced_kernel
from icrl_agents.training.sources import cpu_mlp
from icrl_agents.training.sources.batched import mlp_forward
from icrl_agents.training.sources.mlp_loops import CHUNK


def networks(members: int, sizes: tuple[int, ...], seed: int) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(members, i, o, generator=generator) / i**0.5 for i, o in pairwise(sizes)]
    return weights, [torch.randn(members, 1, o, generator=generator) / 3 for o in sizes[1:]]


def reference(weights: list[Tensor], biases: list[Tensor], x: Tensor, squashes: bool) -> Tensor:
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = x @ weight + bias
        x = x.tanh() if squashes else x.relu()
    return x @ weights[-1] + biases[-1]


@settings(max_examples=25, deadline=None)
@given(
    members=st.integers(1, 4),
    samples=st.sampled_from([1, 3, 64, 65, CHUNK - 1, CHUNK, CHUNK + 5, 3 * CHUNK + 1]),
    inputs=st.integers(1, 80),
    hidden=st.lists(st.sampled_from([64, 128, 192]), min_size=1, max_size=3),
    outputs=st.integers(1, 70),
    squashes=st.booleans(),
    wanted=st.sampled_from(["all", "inputs", "parameters"]),
    seed=st.integers(0, 2**16),
)
def test_outputs_and_gradients(members, samples, inputs, hidden, outputs, squashes, wanted, seed):
    weights, biases = networks(members, (inputs, *hidden, outputs), seed)
    x = torch.randn(members, samples, inputs, generator=torch.Generator().manual_seed(seed + 1))
    given = [x] if wanted == "inputs" else [*weights, *biases] if wanted == "parameters" else [x, *weights, *biases]
    for tensor in given:
        tensor.requires_grad_()
    assert cpu_mlp.serves(weights, biases, x)
    out = cpu_mlp.forward(weights, biases, x, squashes)
    exact = [[t.detach().double() for t in ts] for ts in (weights, biases, [x])]
    names = dict(zip(map(id, [*weights, *biases, x]), [t for ts in exact for t in ts], strict=True))
    doubles = [names[id(tensor)].requires_grad_() for tensor in given]
    expected = reference(exact[0], exact[1], exact[2][0], squashes)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(cpu_mlp.forward(weights, biases, x, squashes), out)
    if not squashes:  # a unit within rounding of 0 may fall to either side
        exact_slopes = all((unit.abs() > 1e-5).all() for unit in _before_activation(exact[0], exact[1], exact[2][0]))
        if not exact_slopes:
            return
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed + 2))
    for ours, theirs in zip(
        torch.autograd.grad(out, given, slope), torch.autograd.grad(expected, doubles, slope.double()), strict=True
    ):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=2e-6 * float(theirs.abs().max() + 1))


def _before_activation(weights: list[Tensor], biases: list[Tensor], x: Tensor) -> list[Tensor]:
    units = []
    with torch.no_grad():
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            units.append(x @ weight + bias)
            x = units[-1].relu()
    return units


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_tiny_and_huge_inputs(activation):
    """Where tanh is x, where it is 1, and what is not a number stays so."""
    weights, biases = [torch.ones(1, 1, 64), torch.zeros(1, 64, 1)], [torch.zeros(1, 1, 64), torch.zeros(1, 1, 1)]
    weights[1][0, 0] = 1.0
    x = torch.tensor([0.0, 1e-20, 1e-6, -1e-3, 0.29, 0.31, -5.0, 40.0, 1e30, float("nan")]).view(1, -1, 1)
    out = cpu_mlp.forward(weights, biases, x, activation == "tanh")
    expected = x.tanh() if activation == "tanh" else x.relu()
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=0, equal_nan=True)


def test_a_network_does_not_depend_on_those_beside_it():
    weights, biases = networks(5, (9, 64, 64, 2), 0)
    x = torch.randn(5, 300, 9, generator=torch.Generator().manual_seed(1))
    together = cpu_mlp.forward(weights, biases, x, True)
    alone = cpu_mlp.forward([w[3:4] for w in weights], [b[3:4] for b in biases], x[3:4], True)
    assert torch.equal(together[3:4], alone)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_both_ways_of_mlp_forward_agree(activation):
    """Compiled from 64 samples on where the layers are whole panels; without numba never."""
    for sizes in ((9, 64, 64, 2), (9, 50, 2), (9, 2)):
        weights, biases = networks(3, sizes, 0)
        for samples in (7, 70):
            x = torch.randn(3, samples, 9, generator=torch.Generator().manual_seed(1))
            with forced_kernel("reference"):
                expected = mlp_forward(weights, biases, x, activation)
            torch.testing.assert_close(mlp_forward(weights, biases, x, activation), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("squashes", [True, False])
def test_each_row_through_a_network_of_its_choice(squashes):
    weights, biases = networks(4, (9, 50, 64, 3), 0)
    which = np.array([3, 0, 0, 2, 1, 3, 3], np.int32)
    x = torch.randn(7, 9, generator=torch.Generator().manual_seed(1))
    chosen = torch.from_numpy(which).long()
    expected = reference([w[chosen] for w in weights], [b[chosen] for b in biases], x[:, None], squashes)[:, 0]
    torch.testing.assert_close(
        cpu_mlp.forward_each(weights, biases, which, x, squashes), expected, rtol=1e-5, atol=1e-5
    )


def test_what_does_not_fit_is_left_to_pytorch_or_refused():
    weights, biases = networks(3, (9, 64, 2), 0)
    x = torch.zeros(3, 100, 9)
    assert cpu_mlp.serves(weights, biases, x)
    shared = [biases[0][:1], biases[1]]
    assert not cpu_mlp.serves(weights, shared, x)
    torch.testing.assert_close(mlp_forward(weights, shared, x)[0], mlp_forward(weights, biases, x)[0])
    assert not cpu_mlp.serves([weights[0][:1], weights[1]], biases, x)
    assert not cpu_mlp.serves([w.double() for w in weights], biases, x)
    with pytest.raises(RuntimeError):
        mlp_forward(weights, biases, torch.zeros(3, 100, 12))
    with pytest.raises(ValueError, match="from 12 to 64"):
        cpu_mlp.forward_each(weights, biases, np.zeros(4, int), torch.zeros(4, 12), True)
    with pytest.raises(IndexError, match="one of 3"):
        cpu_mlp.forward_each(weights, biases, np.full(4, 3), torch.zeros(4, 9), True)

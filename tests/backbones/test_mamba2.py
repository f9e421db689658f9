"""The SSD stack: its names and shapes are mamba-ssm's, and its chunks are the recurrence."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from icrl_agents.backbones.mamba2 import CHUNK, Mamba2, Mamba2Config, ssd
from icrl_agents.errors import ConfigError
from icrl_agents.kernels.reference import selective_scan
from icrl_agents.testing import check_backbone


def test_names_and_shapes_are_those_of_mamba_ssm():
    """From mamba_ssm/modules/mamba2.py with d_model=32, d_state=16, d_conv=4, expand=2, headdim=8, ngroups=1."""
    block = Mamba2(Mamba2Config(d_model=32, n_layers=1, d_state=16, head_dim=8)).layers[0].mixer
    assert {name: tuple(w.shape) for name, w in block.state_dict().items()} == {
        "dt_bias": (8,),
        "A_log": (8,),
        "D": (8,),
        "in_proj.weight": (2 * 64 + 2 * 16 + 8, 32),
        "conv1d.weight": (64 + 2 * 16, 1, 4),
        "conv1d.bias": (64 + 2 * 16,),
        "norm.weight": (64,),
        "out_proj.weight": (32, 64),
    }


def test_initialisation_is_the_authors():
    torch.manual_seed(0)
    mixer = Mamba2(Mamba2Config(d_model=256, head_dim=2)).layers[1].mixer  # 256 heads
    decay = mixer.A_log.exp()
    assert 1.0 <= decay.min() < 1.5 < 15.5 < decay.max() <= 16.0
    step_sizes = torch.nn.functional.softplus(mixer.dt_bias)
    assert 0.99e-3 <= step_sizes.min() < 1.2e-3
    assert 0.8e-1 < step_sizes.max() <= 1.01e-1
    assert mixer.D.eq(1).all()


@pytest.mark.parametrize("name", ["d_model", "n_layers", "d_state", "d_conv", "expand", "head_dim"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(ConfigError, match=name):
        Mamba2Config(**{name: 0})


def test_heads_that_do_not_fill_the_block_are_refused():
    with pytest.raises(ConfigError, match="head_dim 5 does not divide"):
        Mamba2Config(d_model=8, head_dim=5)


def s6_as_ssd(x, log_decay, B, C, state, forget):
    """The reference scan of Mamba-1, with one decay a head: A = -1 and Delta = -log_decay, which it also multiplies
    the input with."""
    size = -log_decay.repeat_interleave(x.shape[2] // log_decay.shape[2], 2)  # [B, L, E]
    A = -torch.ones(x.shape[2], B.shape[2], dtype=x.dtype)
    return selective_scan(x / size, size, A, B, C, None, None, None, False, state, forget)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 30),
    chunk=st.sampled_from([1, 4, 7, 64]),
    heads=st.integers(1, 3),
    forgetting=st.sampled_from([0.0, 0.2]),
    largest=st.sampled_from([0.1, 5.0, 1e3]),
    seed=st.integers(0, 2**20),
)
@example(batch=2, length=3 * CHUNK + 5, chunk=CHUNK, heads=2, forgetting=0.02, largest=1e3, seed=0)
def test_chunks_are_the_recurrence(batch, length, chunk, heads, forgetting, largest, seed):
    """Outputs, final state and gradients of everything, in float32, against the sequential float64 reference."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, 2 * heads, generator=generator)
    log_decay = -(largest ** (4 * torch.rand(batch, length, heads, generator=generator) - 3))  # largest^-3 .. largest
    B, C = torch.randn(2, batch, length, 5, generator=generator)
    state = torch.randn(batch, 5, 2 * heads, generator=generator)
    forget = torch.rand(batch, length, generator=generator) < forgetting
    real = (x, log_decay, B, C, state)
    down = [torch.randn(*x.shape, generator=generator), torch.randn(*state.shape, generator=generator)]

    def run(of, dtype, *more):
        leaves = [t.to(dtype).requires_grad_() for t in real]
        outputs = of(*leaves, forget if forgetting else None, *more)
        return [*outputs, *torch.autograd.grad(outputs, leaves, [d.to(dtype) for d in down])]

    found, expected = run(ssd, torch.float32, chunk), run(s6_as_ssd, torch.float64)
    for name, a, b in zip(("y", "state", "dx", "dlog_decay", "dB", "dC", "dstate"), found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max() + 1e-7, name


def test_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    forget = torch.tensor([[False, False, True, False, False]])
    arguments = (draw(1, 5, 4), draw(1, 5, 2).detach().abs().neg().requires_grad_(), draw(1, 5, 3), draw(1, 5, 3))
    assert torch.autograd.gradcheck(lambda *real: ssd(*real, forget, 2), (*arguments, draw(1, 3, 4)))


def test_the_contract_over_many_chunks(make_tiny):
    backbone = make_tiny("mamba2", {"d_model": 8, "n_layers": 2, "d_state": 4, "head_dim": 8})
    length = 3 * CHUNK + 9
    check_backbone(backbone, length=length, forgetting=0.02, cuts=(CHUNK, CHUNK + 1, 2 * CHUNK + 30))

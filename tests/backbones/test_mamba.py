"""The S6 stack: its names and shapes are mamba-ssm's, and its kernels agree."""

import math

import pytest
import torch

from icrl_agents.backbones.mamba import Mamba, MambaConfig
from icrl_agents.errors import ConfigError


def test_names_and_shapes_are_those_of_mamba_ssm():
    """From mamba_ssm/modules/mamba_simple.py with d_model=32, d_state=16, d_conv=4, expand=2."""
    block = Mamba(MambaConfig(d_model=32, n_layers=1)).layers[0].mixer
    assert {name: tuple(w.shape) for name, w in block.state_dict().items()} == {
        "A_log": (64, 16),
        "D": (64,),
        "in_proj.weight": (128, 32),
        "conv1d.weight": (64, 1, 4),
        "conv1d.bias": (64,),
        "x_proj.weight": (2 + 32, 64),
        "dt_proj.weight": (64, 2),
        "dt_proj.bias": (64,),
        "out_proj.weight": (32, 64),
    }


def test_initialisation_is_the_papers():
    torch.manual_seed(0)
    config = MambaConfig(d_model=32, n_layers=4)
    mixer = Mamba(config).layers[2].mixer
    torch.testing.assert_close(mixer.A_log.exp()[5], torch.arange(1.0, 17.0))  # S4D-real: A_n = -n
    step_sizes = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert step_sizes.min() >= 0.99e-3
    assert step_sizes.max() <= 1.01e-1
    assert mixer.D.eq(1).all()
    assert mixer.out_proj.weight.abs().max() <= 1 / math.sqrt(64) / math.sqrt(4)  # nn.Linear's bound / sqrt(layers)


@pytest.mark.parametrize(("d_model", "rank"), [(16, 1), (17, 2), (96, 6)])
def test_automatic_rank_is_a_sixteenth_rounded_up(d_model, rank):
    assert MambaConfig(d_model=d_model).delta_rank == rank


@pytest.mark.parametrize("name", ["d_model", "n_layers", "d_state", "d_conv", "expand", "dt_rank"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(ConfigError, match=name):
        MambaConfig(**{name: 0})


def test_kernels_agree_on_the_whole_stack(make_tiny, monkeypatch):
    backbone = make_tiny("mamba", {"d_model": 40, "n_layers": 2})
    x, direction = torch.randn(2, 2, 30, 40, generator=torch.Generator().manual_seed(0))
    forget = torch.zeros(2, 30, dtype=torch.bool)
    forget[0, 11] = True
    results = {}
    for kernel in ("cpu", "reference"):
        monkeypatch.setenv("ICRL_KERNEL", kernel)
        y, _ = backbone(x, None, forget)
        results[kernel] = [y, *torch.autograd.grad(y, list(backbone.parameters()), direction)]
    for fast, slow in zip(*results.values(), strict=True):
        assert (fast - slow).abs().max() <= 2e-5 * slow.abs().max()


@torch.no_grad()
def test_a_step_sees_new_weights_at_once(make_tiny):
    """-exp(A_log) is kept between steps; changing the weights must not leave it behind."""
    backbone, other = (make_tiny("mamba", {"d_model": 8, "n_layers": 1}) for _ in range(2))
    x = torch.ones(1, 8)

    def second_step(mamba):
        _, carry = mamba.step(x, mamba.initial_carry(1))
        return mamba.step(x, carry)[0]

    before = second_step(backbone)
    other.layers[0].mixer.A_log.add_(1.0)
    changed = second_step(other)
    assert not torch.equal(before, changed)
    for load in (
        lambda: backbone.load_state_dict(other.state_dict()),
        lambda: backbone.load_state_dict(other.state_dict(), assign=True),
    ):
        backbone.layers[0].mixer.A_log.sub_(1.0)
        second_step(backbone)
        load()
        assert torch.equal(second_step(backbone), changed)
    backbone.layers[0].mixer.A_log.data.sub_(1.0)  # past autograd: PyTorch does not count this change
    assert torch.equal(second_step(backbone.eval()), before)


def test_steps_under_inference_mode_and_with_gradients_mix(make_tiny):
    backbone = make_tiny("mamba", {"d_model": 8, "n_layers": 1})
    x = torch.ones(1, 8)
    with torch.inference_mode():
        expected, _ = backbone.step(x, backbone.initial_carry(1))
    y, _ = backbone.step(x, backbone.initial_carry(1))
    y.sum().backward()
    torch.testing.assert_close(y.detach(), expected)
    assert backbone.layers[0].mixer.out_proj.weight.grad.abs().max() > 0

"""A step recorded as a CUDA graph is the step."""

import pytest
import torch

from icrl_agents.backbones import clone_carry
from icrl_agents.backbones.graphed import GraphedStep
from icrl_agents.config import ModelConfig
from icrl_agents.errors import ConfigError, InputError
from icrl_agents.model import InContextModel

OPTIONS = {"d_model": 16, "n_layers": 2, "d_state": 4}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return InContextModel(ModelConfig(3, 2, "mamba", OPTIONS, head="gaussian", head_hidden=8)).eval()


def test_without_a_gpu_nothing_is_recorded(model):
    with pytest.raises(ConfigError, match="on a GPU"):
        GraphedStep(model.backbone, torch.ones(1, 16), model.backbone.initial_carry(1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@torch.no_grad()
def test_a_recorded_step_is_the_step(model):
    """Over several steps, from a carry of one's own, on through a forgotten row; earlier outputs stay as they were."""
    model.cuda()
    tokens = torch.randn(6, 2, model.layout.size, device="cuda")
    carry = model.backbone.initial_carry(2)
    recorded = GraphedStep(model, tokens[0], carry)
    _, carry = model.step(tokens[0], carry)
    graphed, outputs = clone_carry(carry), []
    forgotten = torch.tensor([True, False], device="cuda")
    for t in range(1, 6):
        if t == 3:
            carry, graphed = (model.backbone.forget(c, forgotten) for c in (carry, graphed))
        expected, carry = model.step(tokens[t], carry)
        got, graphed = recorded(tokens[t], graphed)
        outputs.append((got, expected))
    for got, expected in outputs:
        torch.testing.assert_close(got.mean, expected.mean)
        torch.testing.assert_close(got.log_std, expected.log_std)
    with pytest.raises(InputError, match="recorded for shape"):
        recorded(tokens[0, :1], graphed)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@torch.no_grad()
def test_a_recording_outlives_the_weights_it_was_made_of(model):
    model.cuda()
    x, carry = torch.randn(1, 16, device="cuda"), model.backbone.initial_carry(1)
    expected, _ = model.backbone.step(x, clone_carry(carry))
    recorded = GraphedStep(model.backbone, x, carry)
    for weight in model.parameters():
        weight.zero_()
    model.train()
    got, _ = recorded(x, carry)
    torch.testing.assert_close(got, expected)

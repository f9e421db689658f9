"""The step sizes that state space models begin with."""

import math

import pytest
import torch

from icrl_agents.backbones import make_backbone
from icrl_agents.errors import ConfigError

BIASES = {"mamba": "dt_proj.bias", "mamba2": "dt_bias"}


@pytest.mark.parametrize("backbone", BIASES)
@pytest.mark.parametrize(("low", "high"), [(1e-5, 1e-4), (1e-4, 1e-1), (0.5, 0.5)])
def test_they_are_log_uniform_between_the_bounds(backbone: str, low: float, high: float) -> None:
    torch.manual_seed(0)
    options = {"d_model": 256, "n_layers": 1, "dt_min": low, "dt_max": high}
    options |= {"head_dim": 1} if backbone == "mamba2" else {}
    bias = dict(make_backbone(backbone, options).named_parameters())[f"layers.0.mixer.{BIASES[backbone]}"]
    place = (torch.nn.functional.softplus(bias.double()).log() - math.log(low)) / max(math.log(high / low), 1e-9)
    if low == high:
        torch.testing.assert_close(torch.nn.functional.softplus(bias), torch.full_like(bias, low))
        return
    assert -0.01 <= place.min() < 0.02
    assert 0.98 < place.max() <= 1.01
    assert place.mean().item() == pytest.approx(0.5, abs=0.06)  # of 512: a standard error of 0.013


@pytest.mark.parametrize("backbone", BIASES)
@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 0.1), (-1e-3, 0.1), (0.2, 0.1), (1e-3, math.inf), (math.nan, 0.1), (1e-50, 0.1)]
)
def test_bounds_that_are_none_are_refused(backbone: str, low: float, high: float) -> None:
    with pytest.raises(ConfigError, match=f"{backbone} options: expected .* <= dt_min <= dt_max"):
        make_backbone(backbone, {"dt_min": low, "dt_max": high})

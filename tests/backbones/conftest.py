"""A small instance of every registered backbone."""

from collections.abc import Callable

import pytest
import torch

from icrl_agents.backbones import Backbone, backbone_names, make_backbone

TINY = {
    "mamba": [
        {"d_model": 12, "n_layers": 2, "d_state": 5},
        {"d_model": 8, "n_layers": 1, "d_conv": 2, "dt_rank": 3},
        {"d_model": 8, "n_layers": 2, "d_conv": 1},
    ],
    "mamba2": [
        {"d_model": 12, "n_layers": 2, "d_state": 5, "head_dim": 6},
        {"d_model": 8, "n_layers": 1, "d_state": 3, "d_conv": 1, "head_dim": 16},
    ],
    "transformer": [
        {"d_model": 12, "n_layers": 2, "n_heads": 2, "d_ff": 20, "context_length": 5},
        {
            "d_model": 8,
            "n_layers": 1,
            "n_heads": 1,
            "d_ff": 20,
            "context_length": 300,
            "position": "absolute",
        },
    ],
}
"""Options under test for each registered name; a backbone without any fails here."""


def tiny_backbone(name: str, options: dict) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = make_backbone(name, options)
    with torch.no_grad():
        for weight_name, weight in backbone.named_parameters():  # a fresh Mamba hardly writes into its state
            if weight_name.endswith(("dt_proj.bias", "dt_bias", "position_embedding")):
                weight.add_(torch.linspace(0, 2, weight.numel()).view_as(weight))
            elif weight.ndim == 2 and "A_log" not in weight_name:
                weight.mul_(2.0)
    return backbone


@pytest.fixture(scope="session")
def make_tiny() -> Callable[[str, dict], Backbone]:
    return tiny_backbone


@pytest.fixture(
    scope="session",
    params=[(name, options) for name in backbone_names() for options in TINY[name]],
    ids=lambda p: f"{p[0]}-{TINY[p[0]].index(p[1])}",
)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return tiny_backbone(*request.param)

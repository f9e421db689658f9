"""Which optimiser moves which weight, and as PyTorch's own would."""

import copy

import pytest
import torch

from icrl_agents.backbones import backbone_names
from icrl_agents.config import ModelConfig
from icrl_agents.model import InContextModel
from icrl_agents.training.optimizers import Optimizers, make_optimizer

TINY = {
    "mamba": {"d_model": 8, "n_layers": 1},
    "mamba2": {"d_model": 8, "n_layers": 1, "d_state": 4, "head_dim": 4},
    "transformer": {"d_model": 8, "n_layers": 1, "n_heads": 2, "d_ff": 8},
}


def make(backbone: str = "mamba", muon: float = 0.0) -> tuple[InContextModel, Optimizers]:
    torch.manual_seed(0)
    model = InContextModel(ModelConfig(8, 2, backbone, TINY[backbone], head_hidden=8, head_layers=2))
    optimizer = make_optimizer(model, learning_rate=0.01, muon_learning_rate=muon, betas=(0.9, 0.95), weight_decay=0.1)
    return model, optimizer


def test_only_matrices_are_decayed() -> None:
    model, optimizer = make()
    decayed, free = optimizer.param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    never = {names[id(p)].rpartition(".")[2] for p in free["params"]}
    assert {names[id(p)].rpartition(".")[2] for p in decayed["params"]} == {"weight"}
    assert {"A_log", "D", "bias"} <= never
    assert not [names[id(p)] for p in decayed["params"] if "norm" in names[id(p)]]
    assert len(decayed["params"]) + len(free["params"]) == len(names)


@pytest.mark.parametrize("backbone", [name for name in backbone_names() if name in TINY])
def test_muon_has_what_lies_between_hidden_layers(backbone: str) -> None:
    model, optimizer = make(backbone, 0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    *adam, muon = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert set().union(*adam) | muon == set(names.values())
    assert not set().union(*adam) & muon
    assert {"head.0.weight", "head.2.weight"} <= muon
    assert not muon & {"embed.weight", "head.4.weight"}
    assert all(name.endswith(".weight") and "norm" not in name and "conv" not in name for name in muon)
    assert sum(name.startswith("backbone.layers.0.") for name in muon) >= 2


def test_a_step_is_that_of_pytorchs_optimisers() -> None:
    model, optimizer = make("mamba", 0.05)
    other = copy.deepcopy(model)
    counterpart = dict(zip(model.parameters(), other.parameters(), strict=True))
    *adam, muon = optimizer.param_groups
    references = (
        torch.optim.AdamW(
            [{"params": [counterpart[p] for p in g["params"]], "weight_decay": g["weight_decay"]} for g in adam],
            lr=0.005,
            betas=(0.9, 0.95),
        ),
        torch.optim.Muon(
            [counterpart[p] for p in muon["params"]], lr=0.025, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
        ),
    )
    for _ in range(3):
        optimizer.set_learning_rate(0.005)
        optimizer.zero_grad()
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
            counterpart[parameter].grad = parameter.grad.clone()
        optimizer.step()
        for reference in references:
            reference.step()
    for parameter, expected in counterpart.items():
        torch.testing.assert_close(parameter, expected)
    assert all(set(optimizer.state[p]) == {"momentum_buffer"} for p in muon["params"])
    assert all("exp_avg" in optimizer.state[p] for group in adam for p in group["params"])

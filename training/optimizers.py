"""What moves the weights: AdamW, and Muon for the matrices inside."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from icrl_agents.model import InContextModel


class Optimizers:
    """Several optimisers of one model's parameters, as one.

    Args:
        *parts: no parameter is in two.
    """

    def __init__(self, *parts: Optimizer) -> None:
        self._parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of all."""
        return [group for part in self._parts for group in part.param_groups]

    @property
    def state(self) -> Mapping[nn.Parameter, dict[str, Any]]:
        """What each parameter's optimiser remembers of it; may be written to."""
        return {p: part.state[p] for part in self._parts for group in part.param_groups for p in group["params"]}

    def set_learning_rate(self, rate: float) -> None:
        """Every group's is ``rate`` times the group's own ``"relative_rate"``."""
        for group in self.param_groups:
            group["lr"] = rate * group["relative_rate"]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self._parts:
            part.zero_grad()

    def step(self) -> None:
        """Move every parameter."""
        for part in self._parts:
            part.step()


def make_optimizer(
    model: InContextModel,
    *,
    learning_rate: float,
    muon_learning_rate: float,
    betas: tuple[float, ...],
    weight_decay: float,
) -> Optimizers:
    """AdamW that decays matrices only: no norm, bias, A_log or D; and Muon for the matrices inside, if it has a rate.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) makes the singular values of an update equal.
    It is for matrices between hidden layers: what reads the tokens and what gives the actions stays with AdamW. The
    size of its updates is as in Liu et al. 2025, arXiv 2502.16982.

    Args:
        model: whose parameters they are.
        learning_rate: of AdamW.
        muon_learning_rate: of Muon; 0 leaves all to AdamW.
        betas: AdamW's two.
        weight_decay: of both, decoupled.
    """
    inside = {id(weight) for weight in _inner_matrices(model)} if muon_learning_rate else set()
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    by_muon: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim > 1 and name.rpartition(".")[2] != "A_log"
        (by_muon if id(parameter) in inside else decayed if matrix else free).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "relative_rate": 1.0},
        {"params": free, "weight_decay": 0.0, "relative_rate": 1.0},
    ]
    adam = AdamW(groups, lr=learning_rate, betas=(betas[0], betas[1]))
    if not by_muon:
        return Optimizers(adam)
    group = {"params": by_muon, "relative_rate": muon_learning_rate / learning_rate}
    muon = Muon([group], lr=muon_learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return Optimizers(adam, muon)


def _inner_matrices(model: InContextModel) -> Iterator[torch.Tensor]:
    """Weights of the linear layers of the backbone, and of the head but for its last."""
    head = [module for module in model.head.modules() if isinstance(module, nn.Linear)]
    for module in [*model.backbone.modules(), *head[:-1]]:
        if isinstance(module, nn.Linear):
            yield module.weight

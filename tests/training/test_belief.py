"""The second loss: what is hidden, read from what the backbone gives."""

import numpy as np
import torch

from icrl_agents.config import ModelConfig
from icrl_agents.model import InContextModel
from icrl_agents.training.belief import Belief


def make_belief(size: int = 3) -> Belief:
    torch.manual_seed(0)
    options = {"d_model": 16, "n_layers": 1, "d_state": 4}
    return Belief(InContextModel(ModelConfig(4, 2, backbone="mamba", backbone_options=options)), size)


def test_the_loss_is_in_variances_of_what_is_hidden() -> None:
    belief = make_belief()
    hidden = torch.randn(5, 7, 3) * torch.tensor([0.01, 1.0, 100.0]) + torch.tensor([5.0, 0.0, -300.0])
    belief.scale_to(hidden)
    with torch.no_grad():
        belief.reader.weight.zero_()
        belief.reader.bias.zero_()
    loss = belief.loss(torch.randn(5, 7, 16), hidden)
    assert loss.shape == (5, 7)
    np.testing.assert_allclose(loss.mean().item(), 34 / 35, rtol=1e-4)  # the variance by which it is scaled has n - 1


def test_what_never_changes_costs_nothing() -> None:
    belief = make_belief()
    hidden = torch.full((2, 3, 3), 0.7)
    belief.scale_to(hidden)
    assert torch.isfinite(belief.loss(torch.zeros(2, 3, 16), hidden)).all()


def test_it_shapes_the_memory_and_leaves_the_head_alone() -> None:
    """What was observed one step ago can only be read from memory, since tokens of one entry are hidden here."""
    belief = make_belief(4)
    tokens = torch.randn(8, 20, belief.model.layout.size)
    tokens[..., belief.model.layout.previous_observation] = 0
    hidden = torch.cat([torch.zeros(8, 1, 4), tokens[:, :-1, :4]], 1)
    belief.scale_to(hidden)
    optimizer = torch.optim.Adam(belief.parameters(), 0.01)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        read, _ = belief.model.read(tokens)
        loss = belief.loss(read, hidden).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert all(parameter.grad is None for parameter in belief.model.head.parameters())

"""A second loss for students of on-policy distillation: to infer what they are not told.

A linear layer beside the agent reads the task, and what else the environment hides, from what the backbone gives at
every step; its squared error is added to that of the actions. The gradients shape the memory, the layer is thrown away:
what is shipped is the same agent. Supervised task inference, as Humplik et al. 2019 (arXiv 1905.06424) train beside
reinforcement learning.

    B sequences, L steps, D model width, b hidden entries
"""

import torch
from torch import Tensor, nn

from icrl_agents.model import InContextModel
from icrl_agents.training.windows import SMALLEST_STD


class Belief(nn.Module):
    """An agent's model and what reads its belief.

    Buffers ``mean`` and ``std`` ``[b]`` scale what is hidden to unit variance.

    Args:
        model: of the agent.
        size: b.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: InContextModel, size: int) -> None:
        super().__init__()
        self.model = model
        self.reader = nn.Linear(model.backbone.d_model, size)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def scale_to(self, hidden: Tensor) -> None:
        """Take mean and deviation from examples ``[..., b]``."""
        every = hidden.flatten(0, -2)
        self.mean.copy_(every.mean(0))
        self.std.copy_(every.std(0).clamp(min=SMALLEST_STD))

    def loss(self, read: Tensor, hidden: Tensor) -> Tensor:
        """Mean squared error of the belief ``[B, L]``, in variances of what is hidden.

        Args:
            read: outputs of the backbone ``[B, L, D]``.
            hidden: ``[B, L, b]``.
        """
        return (self.reader(read) - (hidden - self.mean) / self.std).square().mean(-1)

"""A count of the optimizer steps that PyTorch does not count.

A fused optimizer writes weights without raising their ``_version``: whoever keeps something computed from weights
compares :func:`fused_steps` beside the versions.
"""

from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

_steps = 0


def fused_steps() -> int:
    """Steps of fused optimizers in this process so far."""
    return _steps


def _count(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    global _steps
    _steps += any(group.get("fused") for group in optimizer.param_groups)


register_optimizer_step_post_hook(_count)

"""The step sizes Delta that state space models begin with, which decide how long they remember.

A state with decay A forgets within 1 / (Delta |A|) steps. Initial step sizes are log-uniform between two bounds, by
default 0.001 and 0.1 (arXiv 2312.00752, section 3.6), so that the slowest states, with A = -1, keep things for a
thousand steps. Training moves them little: in agents trained with these bounds no state keeps anything for longer than
1,300 steps. A life of thousands of steps wants a smaller lower bound.
"""

import math

import torch
from torch import Tensor

from icrl_agents.errors import ConfigError

SMALLEST, LARGEST = 1e-12, 1e3
"""Bounds of the bounds: beyond them biases are not finite in float32, or states forget within a step."""


def check_step_sizes(backbone: str, dt_min: float, dt_max: float) -> None:
    """Refuse bounds that are none.

    Raises:
        ConfigError: they are.
    """
    if not SMALLEST <= dt_min <= dt_max <= LARGEST:
        raise ConfigError(
            f"{backbone} options: expected {SMALLEST} <= dt_min <= dt_max <= {LARGEST}, got {dt_min} and {dt_max}"
        )


def initial_step_biases(size: int, dt_min: float, dt_max: float) -> Tensor:
    """Random biases ``[size]``, whose softplus is log-uniform between the bounds."""
    dt = torch.exp(torch.empty(size).uniform_(math.log(dt_min), math.log(dt_max)))
    return dt + torch.log(-torch.expm1(-dt))

"""What an agent steps with: where its model is, in which precision, by which kernel."""

from typing import get_args

import torch

from icrl_agents.backbones import Backbone, Precision
from icrl_agents.backbones.mamba import Mamba
from icrl_agents.backbones.mamba2 import Mamba2
from icrl_agents.errors import ConfigError
from icrl_agents.kernels.choice import CONV_STEP, STEP, VARIABLE, choose, named_kernel
from icrl_agents.model import BackboneStep, InContextModel


def device_for(precision: Precision, kernel: str | None) -> str:
    """The GPU if there is one, and what is asked for runs there."""
    on_gpu = torch.cuda.is_available() and precision == "float32" and (kernel or named_kernel()) != "cpu"
    return "cuda" if on_gpu else "cpu"


def move_to(model: InContextModel, device: torch.device | str) -> None:
    """The weights to ``device``."""
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:  # no such device, or none on this machine
        first_line = str(error).partition("\n")[0]
        raise ConfigError(f"the model cannot run on device {str(device)!r}: {first_line}") from None


def require_kernel(model: InContextModel, kernel: str, precision: Precision) -> None:
    """Raise unless a kernel can run the model where it is."""
    if not isinstance(model.backbone, Mamba | Mamba2):
        name = type(model.backbone).__name__
        raise ConfigError(f"a backbone {name} has no kernels to choose from, got kernel={kernel!r}")
    choose(kernel, STEP if isinstance(model.backbone, Mamba) else CONV_STEP, model.token_mean)
    if precision != "float32" and kernel != "cpu":
        raise ConfigError(f"steps in {precision} run with kernel 'cpu' alone, got kernel={kernel!r}")


def backbone_step(backbone: Backbone, precision: Precision, kernel: str | None) -> BackboneStep | None:
    """What steps in that precision, by the kernel that was named; None is the backbone itself."""
    if precision not in get_args(Precision):
        raise ConfigError(f"unknown precision {precision!r}; known: {', '.join(get_args(Precision))}")
    if precision == "float32":
        return None
    if not isinstance(backbone, Mamba):
        raise ConfigError(f"a {type(backbone).__name__} steps in float32 only, not in {precision}")
    named = kernel or named_kernel()
    if named not in (None, "cpu"):
        raise ConfigError(f"steps in {precision} run with kernel 'cpu' alone, {VARIABLE} names {named!r}")
    return backbone.pack(precision).step

"""What a result of training may depend on beside its settings, for ``training.json``."""

import importlib.metadata
import platform
from typing import Any

import torch

from icrl_agents.model import InContextModel


def circumstances(model: InContextModel, device: torch.device) -> dict[str, Any]:
    """Size of the model, where it was trained, and by which versions."""
    packages = ("icrl-agents", "gymnasium", "mujoco", "numba", "numpy", "torch")
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
    }

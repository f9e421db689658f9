"""Agents that learn a new task from interaction alone, with no weight update.

Importing this package registers the environments ``icrl/...-v0`` with Gymnasium. PyTorch is loaded when the
first name that needs it is used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import icrl_agents.envs  # registers the environments
import icrl_agents.forks  # noqa: F401  notes forks from here on

if TYPE_CHECKING:
    from icrl_agents.agent import InContextAgent
    from icrl_agents.backbones import register_backbone
    from icrl_agents.config import AgentConfig, ModelConfig
    from icrl_agents.envs import sample_tasks, task_split
    from icrl_agents.errors import IcrlError
    from icrl_agents.evaluation import EvalResult, evaluate
    from icrl_agents.hub import agent_names
    from icrl_agents.model import InContextModel
    from icrl_agents.publishing import push_to_hub
    from icrl_agents.wrappers import (
        ExperienceObservation,
        TrialWrapper,
        VectorExperienceObservation,
        VectorTrialWrapper,
    )

_HOME = {
    "AgentConfig": "config",
    "EvalResult": "evaluation",
    "ExperienceObservation": "wrappers",
    "IcrlError": "errors",
    "InContextAgent": "agent",
    "InContextModel": "model",
    "ModelConfig": "config",
    "TrialWrapper": "wrappers",
    "VectorExperienceObservation": "wrappers",
    "VectorTrialWrapper": "wrappers",
    "agent_names": "hub",
    "evaluate": "evaluation",
    "push_to_hub": "publishing",
    "register_backbone": "backbones",
    "sample_tasks": "envs",
    "task_split": "envs",
}
"""Public name -> module it is loaded from on first use (PEP 562)."""

__all__ = [
    "AgentConfig",
    "EvalResult",
    "ExperienceObservation",
    "IcrlError",
    "InContextAgent",
    "InContextModel",
    "ModelConfig",
    "TrialWrapper",
    "VectorExperienceObservation",
    "VectorTrialWrapper",
    "agent_names",
    "evaluate",
    "push_to_hub",
    "register_backbone",
    "sample_tasks",
    "task_split",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("icrl-agents")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Small models and agents for all tests."""

import contextlib
import os
import sys
from collections.abc import Callable

import pytest
import torch

if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
    os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo's own default wants a display; it decides when it is imported

with contextlib.suppress(ImportError):
    # Its LLVM crashes in a process that rendered in software, with Mesa's LLVM, before; the other way round they live
    # together. PyTorch's optimisers import it wherever it is installed.
    import triton  # noqa: F401

import mujoco

from icrl_agents.agent import InContextAgent
from icrl_agents.config import AgentConfig, ModelConfig
from icrl_agents.envs import task_split
from icrl_agents.model import InContextModel

torch.set_num_threads(1)  # tests run in parallel processes

BACKBONES = {
    "mamba": {"d_model": 16, "n_layers": 2, "d_state": 4},
    "mamba2": {"d_model": 16, "n_layers": 2, "d_state": 4, "head_dim": 8},
    "transformer": {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 32, "context_length": 12},
}


def tiny_config(backbone: str = "mamba", observation_dim: int = 8, action_dim: int = 2, **model) -> AgentConfig:
    """An agent of a few thousand weights; by default it fits icrl/ReacherGoal-v0."""
    return AgentConfig(
        name=f"tiny-{backbone}",
        env_id="icrl/ReacherGoal-v0",
        action_low=(-1.0,) * action_dim,
        action_high=(1.0,) * action_dim,
        episode_steps=50,
        training_episodes=4,
        split="paper",
        split_hash=task_split("icrl/ReacherGoal-v0").content_hash,
        mujoco_version=mujoco.__version__,
        model=ModelConfig(observation_dim, action_dim, backbone, BACKBONES[backbone], head_hidden=8, **model),
    )


def tiny_agent(backbone: str = "mamba", *, seed: int = 0, **config) -> InContextAgent:
    """An agent of random weights whose actions depend visibly on what it remembers."""
    whole = tiny_config(backbone, **config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InContextModel(whole.model)
    with torch.no_grad():
        for name, weight in model.named_parameters():  # a fresh Mamba hardly writes into its state
            if name.endswith("dt_proj.bias"):
                weight.add_(1.0)
            elif name.endswith(("x_proj.weight", "in_proj.weight")):
                weight.mul_(4.0)
            elif name.startswith("head."):
                weight.mul_(1.5)
    return InContextAgent(model, whole)


@pytest.fixture(scope="session")
def make_config() -> Callable[..., AgentConfig]:
    return tiny_config


@pytest.fixture(scope="session")
def make_agent() -> Callable[..., InContextAgent]:
    return tiny_agent


@pytest.fixture(params=sorted(BACKBONES))
def agent(request: pytest.FixtureRequest) -> InContextAgent:
    """One agent for each kind of backbone."""
    return tiny_agent(request.param)

"""Gymnasium meta-environments with hidden tasks: gymnasium, numpy and mujoco only.

Importing this module registers them::

    icrl/ReacherGoal-v0
"""

import re
from typing import Any

import gymnasium
from gymnasium.envs.registration import load_env_creator

from icrl_agents.envs.anchors import Anchors, load_anchors
from icrl_agents.envs.definition import MetaEnvDefinition, PhysicsState, Task
from icrl_agents.envs.single import MetaEnv
from icrl_agents.envs.splits import TaskSplit, split_of
from icrl_agents.envs.vector import MetaVectorEnv
from icrl_agents.errors import UnknownNameError

_ENVS: dict[str, tuple[str, str, int]] = {
    "icrl/ReacherGoal-v0": (
        "icrl_agents.envs.reacher_goal:ReacherGoalEnv",
        "icrl_agents.envs.reacher_goal:ReacherGoalVectorEnv",
        50,
    ),
}
"""Gymnasium id -> where its single and its vector environment are, and its horizon."""


def env_ids() -> tuple[str, ...]:
    """The registered ids, sorted."""
    return tuple(sorted(_ENVS))


def short_name(env_id: str) -> str:
    """The name used in commands and agents, e.g. ``"reacher-goal"`` for ``"icrl/ReacherGoal-v0"``."""
    stem = env_id.removeprefix("icrl/").rpartition("-v")[0]
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", stem).lower()


def resolve_env_id(name: str) -> str:
    """The Gymnasium id that a short name or an id means.

    Raises:
        UnknownNameError: no such environment.
    """
    by_short_name = {short_name(env_id): env_id for env_id in _ENVS}
    if name not in _ENVS and name not in by_short_name:
        raise UnknownNameError("environment", name, by_short_name)
    return by_short_name.get(name, name)


def env_definition(env_id: str) -> MetaEnvDefinition:
    """The definition behind a registered id.

    Raises:
        UnknownNameError: no such environment.
    """
    if env_id not in _ENVS:
        raise UnknownNameError("environment", env_id, _ENVS)
    env_class: Any = load_env_creator(_ENVS[env_id][0])
    return env_class.definition


def task_split(env_id: str, name: str = "paper") -> TaskSplit:
    """A named split of an environment's tasks into train, val and test.

    Raises:
        UnknownNameError: no such environment or split.
    """
    return split_of(env_definition(env_id), name)


def sample_tasks(env_id: str, n: int, seed: int) -> list[dict[str, Any]]:
    """Draw n tasks from an environment's distribution, the same for the same seed.

    Raises:
        UnknownNameError: no such environment.
    """
    return env_definition(env_id).sample_tasks(n, seed)


for _env_id, (_entry_point, _vector_entry_point, _horizon) in _ENVS.items():
    if _env_id not in gymnasium.registry:
        gymnasium.register(
            id=_env_id,
            entry_point=_entry_point,
            vector_entry_point=_vector_entry_point,
            max_episode_steps=_horizon,
        )

__all__ = [
    "Anchors",
    "MetaEnv",
    "MetaEnvDefinition",
    "MetaVectorEnv",
    "PhysicsState",
    "Task",
    "TaskSplit",
    "env_definition",
    "env_ids",
    "load_anchors",
    "resolve_env_id",
    "sample_tasks",
    "short_name",
    "task_split",
]

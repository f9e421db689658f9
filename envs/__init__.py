"""Gymnasium meta-environments with hidden tasks: gymnasium, numpy and mujoco only.

Importing this module registers them::

    icrl/ReacherGoal-v0     reach a hidden point
    icrl/PusherGoal-v0      push a hidden object to a hidden point
    icrl/HalfCheetahVel-v0  run at a hidden speed
    icrl/AntDir-v0          walk in a hidden direction
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.registration import load_env_creator

from icrl_agents.envs.anchors import Anchors, has_anchors, load_anchors, register_anchors
from icrl_agents.envs.definition import MetaEnvDefinition, PhysicsState, Task
from icrl_agents.envs.own_modules import ADVICE, import_own_modules
from icrl_agents.envs.single import MetaEnv
from icrl_agents.envs.splits import TaskSplit, default_split_of, register_split_of, split_names_of, split_of
from icrl_agents.envs.symmetry import SignedPermutation, Symmetry
from icrl_agents.envs.vector import MetaVectorEnv
from icrl_agents.errors import ConfigError, UnknownNameError

_ENVS: dict[str, tuple[str, str, int]] = {
    "icrl/ReacherGoal-v0": (
        "icrl_agents.envs.reacher_goal:ReacherGoalEnv",
        "icrl_agents.envs.reacher_goal:ReacherGoalVectorEnv",
        50,
    ),
    "icrl/PusherGoal-v0": (
        "icrl_agents.envs.pusher_goal:PusherGoalEnv",
        "icrl_agents.envs.pusher_goal:PusherGoalVectorEnv",
        100,
    ),
    "icrl/HalfCheetahVel-v0": (
        "icrl_agents.envs.half_cheetah_vel:HalfCheetahVelEnv",
        "icrl_agents.envs.half_cheetah_vel:HalfCheetahVelVectorEnv",
        200,
    ),
    "icrl/AntDir-v0": (
        "icrl_agents.envs.ant_dir:AntDirEnv",
        "icrl_agents.envs.ant_dir:AntDirVectorEnv",
        200,
    ),
}
"""Gymnasium id -> where its single and its vector environment are, and its horizon."""


def env_ids() -> tuple[str, ...]:
    """The registered ids, sorted."""
    import_own_modules()
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
    import_own_modules()
    by_short_name = {short_name(env_id): env_id for env_id in _ENVS}
    if name not in _ENVS and name not in by_short_name:
        raise UnknownNameError("environment", name, by_short_name, ADVICE)
    return by_short_name.get(name, name)


def env_definition(env_id: str) -> MetaEnvDefinition:
    """The definition behind a registered id.

    Raises:
        UnknownNameError: no such environment.
    """
    import_own_modules()
    if env_id not in _ENVS:
        raise UnknownNameError("environment", env_id, _ENVS, ADVICE)
    env_class: Any = load_env_creator(_ENVS[env_id][0])
    return env_class.definition


def split_names(env_id: str) -> tuple[str, ...]:
    """The splits of an environment: those that come with it, sorted, then your own; none for an id not known here."""
    import_own_modules()
    return split_names_of(env_id)


def default_split(env_id: str) -> str:
    """The split that is meant where none is named: ``"paper"``, or the first that was registered.

    Raises:
        UnknownNameError: no such environment, or it has none.
    """
    return default_split_of(env_definition(env_id))


def task_split(env_id: str, name: str | None = None) -> TaskSplit:
    """A named split of an environment's tasks into train, val and test; None is ``"paper"``, or your own first one.

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


def register_meta_env(env_id: str, entry_point: str, vector_entry_point: str, horizon: int) -> None:
    """Make an environment of your own known to Gymnasium and to everything here that takes an id.

    Once more the same, as a notebook's cell may do, changes nothing.

    Args:
        env_id: ``"namespace/Name-v0"``, as its definition has it; its :func:`short_name` must be its own, too.
        entry_point: where its :class:`MetaEnv` is, ``"module:Class"``; strings, so that the ``EnvSpec`` survives JSON.
        vector_entry_point: where its :class:`MetaVectorEnv` is.
        horizon: steps per episode, as its definition has it.

    Raises:
        ConfigError: an id or a short name that is taken or no such id, an entry point that is no such string, or a
            horizon that is not a whole number of at least 1; then nothing is registered.
    """
    if _ENVS.get(env_id) == (entry_point, vector_entry_point, horizon):
        return
    if env_id in _ENVS or env_id in gymnasium.registry:
        raise ConfigError(f"an environment {env_id!r} is registered already")
    if not isinstance(env_id, str) or re.fullmatch(r"[\w:-]+/[\w:.-]+-v\d+", env_id) is None:
        raise ConfigError(f"an environment's id is 'namespace/Name-v0', got {env_id!r}")
    for known in _ENVS:
        if short_name(known) == short_name(env_id):
            raise ConfigError(f"the short name {short_name(env_id)!r} of {env_id!r} is that of {known!r}")
    for place in (entry_point, vector_entry_point):
        if not isinstance(place, str) or re.fullmatch(r"[\w.]+:\w+", place) is None:
            raise ConfigError(f"an entry point is a string 'module:Class', got {place!r}")
    if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
        raise ConfigError(f"a horizon is a whole number of at least 1, got {horizon!r}")
    _register(env_id, entry_point, vector_entry_point, horizon)
    _ENVS[env_id] = (entry_point, vector_entry_point, horizon)


def register_split(
    env_id: str,
    name: str,
    *,
    train: Sequence[Mapping[str, Any]],
    val: Sequence[Mapping[str, Any]],
    test: Sequence[Mapping[str, Any]],
    anchors: str | Path | None = None,
) -> TaskSplit:
    """Give an environment a split of your own: what is trained on, selected on, and reported on.

    Once more the same, as a notebook's cell may do, changes nothing but the file of the anchors.

    Args:
        env_id: a registered id.
        name: the first one of an environment of your own is its default.
        train: tasks to learn from.
        val: tasks to select on.
        test: tasks to report on.
        anchors: file of what ``icrl-agents anchors --out FILE`` measured on it, which evaluations normalize by; it
            need not be there yet.

    Raises:
        UnknownNameError: no such environment.
        ConfigError: a name that is taken, by a split of other tasks, or no word.
        TaskError: a part without tasks, a task that does not fit the environment, or one in two parts.
    """
    split = register_split_of(env_definition(env_id), name, train, val, test)
    if anchors is not None:
        register_anchors(env_id, name, anchors)
    return split


def _register(env_id: str, entry_point: str, vector_entry_point: str, horizon: int) -> None:
    gymnasium.register(env_id, entry_point, vector_entry_point=vector_entry_point, max_episode_steps=horizon)


for _env_id, _at in _ENVS.items():
    if _env_id not in gymnasium.registry:
        _register(_env_id, *_at)

__all__ = [
    "Anchors",
    "MetaEnv",
    "MetaEnvDefinition",
    "MetaVectorEnv",
    "PhysicsState",
    "SignedPermutation",
    "Symmetry",
    "Task",
    "TaskSplit",
    "default_split",
    "env_definition",
    "env_ids",
    "has_anchors",
    "load_anchors",
    "register_meta_env",
    "register_split",
    "resolve_env_id",
    "sample_tasks",
    "short_name",
    "split_names",
    "task_split",
]

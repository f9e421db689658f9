"""Environments of one's own are as good as the built-in ones."""

from collections.abc import Iterator

import gymnasium
import pytest

from icrl_agents import envs
from icrl_agents.envs import env_definition, env_ids, register_meta_env, resolve_env_id, sample_tasks, short_name
from icrl_agents.envs.reacher_goal import ReacherGoalEnv
from icrl_agents.errors import ConfigError

PLACES = ("icrl_agents.envs.reacher_goal:ReacherGoalEnv", "icrl_agents.envs.reacher_goal:ReacherGoalVectorEnv")


@pytest.fixture
def env_id() -> Iterator[str]:
    """An id that is forgotten after the test."""
    yield "own/Reacher-v0"
    envs._ENVS.pop("own/Reacher-v0", None)
    gymnasium.registry.pop("own/Reacher-v0", None)


def test_a_registered_id_is_known_everywhere(env_id: str) -> None:
    register_meta_env(env_id, *PLACES, horizon=50)
    assert env_id in env_ids()
    assert resolve_env_id(short_name(env_id)) == env_id
    assert env_definition(env_id) is ReacherGoalEnv.definition
    env = gymnasium.make(env_id, task=sample_tasks(env_id, 1, seed=0)[0])
    assert env.spec is not None
    assert env.spec.max_episode_steps == 50
    many = gymnasium.make_vec(env_id, num_envs=2)
    assert many.unwrapped.horizon == 50  # type: ignore[attr-defined]


def test_an_id_is_registered_once(env_id: str) -> None:
    register_meta_env(env_id, *PLACES, horizon=50)
    for taken in (env_id, "icrl/ReacherGoal-v0", "CartPole-v1"):
        with pytest.raises(ConfigError, match="registered already"):
            register_meta_env(taken, *PLACES, horizon=50)


@pytest.mark.parametrize(
    ("name", "horizon", "message"),
    [
        ("Reacher-v0", 50, "namespace/Name-v0"),
        ("own/Reacher", 50, "namespace/Name-v0"),
        ("own/Rea cher-v0", 50, "namespace/Name-v0"),
        (None, 50, "namespace/Name-v0"),
        ("icrl/ReacherGoal-v1", 50, "short name 'reacher-goal'"),
        ("own/Reacher-v0", 0, "horizon"),
        ("own/Reacher-v0", 1.5, "horizon"),
    ],
)
def test_what_cannot_be_registered_leaves_no_trace(name: str, horizon: int, message: str) -> None:
    before = env_ids(), set(gymnasium.registry)
    with pytest.raises(ConfigError, match=message):
        register_meta_env(name, *PLACES, horizon=horizon)
    assert (env_ids(), set(gymnasium.registry)) == before


@pytest.mark.parametrize("place", [ReacherGoalEnv, "icrl_agents.envs.reacher_goal"])
def test_entry_points_are_strings(env_id: str, place: object) -> None:
    with pytest.raises(ConfigError, match="module:Class"):
        register_meta_env(env_id, place, PLACES[1], horizon=50)  # type: ignore[arg-type]
    assert env_id not in env_ids()
    assert env_id not in gymnasium.registry

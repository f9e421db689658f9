"""Symmetries that definitions claim, held against the physics: turned worlds run alike."""

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl_agents.envs import SignedPermutation, Symmetry, env_definition, env_ids

ENV_ID = "icrl/AntDir-v0"
DEFINITION = env_definition(ENV_ID)
QUADRANTS = [quarter * math.pi / 2 + 0.4 for quarter in range(4)]


def vector(direction: float) -> np.ndarray:
    return DEFINITION.task_vector({"direction": direction % (2 * math.pi)})


def symmetry_of(direction: float) -> Symmetry:
    symmetry = DEFINITION.symmetry(vector(direction))
    assert symmetry is not None
    return symmetry


def walk(observation: np.ndarray, actions: np.ndarray, task: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Observations and rewards of a walk that begins in the state that was observed."""
    direction = math.atan2(task[1], task[0]) % (2 * math.pi)
    env: Any = gymnasium.make(ENV_ID, task={"direction": direction}).unwrapped
    env.reset(seed=0)
    env.set_state(np.concatenate([[0, 0], observation[:13]]), observation[13:])
    steps = [env.step(action)[:2] for action in actions]
    env.close()
    return np.array([step[0] for step in steps]), np.array([step[1] for step in steps])


@pytest.mark.parametrize("direction", QUADRANTS)
def test_the_image_of_a_walk_is_what_physics_makes_of_its_image(direction: float) -> None:
    rng = np.random.default_rng(1)
    env = gymnasium.make(ENV_ID)
    start, _ = env.reset(seed=5)
    env.close()
    actions = rng.uniform(-1, 1, (30, 8)).astype(np.float32)
    symmetry, task = symmetry_of(direction), vector(direction)
    observations, rewards = walk(start, actions, task)
    found = walk(symmetry.observation(start), symmetry.action(actions), symmetry.task(task))
    np.testing.assert_allclose(found[0], symmetry.observation(observations), atol=1e-9)
    np.testing.assert_allclose(found[1], rewards, atol=1e-9)


@pytest.mark.parametrize("direction", QUADRANTS)
def test_where_an_ant_begins_is_as_likely_turned(direction: float) -> None:
    """Initial positions are uniform around the XML's, which a symmetry maps to itself."""
    env: Any = gymnasium.make(ENV_ID).unwrapped
    middle = np.concatenate([env.init_qpos[2:], env.init_qvel])
    np.testing.assert_array_equal(symmetry_of(direction).observation(middle), middle)
    env.close()


@given(st.floats(0, 2 * math.pi, exclude_max=True))
def test_every_direction_comes_into_the_first_quadrant(direction: float) -> None:
    x, y = symmetry_of(direction).task(vector(direction))
    assert x >= -1e-12
    assert y >= -1e-12
    turned = (direction - math.atan2(y, x)) / (math.pi / 2)
    assert abs(turned - round(turned)) < 1e-9


@given(st.permutations(range(6)), st.lists(st.sampled_from([-1, 1]), min_size=6, max_size=6))
def test_an_inverse_undoes(places: list[int], signs: list[int]) -> None:
    permutation, x = SignedPermutation(np.array(places), np.array(signs)), np.arange(12.0).reshape(2, 6)
    np.testing.assert_array_equal(permutation.inverse(permutation(x)), x)
    np.testing.assert_array_equal(permutation.inverse.after(permutation)(x), x)
    pair = SignedPermutation.joined(permutation, SignedPermutation.identity(6))
    both = np.concatenate([x, x + 100], -1)
    np.testing.assert_array_equal(pair(both), np.concatenate([permutation(x), x + 100], -1))


def any_symmetry(env_id: str) -> Symmetry | None:
    definition = env_definition(env_id)
    return definition.symmetry(definition.task_vector(definition.sample_tasks(1, 0)[0]))


@pytest.mark.parametrize("env_id", [env_id for env_id in env_ids() if any_symmetry(env_id)])
def test_a_symmetry_has_the_sizes_of_what_it_turns(env_id: str) -> None:
    definition, symmetry = env_definition(env_id), any_symmetry(env_id)
    assert symmetry is not None
    env = gymnasium.make(env_id)
    shapes = (env.observation_space.shape, env.action_space.shape, (definition.task_vector_dim,))
    for part, shape in zip((symmetry.observation, symmetry.action, symmetry.task), shapes, strict=True):
        assert part.index.shape == part.sign.shape == shape
        assert sorted(part.index) == list(range(len(part.index)))
        assert set(np.abs(part.sign)) == {1}
    env.close()

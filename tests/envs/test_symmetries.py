"""Symmetries that definitions claim, held against the physics: turned or mirrored worlds run alike."""

import math
from typing import Any

import gymnasium
import numpy as np
import pytest

from icrl_agents.envs import SignedPermutation, Symmetry, env_definition, env_ids

SYMMETRIC = [env_id for env_id in env_ids() if env_definition(env_id).symmetries]


def ant(observation: np.ndarray, actions: np.ndarray, task: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Observations and rewards of a walk that begins in the state that was observed."""
    direction = math.atan2(task[1], task[0]) % (2 * math.pi)
    env: Any = gymnasium.make("icrl/AntDir-v0", task={"direction": direction}).unwrapped
    env.reset(seed=0)
    env.set_state(np.concatenate([[0, 0], observation[:13]]), observation[13:])
    steps = [env.step(action)[:2] for action in actions]
    env.close()
    return np.array([step[0] for step in steps]), np.array([step[1] for step in steps])


WALKS = {"icrl/AntDir-v0": ant}


@pytest.mark.parametrize("env_id", SYMMETRIC)
def test_the_image_of_a_walk_is_what_physics_makes_of_its_image(env_id: str) -> None:
    definition, rng = env_definition(env_id), np.random.default_rng(1)
    env = gymnasium.make(env_id)
    start, _ = env.reset(seed=5)
    actions = rng.uniform(-1, 1, (30, *(env.action_space.shape or ()))).astype(np.float32)
    task = definition.task_vector(definition.sample_tasks(1, 2)[0])
    observations, rewards = WALKS[env_id](start, actions, task)
    for symmetry in definition.symmetries:
        found = WALKS[env_id](
            symmetry.observation(start), symmetry.action(actions).astype(np.float32), symmetry.task(task)
        )
        np.testing.assert_allclose(found[0], symmetry.observation(observations), atol=1e-9)
        np.testing.assert_allclose(found[1], rewards, atol=1e-9)


@pytest.mark.parametrize("env_id", SYMMETRIC)
def test_symmetries_are_a_whole_group(env_id: str) -> None:
    """One after another is one of them again, or nothing; and no two are the same."""

    def parts(symmetry: Symmetry) -> tuple[bytes, ...]:
        every = (symmetry.observation, symmetry.action, symmetry.task)
        return tuple(np.append(part.index, part.sign).astype(np.int64).tobytes() for part in every)

    given = env_definition(env_id).symmetries
    sizes = [len(part.index) for part in (given[0].observation, given[0].action, given[0].task)]
    nothing = Symmetry(*(SignedPermutation.identity(size) for size in sizes))
    group = {parts(symmetry) for symmetry in (nothing, *given)}
    assert len(group) == len(given) + 1
    assert all(parts(a.after(b)) in group for a in given for b in given)


def test_the_ant_has_those_of_the_square() -> None:
    definition = env_definition("icrl/AntDir-v0")
    east = np.array([1.0, 0.0])
    assert len(definition.symmetries) == 7
    assert {tuple(s.task(east).round()) for s in definition.symmetries} == {(1, 0), (0, 1), (-1, 0), (0, -1)}

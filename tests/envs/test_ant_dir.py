"""Ant-Dir: rewards and health worked by hand, tasks as vectors, the angle of travel."""

import math

import gymnasium
import numpy as np
import pytest

from icrl_agents.envs import env_definition
from icrl_agents.envs.definition import PhysicsState
from icrl_agents.errors import TaskError

ENV_ID = "icrl/AntDir-v0"


def state(x: float, y: float, z: float, *, broken: bool = False) -> PhysicsState:
    """The torso at x, y by the body's lagging position and at height z by the joint's."""
    qpos, qvel, xpos = np.zeros((1, 15)), np.zeros((1, 14)), np.zeros((1, 14, 3))
    qpos[0, :3] = [99.0, 99.0, z]
    xpos[0, 1] = [x, y, 99.0]
    if broken:
        qvel[0, 7] = np.nan
    return PhysicsState(qpos, qvel, xpos)


@pytest.mark.parametrize(
    ("direction", "z", "broken", "forward", "survive"),
    [
        (0.0, 0.75, False, 2.0, 1.0),
        (math.pi / 2, 0.75, False, -4.0, 1.0),
        (math.pi, 0.2, False, -2.0, 1.0),  # the bounds themselves are healthy
        (3 * math.pi / 2, 1.0, False, 4.0, 1.0),
        (math.atan2(0.6, 0.8), 0.75, False, 2.0 * 0.8 - 4.0 * 0.6, 1.0),
        (0.0, 0.19, False, 2.0, 0.0),
        (0.0, 1.01, False, 2.0, 0.0),
        (0.0, 0.75, True, 2.0, 0.0),
    ],
)
def test_reward_and_health_by_hand(direction: float, z: float, broken: bool, forward: float, survive: float) -> None:
    """From (1, 1) to (1.1, 0.8) in 0.05 s: 2 m/s along x, -4 m/s along y."""
    definition = env_definition(ENV_ID)
    before, after = state(1.0, 1.0, 0.5), state(1.1, 0.8, z, broken=broken)
    action = np.array([[1.0, -1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.5]])  # squares sum to 2.5
    task = definition.task_vector({"direction": direction})[None]
    reward, parts = definition.reward(definition.remember(before), after, action, task)
    assert parts["reward_forward"][0] == pytest.approx(forward)
    assert parts["reward_survive"][0] == survive
    assert parts["reward_ctrl"][0] == pytest.approx(-1.25)
    assert reward[0] == pytest.approx(forward + survive - 1.25)
    assert definition.terminated(after)[0] == (survive == 0.0)


def test_task_vectors_are_unit_vectors_that_close_the_circle() -> None:
    definition = env_definition(ENV_ID)
    np.testing.assert_allclose(definition.task_vector({"direction": 0.5}), [0.8775825618903728, 0.479425538604203])
    almost_around = definition.task_vector({"direction": np.nextafter(2 * math.pi, 0)})
    np.testing.assert_allclose(almost_around, definition.task_vector({"direction": 0.0}), atol=1e-12)


def test_task_error_is_the_angle_of_the_mean_velocity() -> None:
    definition = env_definition(ENV_ID)
    directions = [0.0, math.pi / 2, 3.0, 6.2, 1.0, 0.3]
    tasks = np.stack([definition.task_vector({"direction": angle}) for angle in directions])
    travel = [0.0, 0.0, -3.0, 0.1]  # rad
    velocities = np.array([[math.cos(angle), math.sin(angle)] for angle in travel] + [[0.0, 0.0], [-2.0, -2.0]])
    steps = np.stack([velocities * 0.5, velocities * 1.5, np.full_like(velocities, np.nan)], axis=1)  # [6, 3, 2]
    steps[1, 2] = [0.0, 0.0]  # lives longer, standing still
    error = definition.task_error({"x_velocity": steps[..., 0], "y_velocity": steps[..., 1]}, tasks)
    around = 2 * math.pi
    still, away = math.pi / 2, math.pi - (0.3 - math.pi / 4)
    expected = [0.0, math.pi / 2, around - 6.0, around - 6.1, still, min(away, around - away)]
    np.testing.assert_allclose(error, expected, atol=1e-12)


@pytest.mark.parametrize("direction", [-0.01, 2 * math.pi, 7.0])
def test_other_directions_are_refused(direction: float) -> None:
    with pytest.raises(TaskError, match=rf"at least 0 and less than 2 pi rad, got {direction}"):
        gymnasium.make(ENV_ID, task={"direction": direction})


def test_directions_are_uniform() -> None:
    tasks = env_definition(ENV_ID).sample_tasks(4000, np.random.SeedSequence(0))
    counts, _ = np.histogram([task["direction"] for task in tasks], 8, (0, 2 * math.pi))
    assert counts.sum() == 4000
    assert np.abs(counts - 500).max() < 4 * np.sqrt(4000 * 7 / 64)


def test_standing_still_earns_the_survival_bonus_of_every_step() -> None:
    env = gymnasium.make(ENV_ID, task={"direction": 1.0})
    env.reset(seed=0)
    survived, steps = 0.0, 0
    done = False
    while not done:
        _, _, terminated, truncated, info = env.step(np.zeros(8))
        survived, steps = survived + info["reward_survive"], steps + 1
        done = terminated or truncated
    assert (survived, steps, terminated) == (200.0, 200, False)

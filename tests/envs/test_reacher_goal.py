"""Reacher-Goal: rewards worked by hand, what is observed, tasks."""

import gymnasium
import numpy as np
import pytest

from icrl_agents.envs import env_definition
from icrl_agents.envs.definition import PhysicsState
from icrl_agents.errors import TaskError

ENV_ID = "icrl/ReacherGoal-v0"


def test_reward_by_hand() -> None:
    definition = env_definition(ENV_ID)
    xpos = np.zeros((1, 5, 3))
    xpos[0, 3] = [0.03, 0.04, 0.01]  # fingertip
    xpos[0, 4] = [0.0, 0.0, 0.01]  # target: 0.05 m away
    state = PhysicsState(np.zeros((1, 4)), np.zeros((1, 4)), xpos)
    reward, parts = definition.reward(None, state, np.array([[0.5, -1.0]]), np.zeros((1, 2)))
    assert reward[0] == pytest.approx(-0.05 - 1.25)
    assert parts["reward_dist"][0] == pytest.approx(-0.05)
    assert parts["reward_ctrl"][0] == pytest.approx(-1.25)


def test_task_error_is_the_distance_from_the_goal_at_the_end() -> None:
    parts = {"reward_dist": np.array([[-0.4, -0.2, -0.03]]), "reward_ctrl": np.array([[-1.0, -1.0, -1.0]])}
    assert env_definition(ENV_ID).task_error(parts, np.array([[0.1, -0.03]]))[0] == pytest.approx(0.03)


def test_the_fingertip_is_observed_where_the_reward_measures_it() -> None:
    goal = np.array([0.05, -0.11])
    env = gymnasium.make(ENV_ID, task={"goal": goal.tolist()})
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(50):
        observation, *_, info = env.step(rng.uniform(-1, 1, 2))
        assert np.hypot(*(observation[6:8] - goal)) == pytest.approx(-info["reward_dist"], rel=1e-9)


def test_goals_outside_the_disk_are_refused() -> None:
    with pytest.raises(TaskError, match=r"within 0\.2 m"):
        gymnasium.make(ENV_ID, task={"goal": [0.2, 0.1]})


def test_goals_fill_the_disk_uniformly() -> None:
    goals = np.array([task["goal"] for task in env_definition(ENV_ID).sample_tasks(4000, np.random.SeedSequence(0))])
    radius = np.hypot(*goals.T)
    assert radius.max() <= 0.2
    # uniform in a disk: half of the points lie within R / sqrt(2); 4 standard deviations of a fair coin
    assert abs(np.mean(radius < 0.2 / np.sqrt(2)) - 0.5) < 4 * 0.5 / np.sqrt(4000)
    assert np.abs(goals.mean(0)).max() < 4 * 0.1 / np.sqrt(4000)

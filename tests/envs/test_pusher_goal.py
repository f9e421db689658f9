"""Pusher-Goal: rewards worked by hand, where object and goal stand, and what the arm can tell of them."""

import gymnasium
import mujoco
import numpy as np
import pytest

from icrl_agents.envs import MetaEnv, env_definition
from icrl_agents.envs.definition import PhysicsState
from icrl_agents.errors import TaskError

ENV_ID = "icrl/PusherGoal-v0"
TASK = {"object": [0.15, -0.25], "goal": [-0.06, 0.08]}
HOME = np.array([0.45, -0.05])
"""World x, y of the object's and the goal's frame in pusher_v5.xml, where v5 has its goal."""


def single(**options: object) -> MetaEnv:
    env = gymnasium.make(ENV_ID, **options).unwrapped
    assert isinstance(env, MetaEnv)
    return env


def test_reward_by_hand() -> None:
    xpos = np.zeros((1, 13, 3))
    xpos[0, 10] = [0.3, 0.1, 0.0]  # fingertip
    xpos[0, 11] = [0.3, 0.4, 0.4]  # object: 0.5 m from the fingertip
    xpos[0, 12] = [0.3, 0.4, 0.3]  # goal: 0.1 m from the object
    state = PhysicsState(np.zeros((1, 11)), np.zeros((1, 11)), xpos)
    action = np.array([[2.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.5]])  # squares sum to 5.25
    reward, parts = env_definition(ENV_ID).reward(None, state, action, np.zeros((1, 4)))
    assert parts["reward_near"][0] == pytest.approx(-0.25)
    assert parts["reward_dist"][0] == pytest.approx(-0.1)
    assert parts["reward_ctrl"][0] == pytest.approx(-0.525)
    assert reward[0] == pytest.approx(-0.875)


def test_task_error_counts_the_end_of_the_episode() -> None:
    parts = {"reward_dist": np.array([[-9.0, -0.1]]), "reward_near": np.array([[-9.0, -0.25]])}
    assert env_definition(ENV_ID).task_error(parts, np.zeros((1, 4)))[0] == pytest.approx(0.35)


def test_object_and_goal_stand_where_the_task_says() -> None:
    env = single(task=TASK)
    env.reset(seed=0)
    np.testing.assert_allclose(env.data.body("object").xpos[:2], HOME + TASK["object"], atol=1e-12)
    np.testing.assert_allclose(env.data.body("goal").xpos[:2], HOME + TASK["goal"], atol=1e-12)
    assert not env.data.qvel[-4:].any()


def test_objects_and_goals_are_those_of_the_definition() -> None:
    tasks = env_definition(ENV_ID).sample_tasks(4000, np.random.SeedSequence(0))
    objects, goals = (np.array([task[key] for task in tasks]) for key in ("object", "goal"))
    assert (objects >= [-0.2, -0.3]).all()
    assert (objects <= [0.2, 0.0]).all()
    assert np.hypot(*(objects - goals).T).min() > 0.17
    radius = np.hypot(*goals.T)
    assert radius.max() <= 0.15
    # uniform in a disk: half of the points lie within R / sqrt(2); 4 standard deviations of a fair coin
    assert abs(np.mean(radius < 0.15 / np.sqrt(2)) - 0.5) < 4 * 0.5 / np.sqrt(4000)


def test_v5_draws_its_objects_in_the_same_rectangle() -> None:
    theirs = gymnasium.make("Pusher-v5").unwrapped
    theirs.reset(seed=0)
    for _ in range(50):
        theirs.reset()
        place = theirs.data.body("object").xpos[:2] - HOME  # type: ignore[attr-defined]
        env_definition(ENV_ID).task_vector({"object": place.round(12).tolist(), "goal": [0.0, 0.0]})


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"object": [0.21, -0.1], "goal": [0.0, 0.0]}, r"between \[-0.2, -0.3\] and \[0.2, 0.0\] m, got \[0.21"),
        ({"object": [0.1, 0.01], "goal": [0.0, 0.0]}, "an object starts between"),
        ({"object": [0.1, -0.2], "goal": [0.12, 0.12]}, r"within 0\.15 m of \[0, 0\], got .* at 0\.170 m"),
        ({"object": [0.1, -0.1], "goal": [0.1, 0.0]}, r"at least 0\.17 m from its goal, got 0\.100 m"),
        ({"object": [0.1, -0.1]}, r"keys \['goal', 'object'\]"),
        ({"object": [0.1, -0.1, 0.0], "goal": [0.1, 0.0]}, r"'object' .* is 2 finite number\(s\)"),
    ],
)
def test_tasks_outside_the_distribution_are_refused(task: dict[str, list[float]], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        single(task=task)


def test_observations_tell_nothing_of_the_task_until_contact() -> None:
    """Two tasks, the same torques: the same observations as long as nothing touches an object, and then not."""
    others = [{"object": [-0.2, -0.3], "goal": [0.1, 0.0]}, TASK]
    envs = [single(task=task) for task in others]
    first = [env.reset(seed=3)[0] for env in envs]
    np.testing.assert_array_equal(*first)
    rng = np.random.default_rng(3)
    differ = touched = False
    for action in np.repeat(rng.uniform(-2, 2, (10, 7)), 40, axis=0):  # held: it gets somewhere
        observations = [env.step(action)[0] for env in envs]
        differ = bool((observations[0] != observations[1]).any())
        touched |= any(touches_object(env) for env in envs)
        assert touched or not differ
    assert touched
    assert differ


def touches_object(env: MetaEnv) -> bool:
    """Whether a contact is in the data between the object and a link of the arm, or the object has moved."""
    bodies = env.model.geom_bodyid[env.data.contact.geom]  # [contacts, 2]
    arm = (bodies >= env.model.body("r_shoulder_pan_link").id) & (bodies <= env.model.body("tips_arm").id)
    contact = ((bodies == env.model.body("object").id).any(1) & arm.any(1)).any()
    return bool(contact) or bool(np.abs(env.data.qvel[-4:-2]).max() > 1e-9)


def test_v5s_initial_state_is_not_changed_behind_its_back() -> None:
    env = single(task=TASK)
    env.reset(seed=0)
    assert not env.init_qpos.any()  # v5 writes object and goal into it
    assert mujoco.mj_name2id(env.model, mujoco.mjtObj.mjOBJ_BODY, "goal") == 12

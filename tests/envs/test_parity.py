"""Every meta-environment side by side with Gymnasium's own v5 environment, over 1,000 random steps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.envs.mujoco import MujocoEnv

from icrl_agents.envs import MetaEnv, env_ids

Scalars = dict[str, Any]


def norm(*vector: float) -> float:
    return float(np.sqrt(sum(x * x for x in vector)))


def effort(action: np.ndarray) -> float:
    return float(sum(float(a) * float(a) for a in action))


def reacher_reward(before: Any, data: Any, action: np.ndarray) -> float:
    return -norm(*(data.body("fingertip").xpos - data.body("target").xpos)) - effort(action)


def pusher_reward(before: Any, data: Any, action: np.ndarray) -> float:
    tip, thing, goal = (data.body(name).xpos for name in ("tips_arm", "object", "goal"))
    return -norm(*(thing - goal)) - 0.1 * effort(action) - 0.5 * norm(*(thing - tip))


def half_cheetah_reward(before: Any, data: Any, action: np.ndarray) -> float:
    return -abs((data.qpos[0] - before["qpos"][0]) / 0.05 - 1.3) - 0.05 * effort(action)


def ant_reward(before: Any, data: Any, action: np.ndarray) -> float:
    vx, vy, _ = (data.body("torso").xpos - before["torso"]) / 0.05
    healthy = 0.2 <= data.qpos[2] <= 1.0
    return float(vx * np.cos(2.1) + vy * np.sin(2.1) - 0.5 * effort(action) + healthy)


@dataclass(frozen=True)
class Case:
    """What an environment has in common with v5's.

    Attributes:
        v5: id of Gymnasium's environment.
        task: for which ``reward`` holds.
        entries: pairs of slices of our observation and of v5's that are the same.
        reward: from ``qpos`` and torso position before the step, the data after it, and the action.
        v5_task: the task for which v5's own reward is ours, if there is one.
        v5_options: with which that is so.
    """

    v5: str
    task: Scalars
    entries: tuple[tuple[slice, slice], ...]
    reward: Callable[[Any, Any, np.ndarray], float]
    v5_task: Scalars | None = None
    v5_options: Scalars = field(default_factory=dict)


CASES = {
    "icrl/ReacherGoal-v0": Case(
        "Reacher-v5",
        {"goal": [0.05, -0.11]},
        ((slice(4), slice(4)), (slice(4, 6), slice(6, 8))),
        reacher_reward,
        v5_task={"goal": [0.05, -0.11]},
    ),
    "icrl/PusherGoal-v0": Case(
        "Pusher-v5",
        {"object": [0.1, -0.2], "goal": [-0.05, 0.1]},
        ((slice(17), slice(17)),),
        pusher_reward,
        v5_task={"object": [-0.13, -0.25], "goal": [0.0, 0.0]},
    ),
    "icrl/HalfCheetahVel-v0": Case("HalfCheetah-v5", {"velocity": 1.3}, ((slice(17), slice(17)),), half_cheetah_reward),
    "icrl/AntDir-v0": Case(
        "Ant-v5",
        {"direction": 2.1},
        ((slice(27), slice(27)),),
        ant_reward,
        v5_task={"direction": 0.0},
        v5_options={"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0.0},
    ),
}


def pair(env_id: str, task: Scalars) -> tuple[MetaEnv, MujocoEnv, np.ndarray]:
    """Ours and v5's in the same state, and our first observation."""
    case = CASES[env_id]
    ours = gymnasium.make(env_id, task=task).unwrapped
    theirs = gymnasium.make(case.v5, **case.v5_options).unwrapped
    assert isinstance(ours, MetaEnv)
    assert isinstance(theirs, MujocoEnv)
    observation, _ = ours.reset(seed=0)
    theirs.reset(seed=0)
    mujoco.mj_resetData(theirs.model, theirs.data)  # the solver's warm start is part of the state
    theirs.set_state(ours.data.qpos, ours.data.qvel)
    return ours, theirs, observation


def test_every_environment_has_its_case() -> None:
    assert set(CASES) == set(env_ids())


@pytest.mark.parametrize("env_id", CASES)
def test_physics_is_v5s_and_the_reward_is_that_of_the_definition(env_id: str) -> None:
    case = CASES[env_id]
    ours, theirs, observation = pair(env_id, case.task)
    assert (ours.dt, ours.frame_skip, ours.metadata["render_fps"]) == (
        theirs.dt,
        theirs.frame_skip,
        theirs.metadata["render_fps"],
    )
    assert ours.action_space == theirs.action_space
    torso = "torso" in {theirs.model.body(i).name for i in range(theirs.model.nbody)}
    rng = np.random.default_rng(0)
    ends = set()
    for _ in range(1000):
        action = rng.uniform(ours.action_space.low, ours.action_space.high)  # type: ignore[attr-defined]
        before = {"qpos": theirs.data.qpos.copy(), "torso": theirs.data.body("torso").xpos.copy() if torso else None}
        observation, reward, terminated, truncated, _ = ours.step(action)
        v5_observation, _, v5_terminated, *_ = theirs.step(action)
        np.testing.assert_array_equal(ours.data.qpos, theirs.data.qpos)
        np.testing.assert_array_equal(ours.data.qvel, theirs.data.qvel)
        for here, there in case.entries:
            np.testing.assert_array_equal(observation[here], v5_observation[there])
        assert reward == pytest.approx(case.reward(before, theirs.data, action), rel=1e-12, abs=1e-12)
        assert (terminated, truncated) == (v5_terminated, False)
        ends.add(terminated)
    assert ends == ({False, True} if env_id == "icrl/AntDir-v0" else {False})


@pytest.mark.parametrize("env_id", [env_id for env_id, case in CASES.items() if case.v5_task is not None])
def test_v5s_own_reward_where_the_definitions_coincide(env_id: str) -> None:
    task = CASES[env_id].v5_task
    assert task is not None
    ours, theirs, _ = pair(env_id, task)
    rng = np.random.default_rng(1)
    for _ in range(300):
        action = rng.uniform(ours.action_space.low, ours.action_space.high)  # type: ignore[attr-defined]
        _, reward, _, _, info = ours.step(action)
        _, v5_reward, _, _, v5_info = theirs.step(action)
        assert reward == pytest.approx(v5_reward, rel=1e-12, abs=1e-12)
        shared = set(info) & set(v5_info)
        assert {"reward_ctrl"} < shared
        for name in shared:
            assert info[name] == pytest.approx(v5_info[name], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("env_id", ["icrl/HalfCheetahVel-v0", "icrl/AntDir-v0"])
def test_one_seed_gives_the_initial_state_of_v5(env_id: str) -> None:
    ours, theirs = (gymnasium.make(name).unwrapped for name in (env_id, CASES[env_id].v5))
    assert isinstance(ours, MetaEnv)
    assert isinstance(theirs, MujocoEnv)
    for seed in (0, 1, None, None):  # and then as the streams go on
        ours.reset(seed=seed)
        theirs.reset(seed=seed)
        np.testing.assert_array_equal(ours.data.qpos, theirs.data.qpos)
        np.testing.assert_array_equal(ours.data.qvel, theirs.data.qvel)

"""Reacher-Goal: a two-link arm finds a point nobody shows it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from icrl_agents.envs.definition import MetaEnvDefinition, PhysicsState, Task
from icrl_agents.envs.single import MetaEnv
from icrl_agents.envs.vector import MetaVectorEnv
from icrl_agents.errors import TaskError

GOAL_RADIUS = 0.2
"""Radius in m of the disk that goals lie in, as in Reacher-v5."""

_FINGERTIP, _TARGET = 3, 4  # body indices in reacher.xml


class ReacherGoalDefinition(MetaEnvDefinition):
    """Physics, initial state and reward of Gymnasium's Reacher-v5; the target is hidden from the observation."""

    env_id = "icrl/ReacherGoal-v0"
    model_file = "reacher.xml"
    frame_skip = 2
    horizon = 50
    observation_dim = 8
    render_fps = 50
    camera: Mapping[str, Any] = {
        "distance": 0.9,
        "azimuth": 90.0,
        "elevation": -89.0,
        "lookat": np.array([0.0, 0.0, 0.0]),
    }
    task_keys: Mapping[str, int] = {"goal": 2}

    def sample_task(self, rng: np.random.Generator) -> Task:
        while True:  # rejection, as Reacher-v5 does
            goal = rng.uniform(-GOAL_RADIUS, GOAL_RADIUS, 2)
            if np.hypot(*goal) < GOAL_RADIUS:
                return {"goal": goal.tolist()}

    def check_numbers(self, numbers: np.ndarray) -> None:
        radius = float(np.hypot(*numbers))
        if radius > GOAL_RADIUS:
            raise TaskError(
                f"a goal lies within {GOAL_RADIUS} m of the centre, got {numbers.tolist()} at {radius:.3f} m"
            )

    def initial_state(
        self, init_qpos: np.ndarray, init_qvel: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        qpos = rng.uniform(-0.1, 0.1, len(init_qpos)) + init_qpos
        qvel = init_qvel + rng.uniform(-0.005, 0.005, len(init_qvel))
        qvel[-2:] = 0.0  # the target rests
        return qpos, qvel

    def place_task(self, qpos: np.ndarray, tasks: np.ndarray) -> None:
        qpos[:, -2:] = tasks

    def observe(self, state: PhysicsState) -> np.ndarray:
        # A contiguous copy: NumPy's vectorised sine and its strided one may differ in the last bit.
        angles = np.ascontiguousarray(state.qpos[:, :2])
        parts = [np.cos(angles), np.sin(angles), state.qvel[:, :2], state.xpos[:, _FINGERTIP, :2]]
        return np.concatenate(parts, axis=1)

    def reward(
        self, before: Any, state: PhysicsState, action: np.ndarray, tasks: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        gap = state.xpos[:, _FINGERTIP] - state.xpos[:, _TARGET]  # [n, 3]
        distance = np.sqrt(gap[:, 0] ** 2 + gap[:, 1] ** 2 + gap[:, 2] ** 2)
        effort = np.square(action[:, 0]) + np.square(action[:, 1])
        return -distance - effort, {"reward_dist": -distance, "reward_ctrl": -effort}

    def task_error(self, parts: Mapping[str, np.ndarray], tasks: np.ndarray) -> np.ndarray:
        """Distance of the fingertip from the goal at the end, in m."""
        return -parts["reward_dist"][:, -1]


class ReacherGoalEnv(MetaEnv):
    """Reach a hidden goal with a two-link arm.

    Physics, initial state and reward are those of Gymnasium's ``Reacher-v5``. The observation leaves out the target
    (v5's entries 4:6 and 8:10 would betray it) and gives the fingertip's own position instead.

    ## Observation: ``Box(-inf, inf, (8,), float64)``

    | entry | meaning                      | unit  |
    |-------|------------------------------|-------|
    | 0-1   | cosine of the two joint angles | 1   |
    | 2-3   | sine of the two joint angles | 1     |
    | 4-5   | angular velocities           | rad/s |
    | 6-7   | fingertip x, y               | m     |

    ## Action: ``Box(-1, 1, (2,), float32)``

    Torques at the two joints, in units of the actuator's gear (200 in the XML).

    ## Task: ``{"goal": [x, y]}``

    Uniform in the disk of radius 0.2 m. Task vector: ``[x, y]``.

    ## Reward

    ``-|fingertip - goal| - |action|^2`` per step. As in v5 the fingertip is where MuJoCo's Runge-Kutta method last
    looked in the step, some micrometres from where the observation's angles have it.

    ## Start and end

    Joint angles uniform in ±0.1 rad, velocities in ±0.005 rad/s. 50 steps, never ends early.

    ## Arguments

    ``task``, ``expose_task``, and those of Gymnasium's MuJoCo environments (``render_mode``, ``width``, ``height``,
    ``camera_id``, ``camera_name``). See :class:`icrl_agents.envs.MetaEnv`.

    ## Versions

    v0: first.
    """

    definition = ReacherGoalDefinition()


class ReacherGoalVectorEnv(MetaVectorEnv):
    """Many rows of :class:`ReacherGoalEnv` in one physics batch."""

    definition = ReacherGoalEnv.definition

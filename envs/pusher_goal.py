"""Pusher-Goal: a seven-joint arm pushes an object it cannot see to a place nobody shows it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from icrl_agents.envs.definition import MetaEnvDefinition, PhysicsState, Task
from icrl_agents.envs.single import MetaEnv
from icrl_agents.envs.vector import MetaVectorEnv
from icrl_agents.errors import TaskError

GOAL_RADIUS = 0.15
"""Radius in m of the disk that goals lie in, around the one place where Pusher-v5 has its goal."""

OBJECT_LOW, OBJECT_HIGH = (-0.2, -0.3), (0.2, 0.0)
"""Corners x, y in m of the rectangle that objects start in, as in Pusher-v5."""

MIN_DISTANCE = 0.17
"""Least distance in m of an object from its goal at the start, as in Pusher-v5."""

_ARM_JOINTS = 7
_FINGERTIP, _OBJECT, _GOAL = 10, 11, 12  # body indices in pusher_v5.xml


class PusherGoalDefinition(MetaEnvDefinition):
    """Physics and reward of Gymnasium's Pusher-v5; object and goal are hidden from the observation."""

    env_id = "icrl/PusherGoal-v0"
    model_file = "pusher_v5.xml"
    frame_skip = 5
    horizon = 100
    observation_dim = 17
    render_fps = 20
    camera: Mapping[str, Any] = {
        "distance": 2.0,
        "azimuth": 120.0,
        "elevation": -50.0,
        "lookat": np.array([0.25, -0.2, -0.3]),
    }
    task_keys: Mapping[str, int] = {"object": 2, "goal": 2}
    task_in_physics = True
    privileged_dim = 2

    def sample_task(self, rng: np.random.Generator) -> Task:
        while True:  # rejection: uniform in the disk
            goal = rng.uniform(-GOAL_RADIUS, GOAL_RADIUS, 2)
            if np.hypot(*goal) < GOAL_RADIUS:
                break
        while True:  # rejection, as Pusher-v5 does
            start = rng.uniform(OBJECT_LOW, OBJECT_HIGH)
            if np.hypot(*(start - goal)) > MIN_DISTANCE:
                return {"object": start.tolist(), "goal": goal.tolist()}

    def check_numbers(self, numbers: np.ndarray) -> None:
        start, goal = numbers[:2], numbers[2:]
        if (start < OBJECT_LOW).any() or (start > OBJECT_HIGH).any():
            raise TaskError(
                f"an object starts between {list(OBJECT_LOW)} and {list(OBJECT_HIGH)} m, got {start.tolist()}"
            )
        radius = float(np.hypot(*goal))
        if radius > GOAL_RADIUS:
            raise TaskError(f"a goal lies within {GOAL_RADIUS} m of [0, 0], got {goal.tolist()} at {radius:.3f} m")
        distance = float(np.hypot(*(start - goal)))
        if distance < MIN_DISTANCE:
            raise TaskError(f"an object starts at least {MIN_DISTANCE} m from its goal, got {distance:.3f} m")

    def initial_state(
        self, init_qpos: np.ndarray, init_qvel: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        qvel = init_qvel + rng.uniform(-0.005, 0.005, len(init_qvel))
        qvel[-4:] = 0.0  # object and goal rest
        return init_qpos.copy(), qvel

    def place_task(self, qpos: np.ndarray, tasks: np.ndarray) -> None:
        qpos[:, -4:] = tasks[:, [1, 0, 3, 2]]  # the XML's slides are y, x of the object, then y, x of the goal

    def observe(self, state: PhysicsState) -> np.ndarray:
        return np.concatenate(
            [state.qpos[:, :_ARM_JOINTS], state.qvel[:, :_ARM_JOINTS], state.xpos[:, _FINGERTIP]], axis=1
        )

    def privileged(self, state: PhysicsState) -> np.ndarray:
        """Where the object is now ``[n, 2]``: x, y in m as in a task."""
        return state.qpos[:, [-3, -4]]

    def reward(
        self, before: Any, state: PhysicsState, action: np.ndarray, tasks: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        # [n, 2, 3]: from fingertip and from goal to object, in one go
        gaps = state.xpos[:, _OBJECT, None] - state.xpos[:, _FINGERTIP : _GOAL + 1 : 2]
        lengths = np.sqrt(np.square(gaps).sum(2))
        near, far = -0.5 * lengths[:, 0], -lengths[:, 1]
        # order "C": NumPy's order of summation, and with it the last bit, follows the memory
        control = -0.1 * np.square(action, order="C").sum(1)
        return far + control + near, {"reward_dist": far, "reward_ctrl": control, "reward_near": near}

    def task_error(self, parts: Mapping[str, np.ndarray], tasks: np.ndarray) -> np.ndarray:
        """Distance of the object from the goal plus half that of the fingertip from the object at the end, in m."""
        return -(parts["reward_dist"] + parts["reward_near"])[:, -1]


class PusherGoalEnv(MetaEnv):
    """Find a hidden object with an arm of seven joints and push it to a hidden goal.

    Physics and reward are those of Gymnasium's ``Pusher-v5``. Its observation would betray the object and the goal
    (v5's entries 17:20 and 20:23), which are the task here; v5's goal never moves.

    ## Observation: ``Box(-inf, inf, (17,), float64)``

    | entry | meaning                                                                     | unit  |
    |-------|-----------------------------------------------------------------------------|-------|
    | 0-6   | joint angles: shoulder pan, lift, upper arm roll, elbow, forearm roll, wrist flex, wrist roll | rad |
    | 7-13  | their angular velocities                                                    | rad/s |
    | 14-16 | fingertip x, y, z                                                           | m     |

    ## Action: ``Box(-2, 2, (7,), float32)``

    Torques at the seven joints in N m.

    ## Task: ``{"object": [x, y], "goal": [x, y]}``

    In m from the place of v5's goal, (0.45, -0.05) in the world. The goal is uniform in the disk of radius 0.15 m. The
    object starts as v5 draws it: x in [-0.2, 0.2], y in [-0.3, 0], again while within 0.17 m of the goal. (v5 calls the
    two ``cylinder_pos`` and sets the slides of the XML, which are y, x.) Task vector: the four numbers.

    ## Reward

    ``-|object - goal| - 0.1 |action|^2 - 0.5 |object - fingertip|`` per step, distances in 3-d as in v5: the object's
    frame lies 0.048 m above the goal's, so the first term never passes -0.048. Positions are those one physics step
    (0.01 s) before the observation's angles, because MuJoCo computes them at the beginning of a step.

    ## Start and end

    The arm starts where the XML has it, joint velocities uniform in ±0.005 rad/s. 100 steps, never ends early.

    The task changes the reward and what the arm may bump into: observations tell nothing of it until contact.

    ## Arguments

    ``task``, ``expose_task``, and those of Gymnasium's MuJoCo environments (``render_mode``, ``width``, ``height``,
    ``camera_id``, ``camera_name``). See :class:`icrl_agents.envs.MetaEnv`.

    ## Versions

    v0: first.
    """

    definition = PusherGoalDefinition()


class PusherGoalVectorEnv(MetaVectorEnv):
    """Many rows of :class:`PusherGoalEnv` in one physics batch."""

    definition = PusherGoalEnv.definition

"""Ant-Dir: a four-legged ant walks in a direction nobody tells it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from icrl_agents.envs.definition import MetaEnvDefinition, PhysicsState, Task
from icrl_agents.envs.markers import ACTUAL, TARGET, Color, Marker, arrow
from icrl_agents.envs.single import MetaEnv
from icrl_agents.envs.symmetry import SignedPermutation, Symmetry
from icrl_agents.envs.vector import MetaVectorEnv
from icrl_agents.errors import TaskError

HEALTHY_Z = (0.2, 1.0)
"""Heights in m between which the torso must stay, as in Ant-v5."""

_TORSO = 1  # body index in ant.xml
_ARROW_START = 0.3  # m from the torso's centre, whose radius is 0.25
_STEP_SECONDS = 0.05  # five physics steps of 0.01 s


def _quarter_turn() -> Symmetry:
    """Of the ant, about the vertical: each leg comes to the place of the next.

    World and body turn together: the orientation q becomes R q R^-1, so that its vector part turns like any other.
    """
    height = w = SignedPermutation.identity(1)
    turned = SignedPermutation(np.array([1, 0, 2]), np.array([-1, 1, 1]))
    legs = np.array([3, 0, 1, 2])  # which leg comes to the place of each, in ant.xml's order: 45, 135, 225, 315 degrees
    ankles = np.array([1, -1, -1, 1])  # which way their angles count: the axes of opposite ones are parallel
    joints = SignedPermutation(
        np.stack([2 * legs, 2 * legs + 1], 1).reshape(-1),
        np.stack([np.ones(4, int), ankles * ankles[legs]], 1).reshape(-1),
    )
    motors = np.roll(np.arange(8), 2)  # ant.xml names the fourth leg's first
    return Symmetry(
        observation=SignedPermutation.joined(height, w, turned, joints, turned, turned, joints),
        action=SignedPermutation((joints.index[motors] + 2) % 8, joints.sign[motors]),
        task=SignedPermutation(turned.index[:2], turned.sign[:2]),
    )


_TURNS = [Symmetry(*(SignedPermutation.identity(size) for size in (27, 8, 2)))]
for _ in range(3):
    _TURNS.append(_quarter_turn().after(_TURNS[-1]))


class AntDirDefinition(MetaEnvDefinition):
    """Physics, health and initial state of Gymnasium's Ant-v5; the reward of the meta-RL literature."""

    env_id = "icrl/AntDir-v0"
    model_file = "ant.xml"
    frame_skip = 5
    horizon = 200
    observation_dim = 27
    render_fps = 20
    camera: Mapping[str, Any] = {
        "trackbodyid": _TORSO,
        "distance": 4.5,
        "azimuth": 90.0,
        "elevation": -50.0,
        "lookat": np.array([0.0, 0.0, 0.3]),
    }
    task_keys: Mapping[str, int] = {"direction": 1}

    def sample_task(self, rng: np.random.Generator) -> Task:
        return {"direction": rng.uniform(0.0, 2 * math.pi)}

    def check_numbers(self, numbers: np.ndarray) -> None:
        if not 0.0 <= numbers[0] < 2 * math.pi:
            raise TaskError(f"a direction is at least 0 and less than 2 pi rad, got {numbers[0]}")

    @property
    def task_vector_dim(self) -> int:
        return 2

    def task_vector(self, task: Task) -> np.ndarray:
        """Cosine and sine ``[2]``: neighbouring directions have neighbouring vectors all around."""
        (direction,) = self.task_numbers(task)
        return np.array([math.cos(direction), math.sin(direction)])

    def symmetry(self, task: np.ndarray) -> Symmetry:
        """Quarter turns that bring the direction into [0, pi / 2), around the front left leg."""
        quadrant = int(math.atan2(task[1], task[0]) % (2 * math.pi) // (math.pi / 2))
        return _TURNS[-quadrant % 4]

    def initial_state(
        self, init_qpos: np.ndarray, init_qvel: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        qpos = init_qpos + rng.uniform(-0.1, 0.1, len(init_qpos))
        return qpos, init_qvel + 0.1 * rng.standard_normal(len(init_qvel))

    def observe(self, state: PhysicsState) -> np.ndarray:
        return np.concatenate([state.qpos[:, 2:], state.qvel], axis=1)

    def remember(self, state: PhysicsState) -> np.ndarray:
        """``xy [n, 2]`` of the torso."""
        return state.xpos[:, _TORSO, :2].copy()

    def reward(
        self, before: np.ndarray, state: PhysicsState, action: np.ndarray, tasks: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        velocity = (state.xpos[:, _TORSO, :2] - before) / _STEP_SECONDS  # [n, 2]
        x, y = velocity[:, 0], velocity[:, 1]
        forward = x * tasks[:, 0] + y * tasks[:, 1]
        survive = 1.0 * self._healthy(state)
        # order "C": NumPy's order of summation, and with it the last bit, follows the memory
        control = -0.5 * np.square(action, order="C").sum(1)
        parts = {"reward_forward": forward, "reward_ctrl": control, "reward_survive": survive}
        return forward + survive + control, {**parts, "x_velocity": x, "y_velocity": y}

    def terminated(self, state: PhysicsState) -> np.ndarray:
        return ~self._healthy(state)

    def task_error(self, parts: Mapping[str, np.ndarray], tasks: np.ndarray) -> np.ndarray:
        """Angle in rad between the episode's mean velocity and the direction; pi / 2 for one that stands still."""
        x, y = (np.nanmean(parts[name], axis=1) for name in ("x_velocity", "y_velocity"))
        along, across = x * tasks[:, 0] + y * tasks[:, 1], y * tasks[:, 0] - x * tasks[:, 1]
        return np.where((x == 0) & (y == 0), math.pi / 2, np.abs(np.arctan2(across, along)))

    def _healthy(self, state: PhysicsState) -> np.ndarray:
        """``[n]`` bool, as v5's ``is_healthy``: positions and velocities finite, torso neither fallen nor thrown up."""
        z = state.qpos[:, 2]
        finite = np.isfinite(state.qpos).all(1) & np.isfinite(state.qvel).all(1)
        return finite & (z >= HEALTHY_Z[0]) & (z <= HEALTHY_Z[1])

    def task_markers(self, state: PhysicsState, row: int, task: np.ndarray) -> Sequence[Marker]:
        """Two arrows from under the torso: on the floor where to walk, above it how it moves, 1 m for 1 m/s."""

        def from_torso(direction: np.ndarray, height: float, length: float, radius: float, rgba: Color) -> Marker:
            along = np.array([*direction, 0.0])
            start = np.array([*state.qpos[row, :2], height]) + _ARROW_START * along
            return arrow(start, along, length, radius, rgba)

        markers = [from_torso(task, 0.08, 1.2, 0.08, TARGET)]
        velocity = state.qvel[row, :2]
        speed = float(np.hypot(*velocity))
        if speed > 0.1:  # a shorter arrow is all tip and points nowhere
            markers.append(from_torso(velocity / speed, 0.25, speed, 0.04, ACTUAL))
        return markers


class AntDirEnv(MetaEnv):
    """Walk in a hidden direction with a four-legged ant.

    Physics, health and initial state are those of Gymnasium's ``Ant-v5``, the reward is that of the meta-RL literature.

    ## Observation: ``Box(-inf, inf, (27,), float64)``

    | entry | meaning                                                                       | unit  |
    |-------|-------------------------------------------------------------------------------|-------|
    | 0     | torso z                                                                       | m     |
    | 1-4   | torso orientation, quaternion w, x, y, z                                      | 1     |
    | 5-12  | joint angles, hip and ankle of each leg: front left, front right, back left, back right | rad |
    | 13-15 | torso velocity x, y, z in the world                                           | m/s   |
    | 16-18 | torso angular velocity x, y, z in its own frame                               | rad/s |
    | 19-26 | angular velocities of the joints, in the order of 5-12                        | rad/s |

    ## Action: ``Box(-1, 1, (8,), float32)``

    Torques at the eight joints, in units of the actuators' gear (150 in the XML), in v5's order: back right hip and
    ankle, front left, front right, back left.

    ## Task: ``{"direction": angle}``

    Uniform in [0, 2 pi) rad, from the world's x axis towards its y axis. Task vector: ``[cos(angle), sin(angle)]``.

    ## Reward

    ``velocity . (cos(angle), sin(angle)) - 0.5 |action|^2 + 1`` per step, the 1 only while healthy. As in v5 velocity
    is how far the torso moved in the step, over 0.05 s, by positions where MuJoCo's Runge-Kutta method last looked in
    a step, a fraction of a millimetre from the simulation's own.

    ## Start and end

    Positions uniform in ±0.1 (m, rad, quaternion entries) around the XML's, velocities normal with standard deviation
    0.1. 200 steps; ends early when unhealthy: torso z outside [0.2, 1] m, or anything not finite.

    ## Arguments

    ``task``, ``expose_task``, and those of Gymnasium's MuJoCo environments (``render_mode``, ``width``, ``height``,
    ``camera_id``, ``camera_name``). See :class:`icrl_agents.envs.MetaEnv`.

    ## Differs from

    * ``Ant-v5``: 27 entries without contact forces, no contact cost (v5: 5e-4 of their clipped squares).
    * PEARL and MACAW: the same observation; their ant gets the 1 also in the step in which it falls, and a contact cost
      that was 0 in the engine they used. MACAW's five test directions are in the split ``"macaw"``.
    * garage has no environment of this task.
    * All were published with older physics engines: their returns are context, not a contest.

    ## Versions

    v0: first.
    """

    definition = AntDirDefinition()


class AntDirVectorEnv(MetaVectorEnv):
    """Many rows of :class:`AntDirEnv` in one physics batch."""

    definition = AntDirEnv.definition

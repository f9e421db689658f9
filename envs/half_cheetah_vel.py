"""HalfCheetah-Vel: a cheetah runs at a speed nobody tells it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from gymnasium.utils import EzPickle

from icrl_agents.envs.definition import MetaEnvDefinition, PhysicsState, Task
from icrl_agents.envs.markers import ACTUAL, TARGET, Color, Marker, box
from icrl_agents.envs.single import MetaEnv
from icrl_agents.envs.vector import MetaVectorEnv
from icrl_agents.errors import TaskError, UnknownNameError

MAX_VELOCITY = 3.0
"""Fastest target in m/s."""

_TORSO = 1  # body index in half_cheetah.xml
_STEP_SECONDS = 0.05  # five physics steps of 0.01 s
_GAUGE_HEIGHT, _GAUGE_SCALE = 1.5, 0.6  # m, and m for 1 m/s


class HalfCheetahVelDefinition(MetaEnvDefinition):
    """Physics, observation and initial state of Gymnasium's HalfCheetah-v5; the reward of the meta-RL literature."""

    env_id = "icrl/HalfCheetahVel-v0"
    model_file = "half_cheetah.xml"
    frame_skip = 5
    horizon = 200
    observation_dim = 17
    render_fps = 20
    camera: Mapping[str, Any] = {
        "trackbodyid": _TORSO,
        "distance": 4.0,
        "azimuth": 90.0,
        "elevation": -10.0,
        "lookat": np.array([0.0, 0.0, 0.7]),
    }
    task_keys: Mapping[str, int] = {"velocity": 1}

    def sample_task(self, rng: np.random.Generator) -> Task:
        return {"velocity": rng.uniform(0.0, MAX_VELOCITY)}

    def check_numbers(self, numbers: np.ndarray) -> None:
        if not 0.0 <= numbers[0] <= MAX_VELOCITY:
            raise TaskError(f"a velocity lies between 0 and {MAX_VELOCITY} m/s, got {numbers[0]}")

    def initial_state(
        self, init_qpos: np.ndarray, init_qvel: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        qpos = init_qpos + rng.uniform(-0.1, 0.1, len(init_qpos))
        return qpos, init_qvel + 0.1 * rng.standard_normal(len(init_qvel))

    def observe(self, state: PhysicsState) -> np.ndarray:
        return np.concatenate([state.qpos[:, 1:], state.qvel], axis=1)

    def remember(self, state: PhysicsState) -> np.ndarray:
        """``x [n]``."""
        return state.qpos[:, 0].copy()

    def reward(
        self, before: np.ndarray, state: PhysicsState, action: np.ndarray, tasks: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        velocity = (state.qpos[:, 0] - before) / _STEP_SECONDS
        forward = -np.abs(velocity - tasks[:, 0])
        # order "C": NumPy's order of summation, and with it the last bit, follows the memory
        control = -0.05 * np.square(action, order="C").sum(1)
        return forward + control, {"reward_forward": forward, "reward_ctrl": control, "x_velocity": velocity}

    def task_error(self, parts: Mapping[str, np.ndarray], tasks: np.ndarray) -> np.ndarray:
        """Difference of the episode's mean velocity from the target in m/s."""
        return np.abs(np.nanmean(parts["x_velocity"], axis=1) - tasks[:, 0])

    def task_markers(self, state: PhysicsState, row: int, task: np.ndarray) -> Sequence[Marker]:
        """A gauge over the torso: target speed above actual speed, a tick for every m/s from 0 to 3."""
        origin = np.array([state.xpos[row, _TORSO, 0] - _GAUGE_SCALE * MAX_VELOCITY / 2, 0.0, _GAUGE_HEIGHT])

        def bar(begin: float, end: float, low: float, high: float, rgba: Color) -> Marker:
            near, far = (_GAUGE_SCALE * begin, -0.02, low), (_GAUGE_SCALE * end, 0.02, high)
            return box(origin + near, origin + far, rgba)

        speed = float(np.clip(state.qvel[row, 0], -1.0, MAX_VELOCITY + 1.0))
        ticks = [bar(v - 0.02, v + 0.02, -0.14, 0.14, (1.0, 1.0, 1.0, 1.0)) for v in range(int(MAX_VELOCITY) + 1)]
        pointer = bar(task[0] - 0.03, task[0] + 0.03, -0.14, 0.14, TARGET)  # there is one at 0 m/s too
        return [*ticks, pointer, bar(0.0, task[0], 0.01, 0.11, TARGET), bar(0.0, speed, -0.11, -0.01, ACTUAL)]


class PearlHalfCheetahVelDefinition(HalfCheetahVelDefinition):
    """The same with the observation that PEARL, MACAW and garage use."""

    observation_dim = 20

    def observe(self, state: PhysicsState) -> np.ndarray:
        return np.concatenate([state.qpos[:, 1:], state.qvel, state.xpos[:, _TORSO]], axis=1)


Observation = Literal["v5", "pearl"]

_DEFINITIONS: Mapping[str, HalfCheetahVelDefinition] = {
    "v5": HalfCheetahVelDefinition(),
    "pearl": PearlHalfCheetahVelDefinition(),
}


def _definition(observation: str) -> HalfCheetahVelDefinition:
    if observation not in _DEFINITIONS:
        raise UnknownNameError("observation of icrl/HalfCheetahVel-v0", observation, _DEFINITIONS)
    return _DEFINITIONS[observation]


class HalfCheetahVelEnv(MetaEnv):
    """Run at a hidden speed with a two-legged cheetah in the plane.

    Physics, observation and initial state are those of Gymnasium's ``HalfCheetah-v5``, the reward is that of the
    meta-RL literature since MAML.

    ## Observation: ``Box(-inf, inf, (17,), float64)``

    | entry | meaning                                                               | unit  |
    |-------|-----------------------------------------------------------------------|-------|
    | 0     | torso z, relative to the XML's                                        | m     |
    | 1     | torso pitch                                                           | rad   |
    | 2-7   | joint angles: back thigh, shin, foot, front thigh, shin, foot         | rad   |
    | 8-9   | torso velocity x, z                                                   | m/s   |
    | 10    | torso pitch rate                                                      | rad/s |
    | 11-16 | angular velocities of the joints, in the order of 2-7                 | rad/s |

    ``observation="pearl"`` gives the literature's 20 entries, the above and

    | entry | meaning               | unit |
    |-------|-----------------------|------|
    | 17-19 | torso x, y, z         | m    |

    of which x tells how far it has run in this episode, which v5 leaves out. They are those one physics step (0.01 s)
    before the other entries.

    ## Action: ``Box(-1, 1, (6,), float32)``

    Torques at the six joints, in units of the actuators' gears (30 to 120 in the XML).

    ## Task: ``{"velocity": v}``

    Uniform in [0, 3] m/s. Task vector: ``[v]``.

    ## Reward

    ``-|dx/dt - v| - 0.05 |action|^2`` per step, dx/dt the mean velocity over the step's 0.05 s.

    ## Start and end

    Positions uniform in ±0.1 (m, rad) around the XML's, velocities normal with standard deviation 0.1. 200 steps, never
    ends early.

    ## Arguments

    ``observation`` (``"v5"`` or ``"pearl"``), ``task``, ``expose_task``, and those of Gymnasium's MuJoCo environments
    (``render_mode``, ``width``, ``height``, ``camera_id``, ``camera_name``). See :class:`icrl_agents.envs.MetaEnv`.

    ## Differs from

    * PEARL: reward, horizon and range of tasks are the same, and with ``observation="pearl"`` the observation, which
      there is float32. Its tasks are the split ``"pearl"``. It has the task in every info, and drawing tasks reseeds
      NumPy's global generator.
    * MACAW: likewise; its 40 evenly spaced tasks are the split ``"macaw"``.
    * garage: likewise, but v in [0, 2] m/s, and a task that pickling loses.
    * All three were published with older physics engines: their returns are context, not a contest.

    ## Versions

    v0: first.
    """

    definition: MetaEnvDefinition = _DEFINITIONS["v5"]

    def __init__(
        self,
        task: Task | None = None,
        expose_task: bool = False,
        *,
        observation: Observation = "v5",
        **mujoco_options: Any,
    ) -> None:
        self.definition = _definition(observation)
        super().__init__(task, expose_task, **mujoco_options)
        EzPickle.__init__(self, task, expose_task, observation=observation, **mujoco_options)


class HalfCheetahVelVectorEnv(MetaVectorEnv):
    """Many rows of :class:`HalfCheetahVelEnv` in one physics batch."""

    definition: MetaEnvDefinition = HalfCheetahVelEnv.definition

    def __init__(self, num_envs: int = 1, *, observation: Observation = "v5", **options: Any) -> None:
        self.definition = _definition(observation)
        super().__init__(num_envs, **options)

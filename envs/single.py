"""The single meta-environment: Gymnasium's MujocoEnv around a definition."""

from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.utils import EzPickle

from icrl_agents.envs.definition import MetaEnvDefinition, PhysicsState, Task
from icrl_agents.envs.markers import follow
from icrl_agents.envs.models import load_model
from icrl_agents.envs.outcome import DIVERGENCE, View, checked_actions, outcome
from icrl_agents.envs.seeds import checked_seed
from icrl_agents.envs.task_choice import TaskChoice
from icrl_agents.errors import TaskError


class MetaEnv(MujocoEnv, EzPickle):
    """A Gymnasium environment with a hidden task.

    The task survives plain resets and pickling. ``reset(options={"task": ...})`` and :meth:`set_task` give one,
    ``reset(seed=s)`` draws one; see :mod:`icrl_agents.envs.task_choice` for the precedence. ``info["new_task"]`` of a
    reset says whether a task was given or drawn, and at the first one after unpickling is True: then whoever remembers
    the last one has to forget. An episode whose simulation diverges ends with ``info["diverged"]``, see
    :mod:`icrl_agents.envs.outcome`. Pictures show the task.

    Args:
        task: the task to hold, or None to draw one at the first reset.
        expose_task: put the task into every info under ``"task"``.
        **mujoco_options: ``render_mode, width, height, camera_id, camera_name`` of Gymnasium's MuJoCo environments.
    """

    definition: MetaEnvDefinition
    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"]}  # noqa: RUF012  Gymnasium's way

    def __init__(self, task: Task | None = None, expose_task: bool = False, **mujoco_options: Any) -> None:
        EzPickle.__init__(self, task, expose_task, **mujoco_options)
        at = self.definition
        self.metadata = {**type(self).metadata, "render_fps": at.render_fps}
        self._choice = TaskChoice(at, task)
        self._expose_task = expose_task
        self._task_vector = np.empty((1, 0))
        self._begun = False
        space = spaces.Box(-np.inf, np.inf, (at.observation_dim,), np.float64)
        MujocoEnv.__init__(
            self,
            str(at.model_path),
            at.frame_skip,
            observation_space=space,
            default_camera_config=dict(at.camera),
            **mujoco_options,
        )
        data = self.data  # live views: the arrays below always show the simulation as it is
        self._state = PhysicsState(data.qpos[None], data.qvel[None], data.xpos[None])
        self._divergence = data.warning.number[DIVERGENCE]
        self._last = View(np.empty((1, at.observation_dim)), np.empty((1, at.privileged_dim)))

    @property
    def task(self) -> dict[str, Any]:
        """The task that holds, before the first reset the constructor's, for evaluation and sources that may see it.

        Raises:
            NoTaskYetError: no reset has settled one yet.
        """
        return self._choice.held

    def set_task(self, task: Task) -> None:
        """Give the task that holds from the next reset on.

        Raises:
            TaskError: it does not fit the environment.
        """
        self._choice.set(task)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode. See :class:`MetaEnv` for the task.

        Args:
            seed: of the initial states and, where no task is given, of the task.
            options: ``{"task": ...}`` or empty.

        Raises:
            TaskError: an unknown option, or a task that does not fit.
            InputError: a seed that is not a whole number of at least 0.
        """
        seed = checked_seed(seed)
        unknown = set(options or ()) - {"task"}
        if unknown:
            raise TaskError(f"unknown reset option(s) {sorted(unknown)}; known: task")
        if options and options.get("task") is not None:
            self.set_task(options["task"])
        new_task = self._choice.at_reset(seed)
        if new_task:
            self._task_vector = self.definition.task_vector(self.task)[None]
        observation, info = super().reset(seed=seed)
        self._begun = True
        return observation, {**info, "new_task": new_task}

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """Load the model as the vector env does (called by Gymnasium's constructor)."""
        model = load_model(Path(self.fullpath), self.width, self.height)
        return model, mujoco.MjData(model)

    def reset_model(self) -> np.ndarray:
        """Draw an initial state (called by Gymnasium's ``reset``)."""
        qpos, qvel = self.definition.initial_state(self.init_qpos, self.init_qvel, self.np_random)
        self.definition.place_task(qpos[None], self._task_vector)
        self.set_state(qpos, qvel)
        self._last = View.of(self.definition, self._state)
        return self._last.observations[0].copy()

    def step(  # type: ignore[override]  # the base class names narrower types than Gymnasium's own environments return
        self, action: np.ndarray
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step; the horizon is Gymnasium's TimeLimit wrapper.

        Raises:
            InputError: an action of another shape, or not finite.
            ResetNeeded: no reset yet.
        """
        at = self.definition
        actions = checked_actions(action, (self.model.nu,))[None]
        if not self._begun:
            raise gymnasium.error.ResetNeeded("cannot step before the first reset")
        before = at.remember(self._state)
        self.data.ctrl[:] = actions[0]
        try:
            mujoco.mj_step(self.model, self.data, nstep=self.frame_skip)
            failed = self._divergence.any()
        except mujoco.FatalError:
            failed = True
        after = outcome(at, before, self._state, actions, self._task_vector, self._last, np.array([failed], bool))
        self._last = after.view
        if self.render_mode == "human":
            self.render()
        info = {name: part[0].item() for name, part in after.infos.items()}
        return (
            after.view.observations[0].copy(),
            float(after.rewards[0]),
            bool(after.terminated[0]),
            False,
            {**info, **self._exposed()},
        )

    def render(self) -> Any:
        """A picture or a window, as ``render_mode`` says, in which the hidden task is visible."""
        at = self.definition
        viewer = self.mujoco_renderer._get_viewer(self.render_mode)  # Gymnasium gives no other way to what it will draw
        follow(viewer.cam, at.camera, self._state.xpos[0])
        if self._begun:
            for marker in at.task_markers(self._state, 0, self._task_vector[0]):
                viewer.add_marker(**vars(marker))
        return super().render()

    def _get_reset_info(self) -> dict[str, Any]:
        return self._exposed()

    def _exposed(self) -> dict[str, Any]:
        return {"task": self.task} if self._expose_task else {}

    def __getstate__(self) -> dict[str, Any]:
        return {**EzPickle.__getstate__(self), **self._choice.saved()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        EzPickle.__setstate__(self, state)
        self._choice.restore(state["task"], state["pending"])

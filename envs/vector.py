"""The native vector meta-environment: all rows in one mujoco.batch.Batch, the rest in NumPy over rows."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from mujoco.batch import Batch
from mujoco.batch import SimulationError as BatchSimulationError

from icrl_agents.envs.definition import MetaEnvDefinition, PhysicsState, Task
from icrl_agents.envs.task_choice import TaskChoice
from icrl_agents.errors import SimulationError, TaskError

_BLANK: dict[str, Any] = {}


class MetaVectorEnv(VectorEnv):
    """n rows of one meta-environment, stepped together on all cores.

    Autoreset is SAME_STEP: where an episode ends, the returned observation is the first of the next one and
    ``info["final_obs"]`` holds the last one (rows by the mask ``info["_final_obs"]``). Tasks are kept across autoreset.
    An int seed s gives row i the seed s + i. Row i equals the single environment with that seed bit for bit.

    Args:
        num_envs: n, rows.
        max_episode_steps: horizon in steps; default: the definition's.
        task: one task for every row.
        tasks: one task per row.
        expose_task: put the tasks into every info under ``"task"``.
        num_threads: physics threads; 0 means all cores.
        render_mode: None or ``"rgb_array"``: :meth:`render` gives one picture per row.

    Raises:
        TaskError: tasks that do not fit, or not one per row.
    """

    definition: ClassVar[MetaEnvDefinition]

    def __init__(
        self,
        num_envs: int = 1,
        *,
        max_episode_steps: int | None = None,
        task: Task | None = None,
        tasks: Sequence[Task] | None = None,
        expose_task: bool = False,
        num_threads: int = 0,
        render_mode: str | None = None,
        width: int = 480,
        height: int = 480,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is at least 1, got {num_envs}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode of a vector env is None or 'rgb_array', got {render_mode!r}")
        if task is not None and tasks is not None:
            raise TaskError("give task= for every row or tasks= one per row, not both")
        definition = self.definition
        self.num_envs = num_envs
        self.horizon = max_episode_steps or definition.horizon
        self.render_mode = render_mode
        self.metadata = {
            "autoreset_mode": AutoresetMode.SAME_STEP,
            "render_modes": ["rgb_array"],
            "render_fps": definition.render_fps,
        }
        per_row = [task] * num_envs if tasks is None else self._one_per_row(tasks)
        self._choices = [TaskChoice(definition, row) for row in per_row]
        self._task_vectors = np.zeros((num_envs, sum(definition.task_keys.values())))
        self._expose_task = expose_task

        self._model = mujoco.MjModel.from_xml_path(str(definition.model_path))
        self._batch = Batch(self._model, num_envs, nthread=num_threads)
        qpos, qvel, xpos = (self._batch.bind(name) for name in ("qpos", "qvel", "xpos"))
        self._state = PhysicsState(qpos, qvel, xpos)
        self._ctrl = self._batch.bind("ctrl")
        self._init_qpos, self._init_qvel = qpos[0].copy(), qvel[0].copy()
        self._rngs: list[np.random.Generator | None] = [None] * num_envs
        self._elapsed = np.zeros(num_envs, np.int64)
        self._everywhere = np.ones(num_envs, bool)
        self._everywhere.setflags(write=False)  # infos hand it out
        self._renderer: mujoco.Renderer | None = None
        self._size = (height, width)

        bounds = self._model.actuator_ctrlrange.astype(np.float32)
        self.single_action_space = spaces.Box(bounds[:, 0], bounds[:, 1], dtype=np.float32)
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (definition.observation_dim,), np.float64)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """The tasks that hold, one per row, for evaluation and sources that may see them.

        Raises:
            TaskError: no reset has settled them yet.
        """
        held = [choice.task for choice in self._choices]
        if any(task is None for task in held):
            raise TaskError("no task holds before the first reset")
        return [copy.deepcopy(task) for task in held if task is not None]

    def set_tasks(self, tasks: Sequence[Task | None]) -> None:
        """Give the tasks, one per row, that hold from each row's next reset on; None leaves a row its own.

        Raises:
            TaskError: they do not fit the environment or are not one per row; then nothing is changed.
        """
        checked = [None if t is None else self.definition.canonical_task(t) for t in self._one_per_row(tasks)]
        for choice, task in zip(self._choices, checked, strict=True):
            if task is not None:
                choice.set(task)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin episodes.

        Args:
            seed: s gives row i the seed s + i; or one per row.
            options: ``{"task": ...}`` for all rows, ``{"tasks": [...]}`` one per row (None keeps a row's own),
                ``{"reset_mask": [n] bool}`` to reset only some rows.

        Returns:
            Observations ``[n, N_o]`` (rows not reset: their current one) and infos with ``new_task [n]`` bool.

        Raises:
            TaskError: an unknown option, tasks that do not fit, or a mask of another shape.
        """
        options = options or _BLANK
        unknown = set(options) - {"task", "tasks", "reset_mask"}
        if unknown:
            raise TaskError(f"unknown reset option(s) {sorted(unknown)}; known: task, tasks, reset_mask")
        mask = self._reset_mask(options.get("reset_mask"))
        seeds = self._seeds(seed)
        given = options.get("tasks")
        if options.get("task") is not None:
            if given is not None:
                raise TaskError("give option task for every row or tasks one per row, not both")
            given = [options["task"]] * self.num_envs
        if given is not None:
            self.set_tasks([task if m else None for task, m in zip(self._one_per_row(given), mask, strict=True)])
        new_task = self._begin_episodes(np.flatnonzero(mask), seeds)
        return self.definition.observe(self._state), {"new_task": new_task, **self._exposed()}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of every row.

        Args:
            actions: ``[n, A]``.

        Returns:
            Observations ``[n, N_o]`` float64, rewards ``[n]`` float64, terminated and truncated ``[n]`` bool, infos.

        Raises:
            SimulationError: the physics failed in a row.
        """
        at = self.definition
        actions = np.asarray(actions, np.float64)
        if actions.shape != self._ctrl.shape:
            raise ValueError(f"expected actions of shape {self._ctrl.shape}, got {actions.shape}")
        if self._choices[0].task is None:
            raise gymnasium.error.ResetNeeded("cannot step before the first reset")
        before = at.remember(self._state)
        self._ctrl[:] = actions
        try:
            self._batch.step(nstep=at.frame_skip)
        except BatchSimulationError as error:
            raise SimulationError(f"{at.env_id}: {error}") from None
        self._elapsed += 1
        rewards, parts = at.reward(before, self._state, actions, self._task_vectors)
        observations = at.observe(self._state)
        terminated = at.terminated(self._state)
        truncated = (self._elapsed >= self.horizon) & ~terminated
        info: dict[str, Any] = {}
        for name, part in parts.items():
            info[name], info["_" + name] = part, self._everywhere
        done = terminated | truncated
        if done.any():
            info["final_obs"], info["_final_obs"] = observations, done
            info["final_info"] = {
                **{name: parts[name] for name in parts},
                **{"_" + name: done for name in parts},
            }
            info["_final_info"] = done
            rows = np.flatnonzero(done)
            info["new_task"] = self._begin_episodes(rows, None)
            info["_new_task"] = done
            after = at.observe(self._state)
            observations = observations.copy()
            observations[rows] = after[rows]
        return observations, rewards, terminated, truncated, {**info, **self._exposed()}

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One picture ``[height, width, 3]`` uint8 per row, the hidden task visible; None without a render mode."""
        if self.render_mode is None:
            return None
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self._model, *self._size)
        camera = mujoco.MjvCamera()
        mujoco.mjv_defaultFreeCamera(self._model, camera)
        for name, value in self.definition.camera.items():
            setattr(camera, name, value)
        pictures = []
        for row in range(self.num_envs):
            data = self._batch.get_data(row)
            mujoco.mj_forward(self._model, data)
            self._renderer.update_scene(data, camera)
            pictures.append(self._renderer.render())
        return tuple(pictures)

    def close_extras(self, **kwargs: Any) -> None:
        """Release the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    # Snapshots of the whole environment, so that a killed collection continues where it was

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything that the next steps depend on, as arrays; tasks excepted."""
        generators = [rng.bit_generator.state["state"] for rng in self._rngs if rng is not None]
        words = [[g[k] >> (64 * w) & (2**64 - 1) for k in ("state", "inc") for w in (0, 1)] for g in generators]
        names = ("qpos", "qvel", "qacc_warmstart", "time")
        physics = {name: np.array(self._batch.bind(name)) for name in names}
        return {**physics, "elapsed": self._elapsed.copy(), "rngs": np.array(words, np.uint64)}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from what :meth:`get_state` gave; the environment must hold the same tasks."""
        for name in ("qpos", "qvel", "qacc_warmstart", "time"):
            self._batch.bind(name)[:] = state[name]
        self._batch.forward()
        # forward() itself updates the warm start; the next step has to find the one that was saved
        self._batch.bind("qacc_warmstart")[:] = state["qacc_warmstart"]
        self._elapsed[:] = state["elapsed"]
        for row, words in enumerate(state["rngs"].tolist()):
            generator = np.random.PCG64(0)
            full = {"state": words[0] | words[1] << 64, "inc": words[2] | words[3] << 64}
            generator.state = {
                "bit_generator": "PCG64",
                "state": full,  # type: ignore[typeddict-item]  # NumPy keeps its type private
                "has_uint32": 0,
                "uinteger": 0,
            }
            self._rngs[row] = np.random.Generator(generator)

    def _begin_episodes(self, rows: np.ndarray, seeds: Sequence[int | None] | None) -> np.ndarray:
        """Reset ``rows``; which of all rows got a new task."""
        new_task = np.zeros(self.num_envs, bool)
        at, state = self.definition, self._state
        self._batch.reset(rows, stage=mujoco.mjtStage.mjSTAGE_NONE)
        for row in rows.tolist():
            seed = None if seeds is None else seeds[row]
            rng = self._rngs[row]
            if rng is None or seed is not None:
                rng = self._rngs[row] = seeding.np_random(seed)[0]
            choice = self._choices[row]
            if choice.at_reset(seed):
                new_task[row] = True
                assert choice.task is not None
                self._task_vectors[row] = at.task_vector(choice.task)
            state.qpos[row], state.qvel[row] = at.initial_state(self._init_qpos, self._init_qvel, rng)
        qpos = state.qpos[rows]
        at.place_task(qpos, self._task_vectors[rows])
        state.qpos[rows] = qpos
        self._batch.forward(rows)
        self._elapsed[rows] = 0
        return new_task

    def _one_per_row(self, tasks: Any) -> Sequence[Any]:
        if isinstance(tasks, Mapping) or not isinstance(tasks, Sequence) or len(tasks) != self.num_envs:
            got = f"{len(tasks)}" if isinstance(tasks, Sequence) else f"a {type(tasks).__name__}"
            raise TaskError(f"expected a list of {self.num_envs} tasks, one per row, got {got}")
        return tasks

    def _reset_mask(self, mask: Any) -> np.ndarray:
        if mask is None:
            return self._everywhere
        mask = np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
            raise TaskError(f"reset_mask is {self.num_envs} booleans, at least one True, got {mask!r}")
        return mask

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + row for row in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"expected {self.num_envs} seeds, one per row, got {len(seed)}")
        return list(seed)

    def _exposed(self) -> dict[str, Any]:
        return {"task": self.tasks, "_task": self._everywhere} if self._expose_task else {}

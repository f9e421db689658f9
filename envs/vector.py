"""The native vector meta-environment: all rows in one mujoco.batch.Batch, the rest in NumPy over rows."""

from collections.abc import Mapping, Sequence
from typing import Any

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
from icrl_agents.envs.markers import add_markers, follow
from icrl_agents.envs.models import load_model
from icrl_agents.envs.outcome import DIVERGENCE, View, checked_actions, outcome
from icrl_agents.envs.rows import checked_mask, one_per_row
from icrl_agents.envs.seeds import checked_seeds
from icrl_agents.envs.task_choice import TaskChoice
from icrl_agents.errors import ConfigError, InputError, SimulationError, TaskError

_BLANK: dict[str, Any] = {}

_PHYSICS = ("qpos", "qvel", "qacc_warmstart", "time", "xpos")
"""What a step starts from. The first four determine the motion; xpos lags a substep, and rewards are measured by it."""


class MetaVectorEnv(VectorEnv):
    """n rows of one meta-environment, stepped together on all cores.

    Autoreset is SAME_STEP: where an episode ends, the returned observation is the first of the next one and
    ``info["final_obs"]`` holds the last one (rows by the mask ``info["_final_obs"]``). Tasks are kept across autoreset.
    An int seed s gives row i the seed s + i. Row i equals the single environment with that seed bit for bit.
    Where a simulation diverges, its episode ends with ``info["diverged"]`` and no other row notices, see
    :mod:`icrl_agents.envs.outcome`. It cannot be pickled: :meth:`get_state` and the tasks say all there is to save.

    Args:
        num_envs: n, rows.
        max_episode_steps: horizon in steps; default: the definition's.
        task: one task for every row.
        tasks: one task per row.
        expose_task: put the tasks into every info under ``"task"`` ``[n]``; where an episode ended, the next one's, and
            into ``info["final_info"]`` the one that its last reward was paid under.
        num_threads: physics threads; 0 means all cores.
        render_mode: None or ``"rgb_array"``: :meth:`render` gives one picture per row.
        width: of a picture in pixels.
        height: of a picture in pixels.

    Raises:
        TaskError: tasks that do not fit, or not one per row.
        ConfigError: a number or render mode that has no meaning.
    """

    definition: MetaEnvDefinition

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
        for name, number, least in (
            ("num_envs", num_envs, 1),
            ("max_episode_steps", self.definition.horizon if max_episode_steps is None else max_episode_steps, 1),
            ("num_threads", num_threads, 0),
        ):
            if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < least:
                raise ConfigError(f"{name} is a whole number of at least {least}, got {number!r}")
        if render_mode not in (None, "rgb_array"):
            raise ConfigError(f"render_mode of a vector env is None or 'rgb_array', got {render_mode!r}")
        if task is not None and tasks is not None:
            raise TaskError("give task= for every row or tasks= one per row, not both")
        definition = self.definition
        self.num_envs = num_envs
        self.horizon = definition.horizon if max_episode_steps is None else max_episode_steps
        self.render_mode = render_mode
        self.metadata = {
            "autoreset_mode": AutoresetMode.SAME_STEP,
            "render_modes": ["rgb_array"],
            "render_fps": definition.render_fps,
        }
        per_row = [task] * num_envs if tasks is None else one_per_row(tasks, num_envs)
        self._choices = [TaskChoice(definition, row) for row in per_row]
        self._task_vectors = np.zeros((num_envs, definition.task_vector_dim))
        self._expose_task = expose_task

        self._model = load_model(definition.model_path, width, height)
        self._batch = Batch(self._model, num_envs, nthread=num_threads)
        qpos, qvel, xpos = (self._batch.bind(name) for name in ("qpos", "qvel", "xpos"))
        self._state = PhysicsState(qpos, qvel, xpos)
        xpos.setflags(write=True)  # set_state puts back what the engine computed before the last substep
        self._ctrl = self._batch.bind("ctrl")
        self._divergence = self._batch.warning[:, DIVERGENCE, 1]  # [n, 3], live
        self._init_qpos, self._init_qvel = qpos[0].copy(), qvel[0].copy()
        self._rngs: list[np.random.Generator | None] = [None] * num_envs
        self._elapsed = np.zeros(num_envs, np.int64)
        unseen = View(np.empty((num_envs, definition.observation_dim)), np.empty((num_envs, definition.privileged_dim)))
        self._last = self._followed = unseen
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
        """The tasks that hold, before the first reset the constructor's, for evaluation and sources that may see them.

        Raises:
            NoTaskYetError: no reset has settled them yet.
        """
        return [choice.held for choice in self._choices]

    @property
    def privileged(self) -> np.ndarray:
        """What the definition calls privileged ``[n, p]`` float64, of the state that the current observations show.

        Raises:
            ResetNeeded: no reset yet.
        """
        self._require_reset("see what is privileged")
        return self._last.privileged.copy()

    @property
    def following_privileged(self) -> np.ndarray:
        """The same as the last step left it, before any autoreset: what belongs to ``info["final_obs"]``.

        Raises:
            ResetNeeded: no reset yet.
        """
        self._require_reset("see what is privileged")
        return self._followed.privileged.copy()

    def set_tasks(self, tasks: Sequence[Task | None]) -> None:
        """Give the tasks, one per row, that hold from each row's next reset on; None leaves a row its own.

        Raises:
            TaskError: they do not fit the environment or are not one per row; then nothing is changed.
        """
        checked = [None if t is None else self.definition.canonical_task(t) for t in one_per_row(tasks, self.num_envs)]
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
            InputError: not one seed per row, or one that is not a whole number of at least 0.
            ResetNeeded: a mask leaves out rows that no reset has begun yet.
        """
        options = options or _BLANK
        unknown = set(options) - {"task", "tasks", "reset_mask"}
        if unknown:
            raise TaskError(f"unknown reset option(s) {sorted(unknown)}; known: task, tasks, reset_mask")
        mask = self._reset_mask(options.get("reset_mask"))
        seeds = checked_seeds(seed, self.num_envs)
        given = options.get("tasks")
        if options.get("task") is not None:
            if given is not None:
                raise TaskError("give option task for every row or tasks one per row, not both")
            given = [options["task"]] * self.num_envs
        if given is not None:
            self.set_tasks(
                [task if m else None for task, m in zip(one_per_row(given, self.num_envs), mask, strict=True)]
            )
        new_task = self._begin_episodes(np.flatnonzero(mask), seeds)
        self._last = self._followed = View.of(self.definition, self._state)
        return self._last.observations.copy(), {"new_task": new_task, "_new_task": mask.copy(), **self._exposed()}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of every row.

        Args:
            actions: ``[n, A]``.

        Returns:
            Observations ``[n, N_o]`` float64, rewards ``[n]`` float64, terminated and truncated ``[n]`` bool, infos.

        Raises:
            InputError: actions of another shape, or not finite.
            ResetNeeded: no reset yet.
        """
        at = self.definition
        actions = checked_actions(actions, self._ctrl.shape)
        self._require_reset("step")
        before = at.remember(self._state)
        self._ctrl[:] = actions
        failed = self._advance()
        self._elapsed += 1
        after = outcome(at, before, self._state, actions, self._task_vectors, self._last, failed)
        truncated = self._elapsed >= self.horizon
        view = self._followed = after.view
        info = _by_row(after.infos, self._everywhere)
        done = after.terminated | truncated
        if done.any():
            info["final_obs"], info["_final_obs"] = view.observations, done
            paid_under = {"task": self._exposed()["task"]} if self._expose_task else {}
            info["final_info"], info["_final_info"] = _by_row({**after.infos, **paid_under}, done), done
            info["new_task"], info["_new_task"] = self._begin_episodes(np.flatnonzero(done), None), done
            view = view.where(done, View.of(at, self._state))
        self._last = view
        return view.observations.copy(), after.rewards, after.terminated, truncated, {**info, **self._exposed()}

    def render(self) -> tuple[np.ndarray, ...] | None:
        """One picture ``[height, width, 3]`` uint8 per row, the hidden task visible; None without a render mode."""
        if self.render_mode is None:
            return None
        at = self.definition
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self._model, *self._size)
        camera = mujoco.MjvCamera()
        mujoco.mjv_defaultFreeCamera(self._model, camera)
        for name, value in at.camera.items():
            setattr(camera, name, value)
        data = mujoco.MjData(self._model)
        pictures = []
        for row in range(self.num_envs):
            self._batch.get_data(row, data)  # a copy: nothing done for the picture reaches the simulation
            mujoco.mj_forward(self._model, data)
            follow(camera, at.camera, data.xpos)
            self._renderer.update_scene(data, camera)
            if self._choices[row].task is not None:
                add_markers(self._renderer.scene, at.task_markers(self._state, row, self._task_vectors[row]))
            pictures.append(self._renderer.render())
        return tuple(pictures)

    def close_extras(self, **kwargs: Any) -> None:
        """Release the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    # Snapshots of the whole environment, so that a killed collection continues where it was

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything that the next steps depend on, as arrays; tasks excepted.

        Raises:
            ResetNeeded: no reset yet.
        """
        self._require_reset("save the state")
        state = {name: np.array(self._batch.bind(name)) for name in _PHYSICS}
        words = [_words(rng) for rng in self._rngs if rng is not None]
        return {**state, "elapsed": self._elapsed.copy(), "rngs": np.array(words, np.uint64)}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from what :meth:`get_state` gave; the environment must hold the same tasks.

        Raises:
            ResetNeeded: no reset yet, so that no tasks hold.
            InputError: the state of another number of rows or of another environment; then nothing is changed.
        """
        self._require_reset("continue from a state")
        own = self.get_state()
        for name, part in own.items():
            if name not in state or np.shape(state[name]) != part.shape:
                got = f"of shape {np.shape(state[name])}" if name in state else "missing"
                raise InputError(f"{name!r} of a state of {self.num_envs} rows has shape {part.shape}, is {got}")
        for name in _PHYSICS:
            self._batch.bind(name)[:] = state[name]
        self._elapsed[:] = state["elapsed"]
        self._rngs = [_generator(words) for words in state["rngs"].tolist()]
        self._last = self._followed = View.of(self.definition, self._state)

    def _advance(self) -> np.ndarray:
        """Step the physics; ``[n]`` bool, where it diverged."""
        raised = np.zeros(self.num_envs, bool)
        try:
            self._batch.step(nstep=self.definition.frame_skip)
        except BatchSimulationError as error:  # the other rows ran to completion
            raised[error.ids] = True
        return raised | self._divergence.any(1)

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
        try:
            self._batch.forward(rows)
        except BatchSimulationError as error:
            raise SimulationError(f"{at.env_id} cannot begin an episode: {error}") from None
        self._elapsed[rows] = 0
        return new_task

    def _require_reset(self, what: str) -> None:
        if self._rngs[0] is None:
            raise gymnasium.error.ResetNeeded(f"cannot {what} before the first reset of all rows")

    def _reset_mask(self, mask: Any) -> np.ndarray:
        if mask is None:
            return self._everywhere
        mask = checked_mask(mask, self.num_envs)
        if not mask.all():
            self._require_reset("reset some rows")
        return mask

    def _exposed(self) -> dict[str, np.ndarray]:
        if not self._expose_task:
            return {}
        tasks = np.empty(self.num_envs, object)  # as Gymnasium's vector environments give what is no number
        tasks[:] = self.tasks
        return {"task": tasks, "_task": self._everywhere}


def _by_row(infos: Mapping[str, np.ndarray], mask: np.ndarray) -> dict[str, Any]:
    """Infos as Gymnasium's vector environments give them: each ``[n]`` beside the mask of rows it is of."""
    return {key: value for name, info in infos.items() for key, value in ((name, info), ("_" + name, mask))}


def _words(rng: np.random.Generator) -> list[int]:
    """The state of a PCG64 generator as six numbers of 64 bits."""
    full: Any = rng.bit_generator.state
    halves = [full["state"][name] >> shift & (2**64 - 1) for name in ("state", "inc") for shift in (0, 64)]
    return [*halves, full["has_uint32"], full["uinteger"]]


def _generator(words: Sequence[int]) -> np.random.Generator:
    """The generator whose :func:`_words` these are."""
    bits = np.random.PCG64(0)
    full: Any = {
        "bit_generator": "PCG64",
        "state": {"state": words[0] | words[1] << 64, "inc": words[2] | words[3] << 64},
        "has_uint32": words[4],
        "uinteger": words[5],
    }
    bits.state = full
    return np.random.Generator(bits)

"""What a meta-environment is: one definition of task, observation, reward and termination.

The single and the vector environment both work on it, over arrays with a leading axis of n simulations, so they cannot
drift apart: row i of a vector environment equals the single environment bit for bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.mujoco.mujoco_env import expand_model_path

from icrl_agents.envs.markers import Marker
from icrl_agents.envs.symmetry import Symmetry
from icrl_agents.errors import TaskError

Task = Mapping[str, Any]
"""A small JSON-able mapping, e.g. ``{"goal": [0.1, -0.05]}``. Hidden from the observation."""


@dataclass(frozen=True)
class PhysicsState:
    """What a definition may read of n simulations.

    Attributes:
        qpos: generalised positions ``[n, nq]``.
        qvel: generalised velocities ``[n, nv]``.
        xpos: positions of the bodies ``[n, nbody, 3]`` in m; after a step they describe the state before the last
            substep, as in Gymnasium's environments.
    """

    qpos: np.ndarray
    qvel: np.ndarray
    xpos: np.ndarray


class MetaEnvDefinition(ABC):
    """Everything that distinguishes one meta-environment from another.

    Attributes:
        env_id: registered Gymnasium id.
        model_file: MuJoCo XML, as Gymnasium's own environments name it.
        frame_skip: physics steps per environment step.
        horizon: environment steps per episode.
        observation_dim: entries of an observation.
        render_fps: environment steps per simulated second.
        camera: default camera for rendering, as attributes of ``MjvCamera``; where ``trackbodyid`` is a moving body, it
            follows that in x and y.
        task_keys: the keys of a task and how many numbers each holds; one that holds one is a number, not a list.
        task_in_physics: whether the task places something that the body can touch. Where it does not, the task changes
            nothing but the reward; where it does, observations are independent of it until contact.
        privileged_dim: p, entries of :meth:`privileged`; 0 where the task says all that observations hide.
    """

    env_id: str
    model_file: str
    frame_skip: int
    horizon: int
    observation_dim: int
    render_fps: int
    camera: Mapping[str, Any]
    task_keys: Mapping[str, int]
    task_in_physics: bool = False
    privileged_dim: int = 0

    @property
    def model_path(self) -> Path:
        """Where the XML is."""
        return Path(expand_model_path(self.model_file))

    # What a task is

    @abstractmethod
    def sample_task(self, rng: np.random.Generator) -> Task:
        """Draw a task from the distribution."""

    @abstractmethod
    def check_numbers(self, numbers: np.ndarray) -> None:
        """Raise :class:`TaskError` where a task's :meth:`task_numbers` lie outside the distribution's support."""

    def task_numbers(self, task: Task) -> np.ndarray:
        """The numbers of a task ``[m]`` float64, in the order of ``task_keys``.

        Raises:
            TaskError: wrong keys, wrong sizes, not finite, or out of range.
        """
        if not isinstance(task, Mapping) or set(task) != set(self.task_keys):
            raise TaskError(f"a task of {self.env_id} has the keys {sorted(self.task_keys)}, got {task!r}")
        parts = []
        for key, size in self.task_keys.items():
            try:
                given = np.asarray(task[key])
            except ValueError:  # lists of different lengths
                given = np.empty(0, object)
            part = given.astype(np.float64).reshape(-1) if given.dtype.kind in "fiu" else np.empty(0)
            if given.ndim > 1 or part.shape != (size,) or not np.isfinite(part).all():
                raise TaskError(f"{key!r} of a task of {self.env_id} is {size} finite number(s), got {task[key]!r}")
            parts.append(part)
        numbers = np.concatenate(parts)
        self.check_numbers(numbers)
        return numbers

    @property
    def task_vector_dim(self) -> int:
        """k, entries of a task vector."""
        return sum(self.task_keys.values())

    def task_vector(self, task: Task) -> np.ndarray:
        """A task as the vector ``[k]`` float64 that rewards are computed from and sources may see.

        Default: its numbers.

        Raises:
            TaskError: as :meth:`task_numbers`.
        """
        return self.task_numbers(task)

    def symmetry(self, task: np.ndarray) -> Symmetry | None:
        """What turns a task vector ``[k]`` into its like among fewer tasks, whose policies then serve all.

        Default: no symmetry of body and tasks is known.
        """
        return None

    def canonical_task(self, task: Task) -> dict[str, Any]:
        """The task as a plain, JSON-able dict of its own, validated."""
        numbers = self.task_numbers(task).tolist()
        result: dict[str, Any] = {}
        for key, size in self.task_keys.items():
            own, numbers = numbers[:size], numbers[size:]
            result[key] = own[0] if size == 1 else own
        return result

    def sample_tasks(self, n: int, seed: int | np.random.SeedSequence) -> list[dict[str, Any]]:
        """Draw n tasks, the same for the same seed."""
        rng = np.random.default_rng(seed)
        return [self.canonical_task(self.sample_task(rng)) for _ in range(n)]

    # How an episode goes

    @abstractmethod
    def initial_state(
        self, init_qpos: np.ndarray, init_qvel: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw ``qpos [nq]`` and ``qvel [nv]`` of a new episode; never depends on the task."""

    def place_task(self, qpos: np.ndarray, tasks: np.ndarray) -> None:  # noqa: B027  most tasks have no place
        """Write tasks ``[n, k]`` into positions ``[n, nq]`` where the simulation shows them; default: nowhere."""

    @abstractmethod
    def observe(self, state: PhysicsState) -> np.ndarray:
        """Observations ``[n, observation_dim]`` float64, freshly allocated."""

    def privileged(self, state: PhysicsState) -> np.ndarray:
        """What observations hide and the task does not say because it changes, ``[n, privileged_dim]`` float64.

        For training alone: a teacher may see it, an agent never does. Default: nothing.
        """
        return np.empty((len(state.qpos), 0))

    def remember(self, state: PhysicsState) -> Any:
        """What the reward needs of the state before the step, copied; default: nothing."""
        return None

    @abstractmethod
    def reward(
        self, before: Any, state: PhysicsState, action: np.ndarray, tasks: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Rewards ``[n]`` float64, and what infos tell of them by name, ``[n]`` each.

        Those whose names begin with ``reward_`` are the parts that add up to the reward; others are what was measured.

        Args:
            before: what :meth:`remember` returned before the step.
            state: after the step.
            action: ``[n, A]`` as given to the environment.
            tasks: ``[n, k]``.
        """

    @abstractmethod
    def task_error(self, parts: Mapping[str, np.ndarray], tasks: np.ndarray) -> np.ndarray:
        """How far behaviour is from what tasks ask for, ``[n]``, in the unit of the environment's docstring.

        Args:
            parts: what :meth:`reward` told of every step of one episode, in environments that hold these tasks, by name
                ``[n, H]``; NaN after an early end.
            tasks: ``[n, k]``.
        """

    def terminated(self, state: PhysicsState) -> np.ndarray:
        """``[n]`` bool, True where the episode ends early; default: never."""
        return np.zeros(len(state.qpos), bool)

    # How it looks

    def task_markers(self, state: PhysicsState, row: int, task: np.ndarray) -> Sequence[Marker]:
        """What shows a viewer the hidden task; default: nothing, because the simulation itself shows it.

        Args:
            state: of n simulations.
            row: which of them is seen.
            task: its task ``[k]``.
        """
        return ()

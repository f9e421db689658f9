"""What a meta-environment is: one definition of task, observation, reward and termination.

The single and the vector environment both work on it, over arrays with a leading axis of n simulations, so they cannot
drift apart: row i of a vector environment equals the single environment bit for bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.mujoco.mujoco_env import expand_model_path

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
        camera: default camera for rendering.
        task_keys: the keys of a task and how many numbers each holds.
    """

    env_id: str
    model_file: str
    frame_skip: int
    horizon: int
    observation_dim: int
    render_fps: int
    camera: Mapping[str, float]
    task_keys: Mapping[str, int]

    @property
    def model_path(self) -> Path:
        """Where the XML is."""
        return Path(expand_model_path(self.model_file))

    # What a task is

    @abstractmethod
    def sample_task(self, rng: np.random.Generator) -> Task:
        """Draw a task from the distribution."""

    @abstractmethod
    def check_task_vector(self, vector: np.ndarray) -> None:
        """Raise :class:`TaskError` where a task ``[k]`` with the right keys lies outside the distribution's support."""

    def task_vector(self, task: Task) -> np.ndarray:
        """A task as numbers ``[k]`` float64, for sources that may see it.

        Raises:
            TaskError: wrong keys, wrong sizes, not finite, or out of range.
        """
        if not isinstance(task, Mapping) or set(task) != set(self.task_keys):
            raise TaskError(f"a task of {self.env_id} has the keys {sorted(self.task_keys)}, got {task!r}")
        parts = []
        for key, size in self.task_keys.items():
            try:
                part = np.asarray(task[key], np.float64).reshape(-1)
            except (TypeError, ValueError):
                part = np.empty(0)
            if part.shape != (size,) or not np.isfinite(part).all():
                raise TaskError(f"{key!r} of a task of {self.env_id} is {size} finite number(s), got {task[key]!r}")
            parts.append(part)
        vector = np.concatenate(parts)
        self.check_task_vector(vector)
        return vector

    def canonical_task(self, task: Task) -> dict[str, Any]:
        """The task as a plain, JSON-able dict of its own, validated."""
        vector = self.task_vector(task).tolist()
        result: dict[str, Any] = {}
        for key, size in self.task_keys.items():
            numbers, vector = vector[:size], vector[size:]
            result[key] = numbers[0] if np.isscalar(task[key]) else numbers
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

    def remember(self, state: PhysicsState) -> Any:
        """What the reward needs of the state before the step, copied; default: nothing."""
        return None

    @abstractmethod
    def reward(
        self, before: Any, state: PhysicsState, action: np.ndarray, tasks: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Rewards ``[n]`` float64 and their named parts ``[n]``.

        Args:
            before: what :meth:`remember` returned before the step.
            state: after the step.
            action: ``[n, A]`` as given to the environment.
            tasks: ``[n, k]``.
        """

    @abstractmethod
    def task_error(self, observations: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        """How far behaviour is from what tasks ask for, ``[n]``, in the unit of the environment's docstring.

        Args:
            observations: the last ones of episodes, ``[n, observation_dim]``.
            tasks: ``[n, k]``.
        """

    def terminated(self, state: PhysicsState) -> np.ndarray:
        """``[n]`` bool, True where the episode ends early; default: never."""
        return np.zeros(len(state.qpos), bool)

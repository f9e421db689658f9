"""The loop behind the page: an agent lives in one environment while somebody else moves its hidden task.

:class:`Simulation` takes steps and knows of no time; :class:`LiveSimulation` takes them in a thread of its own, at a
chosen pace. Both are told what to do from any thread, and nobody who looks can hold them up.
"""

import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import mujoco
import numpy as np

from icrl_agents.agent import InContextAgent
from icrl_agents.envs import MetaEnv, MetaEnvDefinition, PhysicsState, Task
from icrl_agents.envs.markers import Marker
from icrl_agents.errors import ConfigError

RANGE_SAMPLES = 4_000
"""Tasks drawn to see what numbers tasks have."""

CATCH_UP_SECONDS = 0.2
"""A simulation that is further behind its pace than this does not hurry to make up for it."""


@dataclass(frozen=True)
class Episode:
    """A finished episode.

    Attributes:
        total: sum of its rewards.
        steps: its length.
        task: the task that held.
        moved: whether that task was new to the agent, which remembers another.
    """

    total: float
    steps: int
    task: Mapping[str, Any]
    moved: bool


@dataclass(frozen=True)
class Frame:
    """What there is to see after a step; g geoms.

    Attributes:
        positions: of the geoms ``[g, 3]`` in m.
        rotations: of the geoms ``[g, 9]``, rows first.
        markers: what shows the task that holds, where the simulation itself does not.
        next_markers: likewise of the task that the next episode will have, if it is another.
        next_geoms: geom -> position ``[3]``, of those that the simulation will show elsewhere in the next episode,
            because the task places them.
        centre: ``[2]``, x and y of the body that the camera follows; 0 where it follows none.
        steps: of this episode so far.
        total: sum of its rewards so far.
        task: that holds.
        next_task: of the next episode, if it is another.
        episodes: finished since the agent knew nothing.
    """

    positions: np.ndarray
    rotations: np.ndarray
    markers: tuple[Marker, ...]
    next_markers: tuple[Marker, ...]
    next_geoms: Mapping[int, np.ndarray]
    centre: np.ndarray
    steps: int
    total: float
    task: Mapping[str, Any]
    next_task: Mapping[str, Any] | None
    episodes: tuple[Episode, ...]


@dataclass(frozen=True)
class NumberRange:
    """What one number of a task may be, to put on a slider: multiples of ``step`` from ``low`` to ``high``."""

    low: float
    high: float
    step: float


def task_ranges(definition: MetaEnvDefinition, samples: int = RANGE_SAMPLES) -> dict[str, list[NumberRange]]:
    """For every key of a task the ranges of its numbers, as drawn tasks have them.

    Not every combination of numbers has to be a task.
    """
    tasks = definition.sample_tasks(samples, seed=0)
    numbers = np.stack([definition.task_numbers(task) for task in tasks])  # [samples, m]
    ranges: list[NumberRange] = []
    for low, high in zip(numbers.min(0).tolist(), numbers.max(0).tolist(), strict=True):
        decimals = 2 - math.floor(math.log10(max(high - low, 1e-6)))  # 100 to 1,000 steps
        ranges.append(NumberRange(round(low, decimals), round(high, decimals), 10.0**-decimals))
    result: dict[str, list[NumberRange]] = {}
    for key, size in definition.task_keys.items():
        result[key], ranges = ranges[:size], ranges[size:]
    return result


class Simulation:
    """An agent in one environment whose hidden task can be moved while it lives.

    A moved task holds from the next episode on, and the agent is not told: it keeps what it remembers of the one
    before, and has to notice. What is wished, by any thread, is done between two steps.

    Args:
        agent: is reset.
        task: to begin with; None draws one.
        seed: of the initial states, of drawn tasks and of a sampling agent.

    Raises:
        ConfigError: the agent's environment is no :class:`~icrl_agents.envs.MetaEnv`.
        TaskError: the task does not fit the environment.
    """

    def __init__(self, agent: InContextAgent, task: Task | None = None, seed: int = 0) -> None:
        self.agent = agent
        self.env = agent.make_env(task=task)
        if not isinstance(self.env.unwrapped, MetaEnv):
            raise ConfigError(f"expected an environment made from icrl_agents.envs.MetaEnv, got {self.env.unwrapped}")
        self._meta = self.env.unwrapped
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._scratch = mujoco.MjData(self.model)
        self._lock = threading.Lock()  # of the wishes
        self._wished_task: dict[str, Any] | None = None
        self._wished_end = self._wished_forgetting = False
        self._episodes: list[Episode] = []
        self._observation, self._steps, self._total, self._moved = np.zeros(0), 0, 0.0, False
        agent.reset(seed=seed)
        self._begin_episode(seed=seed)
        self._moved = False

    @property
    def definition(self) -> MetaEnvDefinition:
        """Of the environment."""
        return self._meta.definition

    @property
    def model(self) -> mujoco.MjModel:
        """The physics."""
        return self._meta.model

    @property
    def step_seconds(self) -> float:
        """Simulated time of a step."""
        return 1.0 / self.definition.render_fps

    def move(self, task: Task) -> None:
        """Let another task hold from the next episode on; the agent is not told.

        Raises:
            TaskError: it does not fit the environment.
        """
        canonical = self.definition.canonical_task(task)
        with self._lock:
            self._wished_task = canonical

    def move_anywhere(self) -> dict[str, Any]:
        """Draw that task, and say which it is."""
        with self._lock:
            self._wished_task = self.definition.canonical_task(self.definition.sample_task(self._rng))
            return self._wished_task

    def end_episode(self) -> None:
        """Cut the episode short and begin the next; the one that is cut counts for nothing."""
        with self._lock:
            self._wished_end = True

    def forget(self) -> None:
        """Let the agent forget everything, and begin another episode and another curve."""
        with self._lock:
            self._wished_forgetting = True

    def obey(self) -> None:
        """Do what was wished; a moved task waits for the next episode."""
        with self._lock:
            forgetting, ending = self._wished_forgetting, self._wished_end
            self._wished_forgetting = self._wished_end = False
        if forgetting:
            self.agent.reset(seed=self._seed)
            self._episodes = []
            self._begin_episode()
            self._moved = False
        elif ending:
            self.agent.begin_episode()
            moved_before = self._moved  # the agent may have lived a part of an episode in it, but finished none
            self._begin_episode()
            self._moved |= moved_before

    def step(self) -> None:
        """Do what was wished, then one step; an episode that ended is followed by the next."""
        self.obey()
        self._observation, reward, terminated, truncated, _ = self.env.step(self.agent.act(self._observation))
        self.agent.observe(float(reward), terminated, truncated)
        self._total += float(reward)
        self._steps += 1
        if terminated or truncated:
            self._episodes.append(Episode(self._total, self._steps, self._meta.task, self._moved))
            self._begin_episode()

    def frame(self) -> Frame:
        """What there is to see now. For the thread that steps."""
        data, task = self._meta.data, self._meta.task
        with self._lock:
            next_task = None if self._wished_task == task else self._wished_task
        body = self.definition.camera.get("trackbodyid", -1)
        return Frame(
            positions=data.geom_xpos.copy(),
            rotations=data.geom_xmat.copy(),
            markers=self._markers(task),
            next_markers=() if next_task is None else self._markers(next_task),
            next_geoms={} if next_task is None else self._moved_geoms(task, next_task),
            centre=data.xpos[body, :2].copy() if body > 0 else np.zeros(2),
            steps=self._steps,
            total=self._total,
            task=task,
            next_task=next_task,
            episodes=tuple(self._episodes),
        )

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _begin_episode(self, seed: int | None = None) -> None:
        with self._lock:
            task, self._wished_task = self._wished_task, None
        before = getattr(self._meta, "task", None)
        self._observation, _ = self.env.reset(seed=seed, options=None if task is None else {"task": task})
        self._moved = self._meta.task != before
        self._steps, self._total = 0, 0.0

    def _markers(self, task: Task) -> tuple[Marker, ...]:
        data = self._meta.data
        state = PhysicsState(data.qpos[None], data.qvel[None], data.xpos[None])
        return tuple(self.definition.task_markers(state, 0, self.definition.task_vector(task)))

    def _moved_geoms(self, task: Task, other: Task) -> dict[int, np.ndarray]:
        """Geom -> position ``[3]`` at an episode's start, of those that stand elsewhere under another task."""
        positions = []
        for held in (task, other):
            qpos = self._meta.init_qpos.copy()
            self.definition.place_task(qpos[None], self.definition.task_vector(held)[None])
            self._scratch.qpos[:] = qpos
            mujoco.mj_kinematics(self.model, self._scratch)
            positions.append(self._scratch.geom_xpos.copy())
        moved = np.flatnonzero((positions[0] != positions[1]).any(axis=1))
        return {int(geom): positions[1][geom] for geom in moved}


class LiveSimulation:
    """A simulation that runs in a thread of its own. Use it in ``with``.

    It leaves the newest frame in :attr:`latest` and goes on, whether anybody takes it or not.

    Args:
        simulation: only this thread steps it from now on.
        frame_seconds: least time between two frames.
    """

    def __init__(self, simulation: Simulation, frame_seconds: float = 1 / 30) -> None:
        self.simulation = simulation
        self.speed = 1.0
        """Simulated seconds a second; infinity is as fast as it can."""
        self.paused = False
        self._frame_seconds = frame_seconds
        self._latest = simulation.frame()
        self._failure: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="icrl-agents watch", daemon=True)

    @property
    def latest(self) -> Frame:
        """The newest frame.

        Raises:
            BaseException: whatever ended the simulation.
        """
        if self._failure is not None:
            raise self._failure
        return self._latest

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._thread.join()
        self.simulation.close()

    def _run(self) -> None:
        try:
            self._live()
        except BaseException as error:  # it is raised where somebody looks
            self._failure = error

    def _live(self) -> None:
        due = shown = time.perf_counter()
        while not self._stopping.is_set():
            if self.paused:
                self.simulation.obey()
                self._latest = self.simulation.frame()
                self._stopping.wait(self._frame_seconds)
                due = time.perf_counter()
                continue
            self.simulation.step()
            now = time.perf_counter()
            if now - shown >= self._frame_seconds:
                self._latest, shown = self.simulation.frame(), now
            due += self.simulation.step_seconds / self.speed
            if due > now:
                self._stopping.wait(due - now)
            elif now - due > CATCH_UP_SECONDS:
                due = now

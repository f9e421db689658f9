"""What other libraries need to act in meta-environments: experience in the observation, and trials of several episodes.

The observation of :class:`ExperienceObservation` is the raw token of :class:`~icrl_agents.tokens.TokenLayout`::

    [observation | previous observation | previous action | previous reward | episode start]

"Previous" goes on through the resets of one task and is 0 at the first step of a task, that is where
``info["new_task"]`` is True. An environment that never says so has one task until :meth:`forget`.

:class:`TrialWrapper` makes K episodes of one task one episode, so that a recurrent policy, which forgets where an
episode ends, can learn a task over several. The two wrap each other in either order, with the same tokens.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from icrl_agents.envs import Task
from icrl_agents.envs.rows import checked_mask, one_per_row
from icrl_agents.envs.seeds import checked_seed, checked_seeds
from icrl_agents.errors import ConfigError, TaskError
from icrl_agents.tokens import TokenLayout

_TRIAL_STREAM = 0x7121
"""Keeps the stream of the seeds of later trials apart from what else one seed begins."""


_TASK_WITHIN_TRIAL = "a new task began within a trial, which is of one task; give it by {}, for the next trial"


class ExperienceObservation(gymnasium.Wrapper, RecordConstructorArgs):
    """One environment whose observation ``[T]`` is the token of the decision to come.

    Args:
        env: with one-dimensional Box observations and actions.

    Raises:
        ConfigError: other spaces.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        RecordConstructorArgs.__init__(self)
        gymnasium.Wrapper.__init__(self, env)
        self.layout, space, self._bounds = _token_space(env.observation_space, env.action_space)
        self.observation_space = space
        self._token = np.zeros(space.shape, space.dtype)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; see :meth:`gymnasium.Env.reset`."""
        observation, info = self.env.reset(seed=seed, options=options)
        if info.get("new_task", False):
            self.forget()
        self._token[self.layout.observation] = observation
        self._token[self.layout.episode_start] = 1.0
        return self._token.copy(), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """Take a step; see :meth:`gymnasium.Env.step`."""
        at, token = self.layout, self._token
        observation, reward, terminated, truncated, info = self.env.step(action)
        token[at.previous_observation] = token[at.observation]
        token[at.previous_action] = np.clip(action, *self._bounds)
        token[at.previous_reward] = float(reward)
        token[at.episode_start] = 0.0
        if info.get("episode_end", False) and not (terminated or truncated):  # the trial goes on with another episode
            token[at.observation] = info["final_obs"]
            info = {**info, "final_obs": token.copy()}
            token[at.episode_start] = 1.0
        token[at.observation] = observation
        return token.copy(), reward, terminated, truncated, info

    def forget(self) -> None:
        """Make the next reset the first step of a task."""
        self._token[:] = 0.0


class VectorExperienceObservation(VectorWrapper):
    """The same for a vector environment, ``[B, T]``; ``info["final_obs"]`` holds tokens too.

    Args:
        env: with one-dimensional Box observations and actions, and autoreset SAME_STEP or DISABLED.

    Raises:
        ConfigError: other spaces, or autoreset NEXT_STEP, whose extra step would be taken for a decision.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        mode = env.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
            raise ConfigError(f"expected autoreset mode SAME_STEP or DISABLED, got {mode}")
        self._autoresets = mode is AutoresetMode.SAME_STEP
        self.layout, space, self._bounds = _token_space(env.single_observation_space, env.single_action_space)
        self.single_observation_space = space
        self.observation_space = batch_space(space, env.num_envs)
        self._tokens = np.zeros((env.num_envs, self.layout.size), space.dtype)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin episodes, in the rows of ``options["reset_mask"]`` if it is given."""
        mask = (options or {}).get("reset_mask")
        rows = np.ones(self.num_envs, bool) if mask is None else np.array(mask, bool)
        observations, info = self.env.reset(seed=seed, options=options)
        self.forget(rows & self._new_task(info))
        self._tokens[:, self.layout.observation] = observations
        self._tokens[rows, self.layout.episode_start] = 1.0
        return self._tokens.copy(), info

    def step(self, actions: Any) -> tuple[np.ndarray, Any, Any, Any, dict[str, Any]]:
        """Take a step in every row."""
        at, tokens = self.layout, self._tokens
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        tokens[:, at.previous_observation] = tokens[:, at.observation]
        tokens[:, at.previous_action] = np.clip(actions, *self._bounds)
        tokens[:, at.previous_reward] = rewards
        tokens[:, at.episode_start] = 0.0
        tokens[:, at.observation] = observations
        over = np.asarray(terminated) | np.asarray(truncated)
        inner = np.asarray(info.get("episode_end", False), bool) & ~over  # trials go on, whatever the autoreset mode
        begun = inner | over if self._autoresets else inner
        if begun.any():
            info = {**info, "final_obs": self._final_tokens(begun, info["final_obs"])}
            tokens[begun, at.episode_start] = 1.0
            self.forget(begun & over & self._new_task(info))
            tokens[:, at.observation] = observations
        return tokens.copy(), rewards, terminated, truncated, info

    def forget(self, mask: np.ndarray) -> None:
        """Make the next decision of the rows in ``mask`` ``[B]`` the first step of a task."""
        self._tokens[mask] = 0.0
        self._tokens[mask, self.layout.episode_start] = 1.0

    def _new_task(self, info: dict[str, Any]) -> np.ndarray:
        return np.asarray(info.get("new_task", np.zeros(self.num_envs, bool)), bool)

    def _final_tokens(self, ended: np.ndarray, final_obs: Any) -> np.ndarray:
        """The tokens of episodes' last observations; rows whose episode goes on hold their current token."""
        final = self._tokens.copy()
        for row in np.flatnonzero(ended):
            final[row, self.layout.observation] = final_obs[row]
        return final


class TrialWrapper(gymnasium.Wrapper, RecordConstructorArgs):
    """A trial, that is K episodes of one task, as one episode.

    Outside, an episode is over where the K-th episode inside is, with that one's ``terminated`` and ``truncated``.
    Where an earlier one ends, the observation returned is the first of the next, ``info["final_obs"]`` holds its last,
    and neither flag is set. ``info["episode_end"]`` of every step says whether an episode ended in it, the K-th too.

    Every reset begins a new trial: ``info["new_task"]`` is True, and an :class:`ExperienceObservation` inside forgets.
    The task is the one given by ``options={"task": ...}``, else by :meth:`set_task`, else the environment's own
    ``task=``, else drawn anew.

    Args:
        env: where ``reset(seed=s)`` draws a task and a plain ``reset()`` keeps it, as in :mod:`icrl_agents.envs`.
        episodes: K.

    Raises:
        ConfigError: ``episodes`` is not a whole number of at least 1.
    """

    def __init__(self, env: gymnasium.Env, episodes: int) -> None:
        RecordConstructorArgs.__init__(self, episodes=episodes)
        gymnasium.Wrapper.__init__(self, env)
        self.episodes = _checked_episodes(episodes)
        self._episode = 0  # of the trial, from 1
        self._seeds = np.random.default_rng()
        self._given: Task | None = None

    def set_task(self, task: Task) -> None:
        """Give the task of the next trial; the one that runs keeps its own.

        Raises:
            TaskError: it does not fit the environment; one without a ``definition`` is asked at the next reset.
        """
        self._given = _own_task(self.unwrapped, task)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a trial; see :meth:`gymnasium.Env.reset`. ``seed`` determines all trials to come, too.

        Raises:
            InputError: a seed that is not a whole number of at least 0.
        """
        seed = checked_seed(seed)
        if seed is not None:
            self._seeds = _trial_seeds(seed)
        else:
            seed = _next_seed(self._seeds)
        if self._given is not None and (options or {}).get("task") is None:
            options = {**(options or {}), "task": self._given}
        for memory in _memories(self.env):
            memory.forget()
        observation, info = self.env.reset(seed=seed, options=options)
        self._given, self._episode = None, 1
        return observation, {**info, "new_task": True}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step; see :meth:`gymnasium.Env.step`.

        Raises:
            TaskError: the environment began an episode within the trial with a new task.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        ended = bool(terminated or truncated)
        info = {**info, "episode_end": ended}
        if ended and self._episode < self.episodes:
            self._episode += 1
            info["final_obs"] = observation
            observation, begun = self.env.reset()
            if begun.get("new_task", False):
                raise TaskError(_TASK_WITHIN_TRIAL.format("TrialWrapper.set_task"))
            terminated = truncated = False
        return observation, reward, terminated, truncated, info


class VectorTrialWrapper(VectorWrapper):
    """The same for a native vector environment: each row goes through trials of its own, autoreset SAME_STEP.

    Row i equals :class:`TrialWrapper` around the single environment with its seed. ``info["final_obs"]`` and
    ``info["_final_obs"]`` are of every episode that ended, ``info["episode_end"]``; the flags only of those that were
    their trial's last.

    Args:
        env: with autoreset SAME_STEP, whose ``reset`` takes one seed per row and the options ``tasks`` and
            ``reset_mask``, as :class:`icrl_agents.envs.MetaVectorEnv`.
        episodes: K.

    Raises:
        ConfigError: another autoreset mode, or ``episodes`` is not a whole number of at least 1.
    """

    def __init__(self, env: VectorEnv, episodes: int) -> None:
        super().__init__(env)
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ConfigError(f"expected autoreset mode SAME_STEP, got {mode}")
        self.episodes = _checked_episodes(episodes)
        self._episode = np.zeros(env.num_envs, np.int64)
        self._seeds = [np.random.default_rng() for _ in range(env.num_envs)]
        self._given: list[Task | None] = [None] * env.num_envs
        self._everywhere = np.ones(env.num_envs, bool)

    def set_tasks(self, tasks: Sequence[Task | None]) -> None:
        """Give the tasks of the rows' next trials, one per row; None leaves a row its own.

        Raises:
            TaskError: they do not fit the environment or are not one per row; then nothing is changed.
        """
        checked = self._one_per_row(tasks)
        self._given = [old if new is None else new for old, new in zip(self._given, checked, strict=True)]

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin trials, in the rows of ``options["reset_mask"]`` if it is given.

        Raises:
            TaskError: tasks that do not fit, or a mask of another shape.
            InputError: not one seed per row, or one that is not a whole number of at least 0.
        """
        options = dict(options or {})
        mask = options.pop("reset_mask", None)
        mask = self._everywhere if mask is None else checked_mask(mask, self.num_envs)
        if options.get("tasks") is not None:
            options["tasks"] = self._one_per_row(options["tasks"])
        return self._begin_trials(mask, checked_seeds(seed, self.num_envs), options)

    def step(self, actions: Any) -> tuple[np.ndarray, Any, Any, Any, dict[str, Any]]:
        """Take a step in every row.

        Raises:
            TaskError: the environment began an episode within a trial with a new task.
        """
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        ended = terminated | truncated
        if "new_task" in info and (ended & info["new_task"]).any():
            raise TaskError(_TASK_WITHIN_TRIAL.format("VectorTrialWrapper.set_tasks"))
        over = ended & (self._episode == self.episodes)
        self._episode[ended] += 1
        info = {**info, "episode_end": ended, "_episode_end": self._everywhere.copy()}
        if over.any():
            # The environment began another episode of the same task there: begin the next trial's instead
            begun, begun_info = self._begin_trials(over, [None] * self.num_envs, {})
            observations = np.where(over[:, None], begun, observations)
            info = {**info, **begun_info}
        return observations, rewards, terminated & over, truncated & over, info

    def _one_per_row(self, tasks: Any) -> list[dict[str, Any] | None]:
        """The tasks, checked and copied."""
        rows = one_per_row(tasks, self.num_envs)
        return [None if task is None else _own_task(self.unwrapped, task) for task in rows]

    def _begin_trials(
        self, mask: np.ndarray, seeds: Sequence[int | None], options: dict[str, Any]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset the rows of ``mask``; rows without a seed take the next of their stream."""
        own: list[int | None] = [None] * self.num_envs
        for row in np.flatnonzero(mask).tolist():
            given = seeds[row]
            if given is not None:
                self._seeds[row] = _trial_seeds(given)
            own[row] = _next_seed(self._seeds[row]) if given is None else given
        if any(task is not None for task in self._given) and options.get("task") is None:
            given_now = options.get("tasks") or [None] * self.num_envs
            options["tasks"] = [old if new is None else new for old, new in zip(self._given, given_now, strict=True)]
        for memory in _memories(self.env):
            memory.forget(mask)
        observations, info = self.env.reset(seed=own, options={**options, "reset_mask": mask})  # type: ignore[arg-type]  # one per row
        self._given = [None if begun else task for begun, task in zip(mask, self._given, strict=True)]
        self._episode[mask] = 1
        return observations, {**info, "new_task": mask.copy()}


def _checked_episodes(episodes: int) -> int:
    if not isinstance(episodes, int | np.integer) or episodes < 1:
        raise ConfigError(f"episodes of a trial are a whole number of at least 1, got {episodes!r}")
    return int(episodes)


def _own_task(env: Any, task: Task) -> dict[str, Any]:
    """A task as an environment's definition writes it, where it has one."""
    definition = getattr(env, "definition", None)
    return copy.deepcopy(dict(task)) if definition is None else definition.canonical_task(task)


def _trial_seeds(seed: int) -> np.random.Generator:
    """The stream of the seeds of the trials after the one with this seed."""
    return np.random.default_rng([seed, _TRIAL_STREAM])


def _next_seed(stream: np.random.Generator) -> int:
    return int(stream.integers(2**31))


def _memories(env: gymnasium.Env | VectorEnv) -> Iterator[Any]:
    """The layers of a wrapped environment that carry experience."""
    while isinstance(env, gymnasium.Wrapper | VectorWrapper):
        if isinstance(env, ExperienceObservation | VectorExperienceObservation):
            yield env
        env = env.env


def _token_space(
    observation: spaces.Space, action: spaces.Space
) -> tuple[TokenLayout, spaces.Box, tuple[np.ndarray, np.ndarray]]:
    """Layout and space of the token, and the bounds of the action."""
    for space in (observation, action):
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ConfigError(f"expected one-dimensional Box observations and actions, got {space}")
    assert isinstance(observation, spaces.Box)
    assert isinstance(action, spaces.Box)
    layout = TokenLayout(observation.shape[0], action.shape[0])
    dtype = np.float64 if observation.dtype == np.float64 else np.float32
    zero_low, zero_high = np.minimum(observation.low, 0), np.maximum(observation.high, 0)
    low = layout.encode(observation.low, zero_low, np.minimum(action.low, 0), -np.inf, 0, dtype)
    high = layout.encode(observation.high, zero_high, np.maximum(action.high, 0), np.inf, 1, dtype)
    return layout, spaces.Box(low, high, dtype=dtype), (action.low, action.high)

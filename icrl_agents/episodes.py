"""Whole episodes of an agent in an environment: the loop, with every way to begin an episode or a task.

E episodes, B rows
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv

from icrl_agents.errors import InputError

OnEpisode = Callable[[int, int, float], None]
"""Called at the end of an episode with its row, its number in that row from 1, and its return."""


class Acting(Protocol):
    """What :class:`icrl_agents.InContextAgent` does in a loop."""

    def act(self, obs: npt.ArrayLike, deterministic: bool | None = None) -> np.ndarray: ...

    def observe(self, reward: npt.ArrayLike, terminated: npt.ArrayLike) -> None: ...

    def forget(self, mask: npt.ArrayLike | None = None) -> None: ...

    def begin_episode(self, mask: npt.ArrayLike | None = None) -> None: ...


@dataclass(frozen=True)
class EpisodeRecord:
    """What E episodes brought, ``[E]`` in one environment, ``[B, E]`` in B rows.

    Attributes:
        returns: float64, sums of rewards.
        lengths: int64, steps.
        new_task: bool, the agent had forgotten everything when the episode began.
    """

    returns: np.ndarray
    lengths: np.ndarray
    new_task: np.ndarray


def run_in_one(
    agent: Acting,
    env: gymnasium.Env,
    episodes: int,
    seed: int | None,
    deterministic: bool | None,
    fresh: bool,
    on_episode: OnEpisode | None,
) -> EpisodeRecord:
    """E episodes in one environment; ``fresh`` says that the agent knows nothing yet, else it goes on with that."""
    record = _empty((episodes,))
    observation, info = env.reset(seed=seed)
    record.new_task[0] = fresh
    for episode in range(episodes):
        if episode and info.get("new_task", False):
            agent.forget()
            record.new_task[episode] = True
        done = False
        while not done:
            observation, reward, terminated, truncated, info = env.step(agent.act(observation, deterministic))
            done = bool(terminated or truncated)
            agent.observe(float(reward), done)
            if info.get("episode_end", False) and not done:  # a trial of several episodes goes on without a reset
                agent.begin_episode()
            record.returns[episode] += float(reward)
            record.lengths[episode] += 1
        if on_episode is not None:
            on_episode(0, episode + 1, float(record.returns[episode]))
        if episode + 1 < episodes:
            observation, info = env.reset()
    return record


def run_in_rows(
    agent: Acting,
    env: VectorEnv,
    mode: AutoresetMode,
    episodes: int,
    seed: int | None,
    deterministic: bool | None,
    fresh: bool,
    on_episode: OnEpisode | None,
) -> EpisodeRecord:
    """E episodes in each row of a vector environment; rows that are through go on until all are."""
    rows = env.num_envs
    record = _empty((rows, episodes))
    episode = np.zeros(rows, np.int64)
    observations, info = env.reset(seed=seed)
    if not isinstance(info, Mapping):
        kind = type(info).__name__
        raise InputError(f"expected infos as one dict, as Gymnasium's vector environments give them, got a {kind}")
    record.new_task[:, 0] = fresh
    never = np.zeros(rows, bool)
    resetting = never  # NEXT_STEP: the next step begins these rows' episodes and is no experience
    while (episode < episodes).any():
        observations, rewards, terminated, truncated, info = env.step(agent.act(observations, deterministic))
        done = np.asarray(terminated) | np.asarray(truncated)
        agent.observe(rewards, done)
        inner = _flags(info, "episode_end", rows) & ~done  # a trial of several episodes goes on without a reset
        if inner.any():
            agent.begin_episode(inner)
        at = np.flatnonzero(~resetting & (episode < episodes))
        record.returns[at, episode[at]] += np.asarray(rewards)[at]
        record.lengths[at, episode[at]] += 1
        ended = done & ~resetting
        for row in np.flatnonzero(ended & (episode < episodes)).tolist() if on_episode is not None else ():
            on_episode(row, int(episode[row]) + 1, float(record.returns[row, episode[row]]))  # type: ignore[misc]
        episode[ended] += 1
        begun = resetting if mode is AutoresetMode.NEXT_STEP else ended
        if mode is AutoresetMode.DISABLED and ended.any() and (episode < episodes).any():
            observations, info = env.reset(options={"reset_mask": ended})
        new = begun & _flags(info, "new_task", rows)
        if new.any():
            agent.forget(new)
            at = np.flatnonzero(new & (episode < episodes))
            record.new_task[at, episode[at]] = True
        resetting = ended if mode is AutoresetMode.NEXT_STEP else never
    return record


def _empty(shape: tuple[int, ...]) -> EpisodeRecord:
    return EpisodeRecord(np.zeros(shape), np.zeros(shape, np.int64), np.zeros(shape, bool))


def _flags(info: Mapping[str, Any], name: str, rows: int) -> np.ndarray:
    """What a vector environment's info says of each row ``[B]``; False where it says nothing."""
    if name not in info:
        return np.zeros(rows, bool)
    return np.asarray(info[name], bool) & np.asarray(info.get("_" + name, True), bool)

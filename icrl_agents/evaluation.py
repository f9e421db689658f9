"""Does it learn in context? Agents on unseen tasks, with anchors, controls and intervals.

    normalized return = (R - blind) / (oracle - blind), by task: 0 is the best policy that sees neither task nor reward,
    1 the best policy that was told the task. Where these anchors were not measured, returns alone are told.

Controls: acting on task i with the rewards of task j (*swapped*) must make the agent do j; forgetting at every episode
(*reset*) must cost what it learned over episodes. A third control, an agent trained with its rewards masked, is a
checkpoint of its own and is compared like any other.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
from scipy import stats

from icrl_agents.agent import InContextAgent
from icrl_agents.agent_inputs import make_of
from icrl_agents.atomic import write_text_atomically
from icrl_agents.config import AgentConfig, load_json
from icrl_agents.envs import (
    TaskSplit,
    default_split,
    env_definition,
    has_anchors,
    load_anchors,
    split_names,
    task_split,
)
from icrl_agents.envs.anchors import ANCHOR_NAMES
from icrl_agents.envs.seeds import checked_seed
from icrl_agents.errors import ConfigError, InputError

LAST_EPISODES = 5
"""Episodes at the end that make an agent's final return."""


@dataclass(frozen=True)
class Rollouts:
    """What an agent did on N tasks over E episodes of H steps.

    Attributes:
        returns: ``[N, E]`` sums of the rewards the agent was given.
        lengths: ``[N, E]`` steps.
        first_episode: ``[N, H]`` rewards per step inside episode 1; 0 after an early end.
        last_episode: ``[N, H]`` likewise inside the last.
        final_observations: ``[N, E, N_o]`` the last observation of each episode.
        last_parts: what the last episode's infos told of the rewards of the tasks acted on, by name ``[N, H]``; NaN
            after an early end.
        rewarding_last_parts: likewise of the tasks whose rewards the agent was given.
    """

    returns: np.ndarray
    lengths: np.ndarray
    first_episode: np.ndarray
    last_episode: np.ndarray
    final_observations: np.ndarray
    last_parts: Mapping[str, np.ndarray]
    rewarding_last_parts: Mapping[str, np.ndarray]


def rollout(
    agent: InContextAgent,
    tasks: Sequence[Mapping[str, Any]],
    episodes: int,
    seed: int,
    *,
    reward_tasks: Sequence[Mapping[str, Any]] | None = None,
    reset_each_episode: bool = False,
    on_episode: Callable[[int, float], None] | None = None,
) -> Rollouts:
    """Let an agent learn in context, one row of the native vector environment per task.

    Args:
        agent: is reset first and keeps what it learned over episodes.
        tasks: N tasks that the rows hold.
        episodes: E, of each task.
        seed: of the initial states and of a sampling agent.
        reward_tasks: N tasks whose rewards the agent gets instead: a second environment takes the same actions from the
            same initial states, which is exact where the task changes nothing but the reward.
        reset_each_episode: forget everything after each episode.
        on_episode: called as often as another episode is over in every task, with its number and mean return.

    Raises:
        InputError: no episodes.
        ConfigError: its environment is not known here, or its options do not fit.
    """
    if episodes < 1:
        raise InputError(f"episodes is at least 1, got {episodes}")
    env_id, options = agent.config.env_id, dict(agent.config.env_options)
    env = make_of(gymnasium.make_vec, env_id, options, num_envs=len(tasks), tasks=list(tasks))
    horizon = getattr(env.unwrapped, "horizon", agent.config.episode_steps)
    observations, _ = env.reset(seed=seed)
    rewarding = None
    if reward_tasks is not None:
        rewarding = make_of(gymnasium.make_vec, env_id, options, num_envs=len(tasks), tasks=list(reward_tasks))
        rewarding.reset(seed=seed)
    agent.reset(env=env, seed=seed)
    n = len(tasks)
    rewards_by_step = np.zeros((n, episodes, horizon))
    lengths = np.zeros((n, episodes), np.int64)
    finals = np.zeros((n, episodes, observations.shape[1]))
    episode = np.zeros(n, np.int64)
    own_parts: dict[str, np.ndarray] = {}
    rewarding_parts: dict[str, np.ndarray] = own_parts if rewarding is None else {}
    while (episode < episodes).any():
        actions = agent.act(observations)
        observations, rewards, terminated, truncated, info = env.step(actions)
        in_last = np.flatnonzero(episode == episodes - 1)
        now = (in_last, lengths[in_last, -1])
        _record(own_parts, info, now, (n, horizon))
        if rewarding is not None:
            _, rewards, _, _, rewarding_info = rewarding.step(actions)
            _record(rewarding_parts, rewarding_info, now, (n, horizon))
        agent.observe(rewards, terminated, truncated)
        rows = np.flatnonzero(episode < episodes)
        at = (rows, episode[rows])
        rewards_by_step[(*at, lengths[at])] = rewards[rows]
        lengths[at] += 1
        done = terminated | truncated
        if not done.any():
            continue
        ended = np.flatnonzero(done & (episode < episodes))
        finals[ended, episode[ended]] = info["final_obs"][ended]
        before = int(episode.min())
        episode[done] += 1
        if reset_each_episode:
            agent.forget(done)
        for finished in range(before, min(int(episode.min()), episodes)) if on_episode is not None else ():
            on_episode(finished + 1, float(rewards_by_step[:, finished].sum(1).mean()))  # type: ignore[misc]
    env.close()
    if rewarding is not None:
        rewarding.close()
    returns = rewards_by_step.sum(2)
    return Rollouts(returns, lengths, rewards_by_step[:, 0], rewards_by_step[:, -1], finals, own_parts, rewarding_parts)


def _record(
    parts: dict[str, np.ndarray], info: Mapping[str, Any], at: tuple[np.ndarray, np.ndarray], shape: tuple[int, int]
) -> None:
    """Write what infos say of a step, one number a row, into ``[N, H]`` at the rows and steps ``at``."""
    for name, told in info.items():
        if isinstance(told, np.ndarray) and told.ndim == 1 and told.dtype.kind == "f":
            if name not in parts:
                parts[name] = np.full(shape, np.nan)
            parts[name][at] = told[at[0]]


@dataclass(frozen=True)
class EvalResult:
    """One agent on N tasks over E episodes; what ``evaluate --json`` writes.

    Attributes:
        agent: its name.
        env_id: Gymnasium id.
        split: named split.
        split_hash: its content hash.
        subset: part of the split.
        seeds: of the evaluations; returns are their mean.
        tasks: N tasks.
        returns: ``[N][E]``.
        lengths: ``[N][E]`` steps.
        anchors: ``zero, random, blind, oracle`` -> ``[N]``; empty where they were not all measured, as on a split of
            your own, or in an environment with options.
        normalized: ``[N][E]``, (returns - blind) / (oracle - blind); empty without anchors.
        first_episode: ``[N][H]`` reward per step inside episode 1.
        last_episode: ``[N][H]`` reward per step inside the last episode.
        controls: results of the controls.
        summary: the numbers to quote, each with its interval.
        versions: what it ran on.
        env_options: of the environment, e.g. another horizon.
    """

    agent: str
    env_id: str
    split: str
    split_hash: str
    subset: str
    seeds: list[int]
    tasks: list[dict[str, Any]]
    returns: list[list[float]]
    lengths: list[list[float]]
    anchors: Mapping[str, list[float]]
    normalized: list[list[float]]
    first_episode: list[list[float]]
    last_episode: list[list[float]]
    controls: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    env_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [self.returns, self.normalized] if self.anchors else [self.returns]
        if len({len(row) for rows in given for row in rows}) != 1 or any(
            len(rows) != len(self.tasks) for rows in given
        ):
            raise ConfigError(f"expected returns of {len(self.tasks)} tasks with equally many episodes each")

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_text_atomically(Path(path), json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "EvalResult":
        """Read what :meth:`save` wrote.

        Raises:
            ConfigError: the file is missing or no such result.
        """
        return load_json(cls, Path(path))


def evaluate(
    agent: InContextAgent,
    *,
    split: str | None = None,
    subset: str = "test",
    tasks: int | None = None,
    episodes: int = 40,
    seeds: Sequence[int] = (0,),
    controls: bool = True,
    on_episode: Callable[[int, float], None] | None = None,
) -> EvalResult:
    """Evaluate an agent by the protocol of every published number.

    Args:
        agent: to evaluate; it is reset.
        split: named split of its environment; None is the one that it was trained on, or the environment's default.
        subset: ``"test"`` to report, ``"val"`` to select.
        tasks: the first so many tasks of the subset; None takes all.
        episodes: E, of each task.
        seeds: evaluation seeds; what is measured is averaged over them, task by task.
        controls: also run the controls with the first seed.
        on_episode: called with the number of finished episodes and their mean return, first seed only.

    Raises:
        UnknownNameError: no such split or subset.
        TaskError: the anchors are of another split content.
        InputError: no tasks, episodes or seeds.
    """
    if (tasks is not None and tasks < 1) or not len(seeds):
        raise InputError(f"tasks is at least 1 and there is at least one seed, got {tasks} and {tuple(seeds)}")
    seeds = [_checked(seed) for seed in seeds]
    env_id = agent.config.env_id
    split = split_for(agent) if split is None else split
    chosen = task_split(env_id, split)
    subset_tasks = list(chosen.subset(subset)[:tasks])
    anchors = _anchors_of(agent, chosen, subset, len(subset_tasks))
    runs = [
        rollout(agent, subset_tasks, episodes, seed, on_episode=on_episode if seed == seeds[0] else None)
        for seed in seeds
    ]
    averaged = ("returns", "lengths", "first_episode", "last_episode")
    mean = {name: np.mean([getattr(run, name) for run in runs], axis=0) for name in averaged}
    normalized: list[list[float]] = []
    if anchors:
        blind, oracle = (np.asarray(anchors[name])[:, None] for name in ("blind", "oracle"))
        normalized = ((mean["returns"] - blind) / (oracle - blind)).tolist()
    return EvalResult(
        agent=agent.config.name,
        env_id=env_id,
        split=split,
        split_hash=chosen.content_hash,
        subset=subset,
        seeds=seeds,
        tasks=subset_tasks,
        returns=mean["returns"].tolist(),
        lengths=mean["lengths"].tolist(),
        anchors=anchors,
        normalized=normalized,
        first_episode=mean["first_episode"].tolist(),
        last_episode=mean["last_episode"].tolist(),
        controls=_controls(agent, subset_tasks, episodes, seeds[0], anchors) if controls else {},
        summary=summarize(mean["returns"], anchors),
        versions={"mujoco": mujoco.__version__, "gymnasium": gymnasium.__version__, "numpy": np.__version__},
        env_options=dict(agent.config.env_options),
    )


def _anchors_of(agent: InContextAgent, split: TaskSplit, subset: str, tasks: int) -> dict[str, list[float]]:
    """The anchors of the first so many tasks; none where some are missing, or were measured in other circumstances."""
    if not (acts_as_registered(agent.config) and has_anchors(split.env_id, split.name)):
        return {}
    measured = load_anchors(split.env_id, split.name, split.content_hash).returns.get(subset, {})
    if not set(ANCHOR_NAMES) <= set(measured):
        return {}
    return {name: list(values[:tasks]) for name, values in measured.items()}


def acts_as_registered(config: AgentConfig) -> bool:
    """Whether an agent's environment has no options but the default ones: anchors were measured in that."""
    registered = {"max_episode_steps": env_definition(config.env_id).horizon}
    return registered | dict(config.env_options) == registered


def split_for(agent: InContextAgent) -> str:
    """The split that an agent is evaluated on where none is named: its own, or the default of its environment.

    Raises:
        UnknownNameError: its environment is not known here, or has no split.
    """
    default, own = default_split(agent.config.env_id), agent.config.split
    return own if own in split_names(agent.config.env_id) else default


def _checked(seed: Any) -> int:
    """A seed as Python's own number."""
    number = checked_seed(seed)
    if number is None:
        raise InputError("an evaluation seed is a whole number of at least 0, got None")
    return number


def summarize(returns: np.ndarray, anchors: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The numbers to quote, of returns ``[N, E]``: each a mean over tasks with its 95 % interval, and the IQM.

    ``final`` is the mean of the last episodes. ``normalized``, where there are anchors, averages the tasks' own ratios,
    ``normalized_of_means`` is the ratio of the averages, which tasks whose blind and oracle returns nearly coincide
    cannot dominate. ``episodes_to_90_percent_of_gain`` is None where there is no gain.
    """
    final = returns[:, -LAST_EPISODES:].mean(1)

    def of_means(r: np.ndarray, b: np.ndarray, o: np.ndarray) -> np.ndarray:
        return (r - b).mean(-1) / (o - b).mean(-1)

    reached = returns.mean(0) >= returns[:, 0].mean() + 0.9 * (final.mean() - returns[:, 0].mean())
    summary: dict[str, Any] = {"first_return": interval(returns[:, 0]), "final_return": interval(final)}
    if anchors:
        blind, oracle = np.asarray(anchors["blind"]), np.asarray(anchors["oracle"])
        summary |= {
            "first_normalized": interval((returns[:, 0] - blind) / (oracle - blind)),
            "final_normalized": interval((final - blind) / (oracle - blind)),
            "final_normalized_of_means": interval(final, blind, oracle, statistic=of_means),
        }
    gained = final.mean() > returns[:, 0].mean()
    return {**summary, "episodes_to_90_percent_of_gain": int(np.argmax(reached)) + 1 if gained else None}


def interval(
    *samples: np.ndarray, statistic: Callable[..., np.ndarray] | None = None, strata: np.ndarray | None = None
) -> dict[str, float]:
    """Mean, interquartile mean and the mean's 95 % bootstrap interval over tasks.

    Args:
        samples: ``[N]`` each; several are resampled together (paired).
        statistic: of the samples along their last axis, instead of the mean.
        strata: ``[N]`` labels, e.g. training seeds; resampling stays inside each.

    Returns:
        ``mean``; ``low, high`` where a stratum has two members; for the mean of one sample ``iqm`` (Agarwal et al.
        2021, arXiv 2108.13264).
    """
    groups = [np.arange(len(samples[0]))]
    if strata is not None:
        groups = [np.flatnonzero(strata == label) for label in np.unique(strata)]
    resampled = [group for group in groups if len(group) > 1]
    fixed = [group for group in groups if len(group) == 1]  # a stratum of one has no other resample

    def value(indices: np.ndarray) -> np.ndarray:
        picked = [sample[indices] for sample in samples]
        return picked[0].mean(-1) if statistic is None else statistic(*picked)

    def resample(*indices: np.ndarray, axis: int = -1) -> np.ndarray:
        alone = [np.broadcast_to(group, (*indices[0].shape[:-1], 1)) for group in fixed]
        return value(np.concatenate([*indices, *alone], axis=-1))

    result = {"mean": float(value(np.arange(len(samples[0]))))}
    if statistic is None:
        result["iqm"] = float(stats.trim_mean(samples[0], 0.25))
    if resampled:
        bounds = stats.bootstrap(
            resampled,
            resample,
            n_resamples=2_000,
            method="percentile",
            vectorized=True,
            rng=np.random.default_rng(0),
        ).confidence_interval
        result |= {"low": float(bounds.low), "high": float(bounds.high)}
    return result


def paired_difference(ours: EvalResult, theirs: EvalResult) -> dict[str, float]:
    """Final normalized return of one agent minus another's, paired by task, with its 95 % interval.

    Of results without anchors it is the return itself.

    Raises:
        InputError: they were not evaluated on the same tasks.
    """
    first, second = _finals([ours, theirs])
    return interval(first - second)


def difference_over_seeds(ours: Sequence[EvalResult], theirs: Sequence[EvalResult]) -> dict[str, float]:
    """Final normalized return of one recipe minus another's, each trained with several seeds; without anchors, return.

    Returns:
        ``mean``, and the 95 % bootstrap interval ``low, high``, in which tasks are resampled for both together and
        training seeds for each alone: it is of other seeds and other tasks. Of few seeds, as all bootstraps, too small.

    Raises:
        InputError: they were not evaluated on the same tasks, or one side is empty.
    """
    if not ours or not theirs:
        raise InputError(f"expected results of at least one seed of each, got {len(ours)} and {len(theirs)}")
    finals = _finals([*ours, *theirs])  # [seeds of both, N]
    sides, tasks = (finals[: len(ours)], finals[len(ours) :]), finals.shape[1]
    rng = np.random.default_rng(0)

    def resampled() -> float:
        some = rng.integers(tasks, size=tasks)
        mine, other = (side[rng.integers(len(side), size=len(side))][:, some].mean() for side in sides)
        return float(mine - other)

    low, high = np.quantile([resampled() for _ in range(2_000)], [0.025, 0.975])
    return {"mean": float(sides[0].mean() - sides[1].mean()), "low": float(low), "high": float(high)}


def _finals(results: Sequence[EvalResult]) -> np.ndarray:
    """Normalized return of the last episodes ``[len(results), N]``, or return where there are no anchors."""
    first = results[0]
    for result in results:
        if (result.env_id, result.tasks) != (first.env_id, first.tasks):
            raise InputError(f"{first.agent} and {result.agent} were evaluated on different tasks")
        if result.env_options != first.env_options:
            options = f"{dict(first.env_options)} and {dict(result.env_options)}"
            raise InputError(
                f"{first.agent} and {result.agent} acted in environments with different options: {options}"
            )
        episodes, expected = len(result.returns[0]), len(first.returns[0])
        if episodes != expected:
            raise InputError(f"{first.agent} lived {expected} episodes, {result.agent} {episodes}: evaluate one again")
    if len({bool(result.anchors) for result in results}) != 1:
        raise InputError("some results have anchors to normalize by and some have none: evaluate the latter again")
    anchored = bool(first.anchors)
    values = [result.normalized if anchored else result.returns for result in results]
    return np.stack([np.asarray(episodes)[:, -LAST_EPISODES:].mean(1) for episodes in values])


def _controls(
    agent: InContextAgent,
    tasks: list[dict[str, Any]],
    episodes: int,
    seed: int,
    anchors: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """Swapped rewards, and forgetting at every episode."""
    reset = rollout(agent, tasks, LAST_EPISODES, seed, reset_each_episode=True)
    result: dict[str, Any] = {"reset_each_episode": summarize(reset.returns, anchors)}
    if len(tasks) < 2:
        return result
    others = [*tasks[1:], tasks[0]]
    swapped = rollout(agent, tasks, episodes, seed, reward_tasks=others)
    definition = env_definition(agent.config.env_id)
    own_error, other_error = (
        definition.task_error(parts, np.stack([definition.task_vector(task) for task in group]))
        for parts, group in ((swapped.last_parts, tasks), (swapped.rewarding_last_parts, others))
    )
    result["swapped_rewards"] = {
        "nearer_to_rewarded": float(np.mean(other_error < own_error)),
        "error_to_rewarded": interval(other_error),
        "error_to_own": interval(own_error),
        "errors_to_rewarded": other_error.tolist(),
        "errors_to_own": own_error.tolist(),
    }
    return result

"""Roll-outs, the protocol's numbers, and the anchors they are measured against."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from icrl_agents import evaluation
from icrl_agents.agent import InContextAgent
from icrl_agents.envs import PhysicsState, env_definition, env_ids, load_anchors, task_split
from icrl_agents.envs import anchors as anchor_files
from icrl_agents.envs.anchors import ANCHOR_NAMES, anchor_file_name
from icrl_agents.envs.reacher_goal import ReacherGoalDefinition
from icrl_agents.errors import ConfigError, InputError, TaskError, UnknownNameError
from icrl_agents.evaluation import (
    EvalResult,
    difference_over_seeds,
    evaluate,
    interval,
    paired_difference,
    rollout,
    summarize,
)
from icrl_agents.model_card import model_card
from icrl_agents.plots import plot_results

ENV_ID = "icrl/ReacherGoal-v0"
VAL = task_split(ENV_ID).val
FINGERTIP = 3  # body index in reacher.xml

Episode = tuple[list[float], np.ndarray]
"""Rewards and last observation of an episode."""


@pytest.fixture
def ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes end where the arm is nearly stretched out and has moved, so that rows end at different times."""

    def terminated(self: ReacherGoalDefinition, state: PhysicsState) -> np.ndarray:
        return (np.cos(state.qpos[:, 1]) > 0.98) & (np.abs(state.qpos[:, 0]) > 0.3)

    monkeypatch.setattr(ReacherGoalDefinition, "terminated", terminated)


def live_alone(
    agent: InContextAgent, task: Mapping[str, Any], episodes: int, seed: int, rows: int, forgetful: bool = False
) -> Iterator[Episode]:
    """One agent in one single environment; ``rows`` copies of it, so that its arithmetic rounds as that of a batch."""

    def copies(value: Any) -> np.ndarray:
        return np.repeat(np.asarray(value)[None], rows, axis=0)

    env = gymnasium.make(ENV_ID, task=task)
    agent.reset(num_envs=rows)
    observation, _ = env.reset(seed=seed)
    for _ in range(episodes):
        rewards: list[float] = []
        done = False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(agent.act(copies(observation))[0])
            agent.observe(copies(reward), copies(terminated), copies(truncated))
            rewards.append(float(reward))
            done = terminated or truncated
        yield rewards, observation
        observation, _ = env.reset()
        if forgetful:
            agent.reset(num_envs=rows)


class Spied(InContextAgent):
    """Remembers what it did and what it was given."""

    def __init__(self, agent: InContextAgent) -> None:
        super().__init__(agent.model, agent.config)
        self.actions: list[np.ndarray] = []
        self.rewards: list[np.ndarray] = []

    def act(self, *args: Any, **options: Any) -> np.ndarray:
        self.actions.append(super().act(*args, **options))
        return self.actions[-1]

    def observe(self, reward: Any, *args: Any, **options: Any) -> None:
        self.rewards.append(np.array(reward))
        super().observe(reward, *args, **options)


# ------------------------------------------------------------------ roll-outs


@pytest.mark.parametrize("forgetful", [False, True])
@pytest.mark.parametrize("early", [False, True])
def test_a_rollout_is_one_agent_per_task(
    make_agent: Callable[..., InContextAgent], request: pytest.FixtureRequest, forgetful: bool, early: bool
) -> None:
    if early:
        request.getfixturevalue("ends_early")
    agent = make_agent()
    tasks, episodes, seed = VAL[:3], 4, 11
    found = rollout(agent, tasks, episodes, seed, reset_each_episode=forgetful)
    assert found.first_episode.shape == found.last_episode.shape == (3, 50)
    for row, task in enumerate(tasks):
        alone = list(live_alone(make_agent(), task, episodes, seed + row, len(tasks), forgetful))
        np.testing.assert_array_equal(found.lengths[row], [len(rewards) for rewards, _ in alone])
        np.testing.assert_allclose(found.returns[row], [sum(rewards) for rewards, _ in alone], rtol=1e-9)
        np.testing.assert_allclose(found.final_observations[row], [last for _, last in alone], rtol=1e-9)
        for per_step, (rewards, _) in ((found.first_episode, alone[0]), (found.last_episode, alone[-1])):
            np.testing.assert_allclose(per_step[row, : len(rewards)], rewards, rtol=1e-9)
            assert not per_step[row, len(rewards) :].any()
    assert (len(np.unique(found.lengths)) > 1) == early  # else nothing of the above was tested


def test_forgetting_at_every_episode_changes_what_an_agent_does(make_agent: Callable[..., InContextAgent]) -> None:
    kept, forgot = (rollout(make_agent(), VAL[:2], 3, 0, reset_each_episode=forget).returns for forget in (False, True))
    np.testing.assert_array_equal(kept[:, 0], forgot[:, 0])
    assert (kept[:, 1:] != forgot[:, 1:]).all()


@pytest.mark.parametrize("early", [False, True])
def test_swapped_rewards_are_those_of_the_other_task(
    make_agent: Callable[..., InContextAgent], request: pytest.FixtureRequest, early: bool
) -> None:
    """The same actions replayed in the agent's own task; the reward by hand, for the other goal."""
    if early:
        request.getfixturevalue("ends_early")
    agent = Spied(make_agent())
    own, other, episodes = VAL[:2], (VAL[2], VAL[3]), 3
    found = rollout(agent, own, episodes, seed=5, reward_tasks=other)
    for row in range(2):
        env = gymnasium.make(ENV_ID, task=own[row])
        env.reset(seed=5 + row)
        data: Any = getattr(env.unwrapped, "data")  # noqa: B009  gymnasium's type knows no data
        goal = np.array(other[row]["goal"])
        returns, sums, t = [], 0.0, 0
        while len(returns) < episodes:
            action = agent.actions[t][row]
            observation, _, terminated, truncated, _ = env.step(action)
            expected = -np.hypot(*(data.xpos[FINGERTIP, :2] - goal)) - np.square(action.astype(float)).sum()
            np.testing.assert_allclose(agent.rewards[t][row], expected, atol=1e-9)
            sums, t = sums + expected, t + 1
            if terminated or truncated:
                np.testing.assert_allclose(found.final_observations[row, len(returns)], observation, atol=1e-12)
                returns.append(sums)
                sums = 0.0
                env.reset()
        np.testing.assert_allclose(found.returns[row], returns, atol=1e-9)


@pytest.mark.parametrize("early", [False, True])
def test_parts_of_the_last_episode_add_up_to_its_rewards(
    make_agent: Callable[..., InContextAgent], request: pytest.FixtureRequest, early: bool
) -> None:
    if early:
        request.getfixturevalue("ends_early")
    found = rollout(make_agent(), VAL[:3], 3, 11, reward_tasks=VAL[3:6])
    assert set(found.last_parts) == set(found.rewarding_last_parts) == {"reward_dist", "reward_ctrl"}
    given = sum(found.rewarding_last_parts.values())
    told = np.arange(50) < found.lengths[:, -1:]
    np.testing.assert_array_equal(np.isfinite(given), told)
    np.testing.assert_allclose(np.where(told, given, 0.0), found.last_episode, atol=1e-12)
    # the actions are the same, the distances are to another goal
    np.testing.assert_array_equal(found.last_parts["reward_ctrl"], found.rewarding_last_parts["reward_ctrl"])
    assert (found.last_parts["reward_dist"] != found.rewarding_last_parts["reward_dist"])[told].all()
    plain = rollout(make_agent(), VAL[:3], 3, 11)
    assert plain.rewarding_last_parts is plain.last_parts
    np.testing.assert_allclose(np.nansum(sum(plain.last_parts.values()), axis=1), plain.returns[:, -1], atol=1e-12)


@pytest.mark.parametrize("early", [False, True])
def test_progress_is_told_when_all_rows_have_finished_an_episode(
    make_agent: Callable[..., InContextAgent], request: pytest.FixtureRequest, early: bool
) -> None:
    if early:
        request.getfixturevalue("ends_early")
    told: list[tuple[int, float]] = []
    found = rollout(make_agent(), VAL, 3, 0, on_episode=lambda *what: told.append(what))
    assert [episode for episode, _ in told] == [1, 2, 3]
    np.testing.assert_allclose([mean for _, mean in told], found.returns.mean(0))


def test_episodes_are_as_long_as_the_environments(make_agent: Callable[..., InContextAgent]) -> None:
    agent = make_agent()
    agent.config = replace(agent.config, episode_steps=20)  # as recorded; the environment's own are 50
    assert (rollout(agent, VAL[:2], 2, 0).lengths == 50).all()
    agent.config = replace(agent.config, env_options={"max_episode_steps": 20})
    assert (rollout(agent, VAL[:2], 2, 0).lengths == 20).all()


def test_no_episodes_are_refused(make_agent: Callable[..., InContextAgent]) -> None:
    with pytest.raises(InputError, match="at least 1, got 0"):
        rollout(make_agent(), VAL[:2], 0, 0)


# ------------------------------------------------------------------ evaluation


@pytest.fixture(scope="module")
def result(make_agent: Callable[..., InContextAgent]) -> EvalResult:
    return evaluate(make_agent(), tasks=3, episodes=6)


def test_an_evaluation_is_on_the_first_test_tasks(
    make_agent: Callable[..., InContextAgent], result: EvalResult
) -> None:
    split, anchors = task_split(ENV_ID), load_anchors(ENV_ID, "paper").of("test")
    assert (result.agent, result.env_id) == ("tiny-mamba", ENV_ID)
    assert (result.split, result.subset, result.split_hash) == ("paper", "test", split.content_hash)
    assert result.tasks == list(split.test[:3])
    assert result.anchors == {name: anchors[name][:3] for name in ANCHOR_NAMES}
    plain = rollout(make_agent(), split.test[:3], 6, 0)
    np.testing.assert_array_equal(result.returns, plain.returns)
    np.testing.assert_array_equal(result.lengths, np.full((3, 6), 50))
    np.testing.assert_array_equal(result.first_episode, plain.first_episode)
    np.testing.assert_array_equal(result.last_episode, plain.last_episode)
    for task in range(3):
        blind, oracle = anchors["blind"][task], anchors["oracle"][task]
        for episode in range(6):
            by_hand = (result.returns[task][episode] - blind) / (oracle - blind)
            assert result.normalized[task][episode] == pytest.approx(by_hand)
    assert result.summary == summarize(plain.returns, result.anchors)
    assert set(result.versions) >= {"mujoco", "gymnasium", "numpy"}


def test_controls(make_agent: Callable[..., InContextAgent], result: EvalResult) -> None:
    tasks = result.tasks
    reset = rollout(make_agent(), tasks, 5, 0, reset_each_episode=True).returns
    assert result.controls["reset_each_episode"] == summarize(reset, result.anchors)
    others = [tasks[1], tasks[2], tasks[0]]
    swapped = rollout(make_agent(), tasks, 6, 0, reward_tasks=others).final_observations[:, -1, 6:8]
    to_own, to_other = (
        [np.hypot(*(tip - task["goal"])) for tip, task in zip(swapped, group, strict=True)] for group in (tasks, others)
    )
    found = result.controls["swapped_rewards"]
    assert found["errors_to_own"] == pytest.approx(to_own)
    assert found["errors_to_rewarded"] == pytest.approx(to_other)
    assert found["error_to_own"]["mean"] == pytest.approx(np.mean(to_own))
    assert found["error_to_rewarded"]["mean"] == pytest.approx(np.mean(to_other))
    assert found["nearer_to_rewarded"] == np.mean([b < a for a, b in zip(to_own, to_other, strict=True)])


def test_one_task_has_nothing_to_swap_with(make_agent: Callable[..., InContextAgent]) -> None:
    assert set(evaluate(make_agent(), tasks=1, episodes=1).controls) == {"reset_each_episode"}


def test_seeds_are_averaged_task_by_task(make_agent: Callable[..., InContextAgent]) -> None:
    told: list[int] = []
    both = evaluate(
        make_agent(),
        subset="val",
        tasks=2,
        episodes=2,
        seeds=(3, 4),
        controls=False,
        on_episode=lambda episode, mean: told.append(episode),
    )
    runs = [rollout(make_agent(), VAL[:2], 2, seed).returns for seed in (3, 4)]
    np.testing.assert_allclose(both.returns, (runs[0] + runs[1]) / 2)
    assert (both.seeds, both.controls, told) == ([3, 4], {}, [1, 2])


def test_all_tasks_unless_told_otherwise(make_agent: Callable[..., InContextAgent]) -> None:
    assert evaluate(make_agent(), subset="val", episodes=1, controls=False).tasks == list(VAL)


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({"split": "papper"}, "Did you mean 'paper'"),
        ({"subset": "tests"}, "test, train, val"),
    ],
)
def test_unknown_names_list_what_exists(
    make_agent: Callable[..., InContextAgent], options: dict[str, str], known: str
) -> None:
    with pytest.raises(UnknownNameError, match=known):
        evaluate(make_agent(), episodes=1, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"tasks": 0}, {"tasks": -1}, {"seeds": ()}])
def test_evaluating_nothing_is_refused(make_agent: Callable[..., InContextAgent], options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="at least"):
        evaluate(make_agent(), episodes=1, **options)


def test_anchors_of_other_tasks_are_refused(
    make_agent: Callable[..., InContextAgent], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TaskError, match="beef"):
        load_anchors(ENV_ID, "paper", "beef")
    with pytest.raises(UnknownNameError, match=r"ReacherGoal-v0\.paper\.json"):
        load_anchors(ENV_ID, "pearl")
    other = replace(task_split(ENV_ID), content_hash="beef")
    monkeypatch.setattr(evaluation, "task_split", lambda *names: other)
    with pytest.raises(TaskError, match="beef"):
        evaluate(make_agent(), episodes=1)


# ------------------------------------------------------------------ results as files


def test_a_result_is_read_as_it_was_written(result: EvalResult, tmp_path: Path) -> None:
    result.save(tmp_path / "deep/er/result.json")
    assert EvalResult.load(tmp_path / "deep/er/result.json") == result


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.pop("returns"),
        lambda data: data.update(retruns=[]),
        lambda data: data.update(returns=3),
        lambda data: data.update(returns=[["high"]]),
        lambda data: data.update(seeds="0"),
        lambda data: data.update(tasks={}),
    ],
)
def test_junk_is_refused(result: EvalResult, tmp_path: Path, damage: Callable[[dict[str, Any]], Any]) -> None:
    path = tmp_path / "result.json"
    result.save(path)
    data = json.loads(path.read_text())
    damage(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=r"result\.json"):
        EvalResult.load(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b'{"agent": ' + b"9" * 5000 + b"}", b"[" * 200_000])
def test_no_result_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "result.json"
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"result\.json"):
            EvalResult.load(path)  # not there, then junk
        path.write_bytes(content)
    with pytest.raises(ConfigError):
        EvalResult.load(tmp_path)


# ------------------------------------------------------------------ statistics


def test_summary_by_hand() -> None:
    """The mean over tasks goes -10, -6, -3.4, -2, -1.8, -1.8; the last five: -3.6 and -2.4, together -3."""
    returns = np.array([[-12.0, -8, -4.4, -2, -1.8, -1.8], [-8.0, -4, -2.4, -2, -1.8, -1.8]])
    found = summarize(returns, {"blind": [-10.0, -6.0], "oracle": [-2.0, -2.0]})
    assert found["first_return"]["mean"] == -10
    assert found["final_return"]["mean"] == pytest.approx(-3)
    assert found["first_normalized"]["mean"] == pytest.approx((-2 / 8 + -2 / 4) / 2)
    assert found["final_normalized"]["mean"] == pytest.approx((6.4 / 8 + 3.6 / 4) / 2)
    assert found["final_normalized_of_means"]["mean"] == pytest.approx((6.4 + 3.6) / (8 + 4))
    # the gain is 7, nine tenths of it -10 + 6.3 = -3.7, and episode 3 has -3.4
    assert found["episodes_to_90_percent_of_gain"] == 3
    assert summarize(-returns, {})["episodes_to_90_percent_of_gain"] is None  # it gets worse
    assert "iqm" not in found["final_normalized_of_means"]
    ratios = sorted([6.4 / 8, 3.6 / 4])  # an interval over two tasks spans them
    assert [found["final_normalized"][end] for end in ("low", "high")] == pytest.approx(ratios)


def test_interquartile_mean_by_hand() -> None:
    sample = np.array([100.0, 1, 2, 3, 4, 5, 6, -50])  # the two lowest and the two highest go
    assert interval(sample)["iqm"] == (2 + 3 + 4 + 5) / 4
    assert interval(sample)["mean"] == 71 / 8


def test_interval_is_scipys() -> None:
    sample = np.random.default_rng(1).gamma(2.0, size=30)
    of_scipy = stats.bootstrap(
        (sample,), np.mean, n_resamples=2_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    found = interval(sample)
    assert (found["low"], found["high"]) == pytest.approx((of_scipy.low, of_scipy.high))
    assert found["low"] < found["mean"] < found["high"]
    # and about what the central limit theorem says
    spread = 1.96 * sample.std() / np.sqrt(30)
    assert found["high"] - found["low"] == pytest.approx(2 * spread, rel=0.1)


def test_a_single_sample_has_no_interval() -> None:
    assert interval(np.array([3.0])) == {"mean": 3.0, "iqm": 3.0}


def test_resampling_stays_inside_strata() -> None:
    sample, strata = np.repeat([0.0, 1.0, 5.0], 4), np.repeat([7, 8, 9], 4)
    assert interval(sample, strata=strata) == {"mean": 2.0, "iqm": 1.5, "low": 2.0, "high": 2.0}
    free = interval(sample)
    assert free["low"] < 1.2 < 2.8 < free["high"]


def test_a_stratum_of_one_stays_as_it_is() -> None:
    """Half of the mean's spread comes from the first two; the third is in every resample."""
    found = interval(np.array([0.0, 3.0, 9.0]), strata=np.array([0, 0, 1]))
    assert found == pytest.approx({"mean": 4.0, "iqm": 4.0, "low": 3.0, "high": 5.0})
    assert "low" not in interval(np.array([1.0, 2.0]), strata=np.array([0, 1]))


def test_samples_are_resampled_together() -> None:
    """The ratio of two samples that are proportional is the same in every resample."""
    sample = np.random.default_rng(0).uniform(1, 9, 12)
    found = interval(3 * sample, sample, statistic=lambda a, b: a.mean(-1) / b.mean(-1))
    assert found == pytest.approx({"mean": 3.0, "low": 3.0, "high": 3.0})


@settings(deadline=None, max_examples=15)
@given(
    sample=st.lists(st.floats(-100, 100), min_size=2, max_size=12),
    shift=st.floats(-100, 100),
    scale=st.floats(0.1, 10),
)
def test_interval_moves_with_its_sample(sample: list[float], shift: float, scale: float) -> None:
    one, other = interval(np.array(sample)), interval(scale * np.array(sample) + shift)
    assert min(sample) - 1e-9 <= one["low"] <= one["high"] <= max(sample) + 1e-9
    assert other == pytest.approx({name: scale * value + shift for name, value in one.items()}, abs=1e-6)


def with_final(result: EvalResult, name: str, finals: Sequence[float]) -> EvalResult:
    """A result whose tasks reach these normalized returns in the last five episodes, after one at 0."""
    return replace(result, agent=name, normalized=[[0.0, *5 * [final]] for final in finals])


def test_paired_difference_by_hand(result: EvalResult) -> None:
    ours, theirs = with_final(result, "ours", [0.9, 0.5, 0.1]), with_final(result, "theirs", [0.7, 0.3, -0.1])
    # tasks differ by 0.8, the agents by 0.2 on each of them: paired, there is no uncertainty
    assert paired_difference(ours, theirs) == pytest.approx({"mean": 0.2, "iqm": 0.2, "low": 0.2, "high": 0.2})
    assert paired_difference(theirs, ours)["mean"] == pytest.approx(-0.2)


def test_agents_on_different_tasks_are_not_compared(result: EvalResult) -> None:
    other = replace(result, agent="other", tasks=result.tasks[::-1])
    with pytest.raises(InputError, match=r"tiny-mamba and other .* different tasks"):
        paired_difference(result, other)
    with pytest.raises(InputError, match=r"tiny-mamba and other .* different tasks"):
        difference_over_seeds([result, result], [result, other])
    shorter = replace(
        result,
        agent="other",
        returns=[row[:-1] for row in result.returns],
        normalized=[row[:-1] for row in result.normalized],
    )
    with pytest.raises(InputError, match=rf"lived {len(result.returns[0])} episodes, other {len(shorter.returns[0])}"):
        paired_difference(result, shorter)
    with pytest.raises(InputError, match="at least one seed of each, got 1 and 0"):
        difference_over_seeds([result], [])


def test_a_difference_over_seeds_is_paired_by_task_and_not_by_seed(result: EvalResult) -> None:
    easy_and_hard = np.array([0.9, 0.5, 0.1])
    ours = [with_final(result, "ours", easy_and_hard + gain) for gain in (0.2, 0.2)]
    theirs = [with_final(result, "theirs", easy_and_hard)]
    assert difference_over_seeds(ours, theirs) == pytest.approx({"mean": 0.2, "low": 0.2, "high": 0.2})
    ours = [with_final(result, "ours", easy_and_hard + gain) for gain in (0.0, 0.4)]
    # both draws of two seeds are the first in a quarter of the resamples, and the second in another
    assert difference_over_seeds(ours, theirs) == pytest.approx({"mean": 0.2, "low": 0.0, "high": 0.4})


def test_an_interval_over_seeds_is_of_other_seeds(result: EvalResult) -> None:
    """Two recipes are equally good and seeds differ: zero is within, where it is not if tasks alone are resampled."""
    rng, held, held_by_tasks = np.random.default_rng(0), [], []
    for _ in range(20):
        finals = rng.normal(scale=0.1, size=(20, 1)) + rng.normal(scale=0.01, size=(20, 3))  # [seeds of both, tasks]
        runs = [with_final(result, "run", final) for final in finals]
        over_seeds = difference_over_seeds(runs[:10], runs[10:])
        held.append(over_seeds["low"] <= 0 <= over_seeds["high"])
        means = [with_final(result, "mean", half.mean(0)) for half in (finals[:10], finals[10:])]
        by_tasks = paired_difference(*means)
        held_by_tasks.append(by_tasks["low"] <= 0 <= by_tasks["high"])
    assert np.mean(held) >= 0.85
    assert np.mean(held_by_tasks) <= 0.5


# ------------------------------------------------------------------ the frozen anchors

FILES = sorted(f.name for f in resources.files(anchor_files).iterdir() if f.name.endswith(".json"))


def test_every_anchor_file_belongs_to_a_registered_environment() -> None:
    assert FILES
    known = {anchor_file_name(env_id, name.split(".")[1]) for env_id in env_ids() for name in FILES}
    assert set(FILES) <= known


@pytest.mark.parametrize("file", FILES)
def test_anchors_are_sane(file: str) -> None:
    stem, split_name, _ = file.split(".")
    env_id = f"icrl/{stem}"
    split = task_split(env_id, split_name)
    anchors = load_anchors(env_id, split_name, split.content_hash)
    assert (anchors.env_id, anchors.split, anchors.split_hash) == (env_id, split_name, split.content_hash)
    assert anchors.command.startswith("icrl-agents anchors ")
    assert env_definition(env_id).horizon > 0
    assert set(anchors.returns) == {"val", "test"}
    for subset, returns in anchors.returns.items():
        assert {"zero", "random"} <= set(returns) <= set(ANCHOR_NAMES)
        values = {name: np.array(each) for name, each in returns.items()}
        for each in values.values():
            assert each.shape == (len(split.subset(subset)),)
            assert np.isfinite(each).all()
        if set(returns) != set(ANCHOR_NAMES):
            missing = next(name for name in ANCHOR_NAMES if name not in returns)
            with pytest.raises(UnknownNameError, match=rf"anchor of {env_id} on split '{split_name}' '{missing}'"):
                anchors.of(subset)
            continue
        assert values["oracle"].mean() > values["blind"].mean()
        assert (values["oracle"] > values["random"]).all()
        # blind is the best of those that see nothing, which val decided
        if subset == "val":
            assert values["blind"].mean() >= max(values["zero"].mean(), values["random"].mean())


def test_ragged_results_are_refused(make_agent: Callable[..., InContextAgent], tmp_path: Path) -> None:
    result = evaluate(make_agent(), tasks=2, episodes=2, controls=False)
    with pytest.raises(ConfigError, match="equally many"):
        replace(result, returns=[[1.0], [1.0, 2.0]])


def test_numpys_seeds_are_seeds(make_agent: Callable[..., InContextAgent], tmp_path: Path) -> None:
    found = [
        evaluate(make_agent(), tasks=2, episodes=1, seeds=seeds, controls=False) for seeds in ((0, 1), np.arange(2))
    ]
    found[1].save(tmp_path / "result.json")
    assert EvalResult.load(tmp_path / "result.json") == found[0]
    for seeds in ((-1,), (None,), (0.5,)):
        with pytest.raises(InputError, match="seed is a whole number"):
            evaluate(make_agent(), tasks=2, episodes=1, seeds=seeds)  # type: ignore[arg-type]


def test_anchors_are_of_the_environment_without_options(make_agent: Callable[..., InContextAgent]) -> None:
    """A return of 20 steps is not to be compared with blind's and the oracle's of 50."""
    whole = evaluate(make_agent(), tasks=2, episodes=2, controls=False)
    agent = make_agent()
    agent.config = replace(agent.config, env_options={"max_episode_steps": 50})  # said, and as registered
    assert evaluate(agent, tasks=2, episodes=2, controls=False).normalized == whole.normalized
    agent.config = replace(agent.config, env_options={"max_episode_steps": 20})
    short = evaluate(agent, tasks=2, episodes=2, controls=False)
    assert (short.anchors, short.normalized) == ({}, [])
    with pytest.raises(InputError, match=r"different options: {} and {'max_episode_steps': 20}"):
        paired_difference(whole, short)


def test_some_anchors_are_none(make_agent: Callable[..., InContextAgent], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without blind and oracle there is nothing to normalize by."""
    anchors = load_anchors(ENV_ID, "paper")
    some = {subset: {name: of[name] for name in ("zero", "random")} for subset, of in anchors.returns.items()}
    monkeypatch.setattr(evaluation, "load_anchors", lambda *given: replace(anchors, returns=some))
    assert evaluate(make_agent(), tasks=2, episodes=1, controls=False).normalized == []


def test_without_anchors_returns_alone_are_told(
    make_agent: Callable[..., InContextAgent], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    anchored = evaluate(make_agent(), tasks=2, episodes=2)
    monkeypatch.setattr("icrl_agents.evaluation.has_anchors", lambda env_id, split: False)
    found = evaluate(make_agent(), tasks=2, episodes=2)
    assert (found.anchors, found.normalized) == ({}, [])
    assert set(anchored.summary) - set(found.summary) == {
        "first_normalized",
        "final_normalized",
        "final_normalized_of_means",
    }
    assert found.returns == anchored.returns
    found.save(tmp_path / "result.json")
    assert EvalResult.load(tmp_path / "result.json") == found
    better = replace(found, returns=[[value + 2.0 for value in row] for row in found.returns])
    assert paired_difference(better, found)["mean"] == pytest.approx(2.0)  # of returns
    with pytest.raises(InputError, match="some have none"):
        paired_difference(found, anchored)
    card = model_card(make_agent().config, asdict(found))
    assert "Memory emptied at each episode: return" in card
    assert "normalized" not in card
    plot_results([found], tmp_path / "picture.png")

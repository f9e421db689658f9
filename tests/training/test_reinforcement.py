"""Reinforcement fine-tuning: it learns from reward, from what the agent saw, and a killed run ends as any other."""

import dataclasses
import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from icrl_agents.agent import InContextAgent
from icrl_agents.envs import env_definition, task_split
from icrl_agents.errors import ConfigError, DatasetError
from icrl_agents.hub import load_checkpoint, packaged, save_checkpoint
from icrl_agents.model import ActionPrediction
from icrl_agents.training import reinforcement
from icrl_agents.training.critic import Critic, advantages, standardised
from icrl_agents.training.experience import Experience, log_prob
from icrl_agents.training.lives import remembered
from icrl_agents.training.presets import is_finetuned, reinforcement_preset
from icrl_agents.training.reinforcement import RECIPE, ReinforcementConfig, ReinforcementResult, finetune
from icrl_agents.training.validation import rollout_on_unseen_tasks

ENV_ID = "icrl/ReacherGoal-v0"
TINY = ReinforcementConfig(
    "tuned",
    ENV_ID,
    subset="sampled:4",
    rounds=4,
    episodes=1,
    life_rounds=3,
    critic_rounds=1,
    batch_size=2,
    learning_rate=1e-3,
    critic_hidden=(8,),
    critic_batch_size=100,
    val_episodes=1,
    validate_every=2,
)


@pytest.fixture(scope="module", params=["mamba", "transformer"])
def start(
    request: pytest.FixtureRequest, make_agent: Callable[..., InContextAgent], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An agent as it was before."""
    return saved(make_agent(request.param), tmp_path_factory)


@pytest.fixture(scope="module")
def mamba(make_agent: Callable[..., InContextAgent], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(make_agent(), tmp_path_factory)


def saved(agent: InContextAgent, folders: pytest.TempPathFactory) -> Path:
    directory = folders.mktemp("start")
    agent.save_pretrained(directory)
    return directory


def quietly(start: Path, out: Path, config: ReinforcementConfig = TINY, **changes: Any) -> ReinforcementResult:
    return finetune(dataclasses.replace(config, **changes), start, out, tensorboard=False, quiet=True)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_weights(one: Path, other: Path, file: str = "model.safetensors") -> None:
    ours, theirs = load_file(one / file), load_file(other / file)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# ------------------------------------------------------------------ advantages and critic

numbers = st.floats(-10, 10, width=32)


@given(
    st.integers(1, 6).flatmap(
        lambda steps: st.tuples(
            arrays(np.float64, (2, steps), elements=numbers),
            arrays(np.float64, (2, steps + 1), elements=numbers),
            arrays(bool, (2, steps)),
        )
    ),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_advantages_are_the_weighted_sum_of_temporal_differences(
    given: tuple[np.ndarray, np.ndarray, np.ndarray], gamma: float, gae_lambda: float
) -> None:
    rewards, values, done = given
    found = advantages(rewards, values, done, gamma, gae_lambda)
    for row in range(2):
        for t in range(rewards.shape[1]):
            expected, weight = 0.0, 1.0
            for s in range(t, rewards.shape[1]):
                following = 0.0 if done[row, s] else values[row, s + 1]
                expected += weight * (rewards[row, s] + gamma * following - values[row, s])
                weight *= gamma * gae_lambda
                if done[row, s]:
                    break
            assert found[row, t] == pytest.approx(expected, abs=1e-9)


def test_without_values_an_advantage_is_the_discounted_return_of_its_episode() -> None:
    rewards, done = np.array([[1.0, 2.0, 4.0, 8.0]]), np.array([[False, True, False, False]])
    found = advantages(rewards, np.zeros((1, 5)), done, 0.5, 1.0)
    np.testing.assert_allclose(found, [[2.0, 2.0, 8.0, 8.0]])


@given(
    arrays(np.float32, (3, 20), elements=numbers).filter(lambda gained: bool((gained.std(1) > 2).all())),
    arrays(np.float64, (3, 1), elements=st.floats(0.5, 1)),  # no row comes near a tenth of all
    arrays(np.float64, (3, 1), elements=st.floats(-5, 5)),
)
def test_no_task_teaches_more_by_its_units(gained: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> None:
    """Nor does it teach what the critic has wrong of all of it."""
    found = standardised(gained, "task")
    np.testing.assert_allclose(found.mean(1), 0, atol=1e-9)
    np.testing.assert_allclose(found.std(1), 1, rtol=1e-6)
    np.testing.assert_allclose(standardised(gained * scale + shift, "task"), found, atol=1e-4)


def test_a_task_without_a_difference_teaches_nothing() -> None:
    gained = np.stack([np.full(500, -12.34), np.random.default_rng(0).normal(size=500)]).astype(np.float32)
    assert np.abs(standardised(gained, "task")[0]).max() < 1e-5
    gained[0] += 0.01 * gained[1]  # hardly any
    assert standardised(gained, "task")[0].std() < 0.2


def test_advantages_of_a_round_are_scaled_together() -> None:
    gained = np.array([[0.0, 2.0], [4.0, 6.0]])
    np.testing.assert_allclose(standardised(gained, "round"), (gained - 3) / np.sqrt(5), rtol=1e-6)


def test_a_critic_works_in_units_of_reward() -> None:
    """Its outputs are scaled by the returns of the first round, and its loss is measured in their deviation."""
    torch.manual_seed(0)
    critic = Critic(3, (8,))
    seen, returns = 100 + 7 * torch.randn(500, 3), 1000 + 50 * torch.randn(500)
    critic.normalise(seen, returns)
    assert abs(critic(seen).mean() - 1000) < 100
    error = (critic(seen) - returns).square().mean() / returns.var()
    assert critic.loss(seen, returns).item() == pytest.approx(error.item(), rel=1e-4)


# ------------------------------------------------------------------ a round


@pytest.fixture
def run(start: Path, tmp_path: Path) -> Any:
    """A run that has not begun."""
    return a_run(TINY, start, tmp_path / "run")


def a_run(config: ReinforcementConfig, start: Path, directory: Path) -> Any:
    tasks, (model, agent) = reinforcement._training_tasks(config), load_checkpoint(start)
    return reinforcement._Run(
        config, model, agent, {}, tasks, directory, lambda _: np.zeros((1, 1)), torch.device("cpu")
    )


def decided(run: Any, experience: Experience) -> ActionPrediction:
    """What the model predicts over a round's tokens, from what it remembered at the beginning."""
    with torch.no_grad():
        return run._model(torch.from_numpy(experience.tokens), remembered(run._model, experience.memory))[0]


def assert_decided(run: Any, experience: Experience) -> None:
    found = log_prob(decided(run, experience), torch.from_numpy(experience.actions), TINY.noise)
    np.testing.assert_allclose(found, experience.log_probs, atol=2e-3)  # of actions that are the same to 2e-5


def test_what_is_learned_from_is_what_was_acted(run: Any) -> None:
    """The model over a round's tokens, from what it remembered at the beginning, decides as the agent did: in the first
    round of a life, in later ones, and in rows that began anew."""
    ages = []
    for number in range(3):
        left = run._lives.get("rounds_left", np.zeros(4))
        experience, run._lives = run._act(number)
        ages.append(left > 0)
        assert_decided(run, experience)
    assert np.unique(ages[1:]).size == 2  # some rows went on, some began anew


def test_a_task_that_changes_is_met_with_the_memory_of_another(start: Path, tmp_path: Path) -> None:
    """What is learned from is what was acted there as well; the episode and its return begin anew."""
    changing = a_run(dataclasses.replace(TINY, task_changes=0.9), start, tmp_path / "changing")
    met = 0
    for number in range(6):
        before = changing._lives
        experience, changing._lives = changing._act(number)
        assert_decided(changing, experience)
        if not before:
            continue
        parts = [name for name in before if name.startswith("carry.")]
        for row in np.flatnonzero(before["rounds_left"] > 0):
            others = [r for r in range(4) if r != row]
            if any(all((experience.memory[n][row] == before[n][r]).all() for n in parts) for r in others):
                met += 1
                assert experience.seen[row, 0, -1] == 0
    assert met > 3


def test_a_mixture_tries_each_action_as_often_as_it_is_probable(
    make_agent: Callable[..., InContextAgent], tmp_path: Path
) -> None:
    """And what it learns from is what it did: the density is that of torch's own mixture, and of the whole of it."""
    make_agent(head="mixture", head_components=3).save_pretrained(tmp_path / "start")
    run = a_run(dataclasses.replace(TINY, noise=0.01), tmp_path / "start", tmp_path / "run")
    experience, _ = run._act(0)
    found, actions = decided(run, experience), torch.from_numpy(experience.actions)
    assert found.components is not None
    assert found.logits is not None
    gaussians = Independent(Normal(found.components, 0.01), 1)
    mixture = MixtureSameFamily(Categorical(logits=found.logits), gaussians)
    constant = 2 * (math.log(0.01) + 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(log_prob(found, actions, 0.01), mixture.log_prob(actions) + constant, atol=1e-3, rtol=0)
    np.testing.assert_allclose(experience.log_probs, mixture.log_prob(actions) + constant, atol=2e-2)
    distance = (found.components - actions[..., None, :]).norm(dim=-1)
    nearest, expected = distance.argmin(-1), found.logits.softmax(-1).mean((0, 1))
    assert (distance.amin(-1) < 0.1).all()
    np.testing.assert_allclose(nearest.flatten().bincount(minlength=3) / nearest.numel(), expected, atol=0.1)


def test_a_mixture_is_fine_tuned(make_agent: Callable[..., InContextAgent], tmp_path: Path) -> None:
    """What chooses one of its actions is moved, too."""
    make_agent(head="mixture").save_pretrained(tmp_path / "start")
    quietly(tmp_path / "start", tmp_path / "run")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("start", "run"))
    logits = max(name for name in before if name.startswith("head.") and name.endswith("bias"))
    assert not torch.equal(before[logits][-8:], after[logits][-8:])


def test_actions_are_tried_around_the_agents_and_executed_within_bounds(run: Any) -> None:
    experience, _ = run._act(0)
    deviations = experience.actions - decided(run, experience).mean.numpy()
    assert deviations.std() == pytest.approx(TINY.noise, rel=0.2)
    executed = experience.tokens[:, 1:, 16:18]
    np.testing.assert_allclose(executed, experience.actions[:, :-1].clip(-1, 1), atol=1e-6)


def test_noise_falls_geometrically_to_its_last(start: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, rounds=3, noise=0.4, noise_decay=0.25)
    assert [reinforcement.noise_of_round(config, number) for number in range(3)] == pytest.approx([0.4, 0.2, 0.1])
    constant = dataclasses.replace(config, noise_decay=1.0)
    assert [reinforcement.noise_of_round(constant, number) for number in range(3)] == pytest.approx([0.4] * 3)
    run = a_run(config, start, tmp_path / "run")
    experience, _ = run._act(2)
    assert (experience.actions - decided(run, experience).mean.numpy()).std() == pytest.approx(0.1, rel=0.2)


def test_what_is_kept_is_an_average_over_rounds(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reinforcement, "mean_returns", lambda *_: (0.0,))  # the last is kept
    config = dataclasses.replace(TINY, average_rounds=2, target_kl=1e3)
    quietly(start, tmp_path / "kept", config)
    run, states = a_run(config, start, tmp_path / "run"), []
    for number in range(4):
        run._round(number)
        states.append({name: value.clone() for name, value in run._model.state_dict().items()})
    # From the first round only the critic learned.
    for name, value in load_file(tmp_path / "kept/model.safetensors").items():
        expected = ((states[1][name] + states[2][name]) / 2 + states[3][name]) / 2
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
    assert any(not torch.equal(states[3][name], states[2][name]) for name in states[3])


def test_the_critic_sees_observation_task_and_time_after_the_last_step_as_well(run: Any) -> None:
    experience, _ = run._act(0)
    assert experience.seen.shape == (4, 51, 8 + 2 + 1)
    np.testing.assert_array_equal(experience.seen[:, :-1, :8], experience.tokens[:, :, :8])
    goals = np.array([task["goal"] for task in run._tasks.tasks], np.float32)
    np.testing.assert_array_equal(experience.seen[..., 8:10], np.repeat(goals[:, None], 51, 1))
    np.testing.assert_allclose(experience.seen[..., 10], np.tile([*np.arange(50) / 50, 0], (4, 1)), atol=1e-6)
    assert experience.done.sum() == 4
    assert experience.done[:, -1].all()


def a_run_of(env_id: str, agent: InContextAgent, folder: Path, **changes: Any) -> Any:
    """A run of an agent that calls itself one of another environment."""
    config = dataclasses.replace(agent.config, env_id=env_id)
    save_checkpoint(folder / "start", agent.model, config)
    return a_run(dataclasses.replace(TINY, env_id=env_id, **changes), folder / "start", folder / "run")


def test_the_critic_sees_what_is_privileged(make_agent: Callable[..., InContextAgent], tmp_path: Path) -> None:
    """Pusher-Goal's objects lie where the task says when an episode begins."""
    run = a_run_of("icrl/PusherGoal-v0", make_agent(observation_dim=17, action_dim=7), tmp_path)
    experience, _ = run._act(0)
    assert experience.seen.shape == (4, 101, 17 + 4 + 2 + 1)
    places = np.array([task["object"] for task in run._tasks.tasks])
    np.testing.assert_allclose(experience.seen[:, 0, 21:23], places, atol=1e-6)


def test_episodes_that_end_early_go_on_with_the_next(make_agent: Callable[..., InContextAgent], tmp_path: Path) -> None:
    """Ant-Dir ends where the ant falls; the clock that the critic sees begins anew."""
    agent = make_agent(observation_dim=27, action_dim=8)
    run = a_run_of("icrl/AntDir-v0", agent, tmp_path, noise=3.0, subset="sampled:8", episodes=2)
    returns = []
    for number in range(2):
        before = run._lives.get("age", np.zeros(8))
        experience, run._lives = run._act(number)
        clock = np.rint(experience.seen[..., -1] * 200).astype(int)
        began = experience.tokens[:, 0, -1] == 1
        np.testing.assert_array_equal(clock[:, 0], np.where(began, 0, before))
        np.testing.assert_array_equal(clock[:, 1:], np.where(experience.done, 0, clock[:, :-1] + 1))
        returns.append([experience.rewards, experience.done, experience.mean_return])
    assert (experience.done[:, :-1].sum(1) > 2).any()
    (first, ended, told), (second, ended_later, told_later) = returns
    whole, first_mean = complete_returns(first, ended)
    assert told == pytest.approx(first_mean, rel=1e-5)
    assert len(whole) > 16
    if began.any():  # rows that went on bring what they had got of an episode in the round before
        both = [np.concatenate(pair, axis=1) for pair in ((first, second), (ended, ended_later))]
        rows = np.flatnonzero(~began)
        went_on = [value for row in rows for value in complete_returns(both[0][[row]], both[1][[row]])[0]]
        before = [value for row in rows for value in complete_returns(first[[row]], ended[[row]])[0]]
        fresh = [v for row in np.flatnonzero(began) for v in complete_returns(second[[row]], ended_later[[row]])[0]]
        expected = (sum(went_on) - sum(before) + sum(fresh)) / (len(went_on) - len(before) + len(fresh))
        assert told_later == pytest.approx(expected, rel=1e-5)


def complete_returns(rewards: np.ndarray, done: np.ndarray) -> tuple[list[float], float]:
    """Of the episodes that ended, each from its beginning."""
    found = []
    for row_rewards, row_done in zip(rewards.astype(float), done, strict=True):
        ends = np.flatnonzero(row_done) + 1
        found += [float(row_rewards[i:j].sum()) for i, j in pairwise([0, *ends])]
    return found, float(np.mean(found))


def test_it_acts_in_the_variant_that_the_agent_is_for(mamba: Path, tmp_path: Path) -> None:
    model, agent = load_checkpoint(mamba)
    short = dataclasses.replace(agent, env_options={"max_episode_steps": 20}, episode_steps=20)
    save_checkpoint(tmp_path / "short", model, short)
    experience, _ = a_run(TINY, tmp_path / "short", tmp_path / "run")._act(0)
    assert experience.rewards.shape == (4, 20)
    assert experience.done.sum(0).tolist() == [0] * 19 + [4]
    np.testing.assert_allclose(experience.seen[0, :, 10], [*np.arange(20) / 20, 0], atol=1e-6)
    save_checkpoint(tmp_path / "odd", model, dataclasses.replace(agent, env_options={"colour": 1}))
    with pytest.raises(ConfigError, match=r"cannot be made with the options \{'colour': 1\}"):
        quietly(tmp_path / "odd", tmp_path / "run")


# ------------------------------------------------------------------ a run


def test_a_run_of_it(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([1.0, 3.0, 2.0])
    monkeypatch.setattr(reinforcement, "mean_returns", lambda *_: (next(scores),))
    result = quietly(start, tmp_path / "run")
    assert (result.best_round, result.best_score) == (2, 3.0)
    rows = metrics(tmp_path / "run")
    assert [row["update"] for row in rows if "return" in row] == [1, 2, 3, 4]
    assert [row["update"] for row in rows if "val_score" in row] == [0, 2, 4]
    assert ["largest_kl" in row for row in rows if "return" in row] == [False, True, True, True]
    agent = InContextAgent.from_pretrained(tmp_path / "run")
    assert agent.config.name == "tuned"
    assert agent.config.model == load_checkpoint(start)[1].model
    training = json.loads((tmp_path / "run/training.json").read_text())
    assert training["recipe"] == "reinforcement fine-tuning"
    assert (training["update"], training["start"]["name"]) == (result.best_round, load_checkpoint(start)[1].name)
    assert not (tmp_path / "run/rounds").exists()
    assert quietly(start, tmp_path / "run") == result


def test_what_is_no_better_is_not_kept(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(reinforcement, "mean_returns", lambda *_: (next(scores),))
    assert quietly(start, tmp_path / "run").best_round == 0
    assert_same_weights(start, tmp_path / "run")
    assert "fine-tuning" not in json.loads((tmp_path / "run/training.json").read_text())["recipe"]


def test_the_first_rounds_teach_the_critic_alone(mamba: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reinforcement, "mean_returns", lambda *_: (0.0,))  # the last is kept
    quietly(mamba, tmp_path / "run", critic_rounds=2, rounds=3, validate_every=3, target_kl=1e3)
    before, after = load_file(mamba / "model.safetensors"), load_file(tmp_path / "run/model.safetensors")
    assert not all(torch.equal(before[name], after[name]) for name in before)
    state = load_file(tmp_path / "run/training_state.safetensors")
    steps = {int(v) for n, v in state.items() if n.startswith("optimizer.step.agent")}
    assert steps == {2 * 2}  # epochs x batches of the one round
    # 2 batches; 9 passes in each of the first rounds, 3 in the last
    assert {int(v) for n, v in state.items() if n.startswith("optimizer.step.critic")} == {2 * 9 * 2 + 2 * 3}


def test_it_learns_from_reward(mamba: Path, tmp_path: Path) -> None:
    """An agent that knows nothing learns to reach."""
    config = dataclasses.replace(
        TINY, subset="sampled:16", rounds=40, life_rounds=1, learning_rate=5e-3, noise=0.3, gamma=0.9, batch_size=8
    )
    quietly(mamba, tmp_path / "run", config, validate_every=40)
    returns = [row["return"] for row in metrics(tmp_path / "run") if "return" in row]
    assert np.mean(returns[-5:]) > np.mean(returns[:5]) + 2


def test_the_learning_rate_rises_and_falls() -> None:
    config = dataclasses.replace(TINY, rounds=9, critic_rounds=1, warmup_rounds=3, learning_rate=1.0)
    rates = [reinforcement.learning_rate(config, number) for number in range(9)]
    assert rates == pytest.approx([0, 0.25, 0.5, 0.75, 1.0, 0.8, 0.6, 0.4, 0.2])


# ------------------------------------------------------------------ interruptions


@pytest.mark.parametrize(("at", "calls"), [("_act", 1), ("_act", 3), ("_save", 1), ("_save", 3)])
def test_a_killed_run_ends_as_if_it_had_not_been_killed(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, calls: int
) -> None:
    config = dataclasses.replace(TINY, noise_decay=0.3, average_rounds=3)
    quietly(start, tmp_path / "whole", config)
    with monkeypatch.context() as patch:
        cut_off(patch, at, calls)
        with pytest.raises(MemoryError):
            quietly(start, tmp_path / "killed", config)
    quietly(start, tmp_path / "killed", config)
    for file in ("model.safetensors", "training_state.safetensors"):
        assert_same_weights(tmp_path / "whole", tmp_path / "killed", file)
    whole, killed = (
        [{name: value for name, value in row.items() if name != "steps_per_second"} for row in metrics(tmp_path / run)]
        for run in ("whole", "killed")
    )
    assert whole == killed


def cut_off(patch: pytest.MonkeyPatch, name: str, calls: int) -> None:
    """The run's method fails where it is called for the n-th time."""
    method = getattr(reinforcement._Run, name)
    left = iter(range(calls - 1))

    def failing(self: Any, *arguments: Any) -> Any:
        if next(left, None) is None:
            raise MemoryError
        return method(self, *arguments)

    patch.setattr(reinforcement._Run, name, failing)


def test_a_kill_between_lives_and_state(mamba: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quietly(mamba, tmp_path / "whole")
    with monkeypatch.context() as patch:
        real, left = reinforcement.save_run, iter(range(3))

        def failing(*arguments: Any) -> None:
            if next(left, None) is None:
                raise MemoryError
            real(*arguments)

        patch.setattr(reinforcement, "save_run", failing)
        with pytest.raises(MemoryError):
            quietly(mamba, tmp_path / "killed")
    lives = sorted(path.name for path in (tmp_path / "killed/rounds").iterdir())
    assert lives == ["00002.safetensors", "00003.safetensors"]
    quietly(mamba, tmp_path / "killed")
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")


def test_a_kill_before_older_lives_are_deleted(mamba: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        real, left = reinforcement.save_run, iter(range(2))

        def failing(*arguments: Any) -> None:
            real(*arguments)
            if next(left, None) is None:
                raise MemoryError

        patch.setattr(reinforcement, "save_run", failing)
        with pytest.raises(MemoryError):
            quietly(mamba, tmp_path / "killed")
    assert len(list((tmp_path / "killed/rounds").iterdir())) == 2
    quietly(mamba, tmp_path / "killed")
    assert not (tmp_path / "killed/rounds").exists()


@pytest.mark.soak
def test_survives_kill_9(mamba: Path, tmp_path: Path, whole_and_killed: Callable[..., None]) -> None:
    script = """
import json, sys, torch
from icrl_agents.config import from_dict
from icrl_agents.training.reinforcement import ReinforcementConfig, finetune
torch.set_num_threads(1)
config = from_dict(ReinforcementConfig, json.loads(sys.argv[1]))
finetune(config, sys.argv[2], sys.argv[3], tensorboard=False, quiet=True, device="cpu")
"""
    config = dataclasses.replace(TINY, rounds=60, validate_every=7)
    whole_and_killed(script, [json.dumps(dataclasses.asdict(config)), str(mamba)], tmp_path, range(1, 60, 6))
    for file in ("model.safetensors", "training_state.safetensors"):
        assert_same_weights(tmp_path / "whole", tmp_path / "killed", file)


def test_damaged_lives_are_an_error(mamba: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        cut_off(patch, "_act", calls=2)
        with pytest.raises(MemoryError):
            quietly(mamba, tmp_path / "run")
    lives = tmp_path / "run/rounds/00001.safetensors"
    lives.write_bytes(lives.read_bytes()[:100])
    with pytest.raises(DatasetError, match=r"00001.*damaged"):
        quietly(mamba, tmp_path / "run")


# ------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds: expected at least 1"),
        ({"noise": 0.0}, "noise: expected a finite number above 0"),
        ({"noise_decay": 0.0}, "noise_decay: expected a number above 0 and at most 1, got 0.0"),
        ({"noise_decay": 1.5}, "noise_decay: expected a number above 0 and at most 1, got 1.5"),
        ({"advantages_by": "life"}, r"advantages_by: expected one of \('task', 'round'\), got 'life'"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"gamma": 1.5}, "gamma: expected 0 to 1"),
        ({"critic_rounds": 4}, "critic_rounds: expected at least 0 and fewer than the 4 rounds"),
        ({"critic_hidden": (0,)}, "critic_hidden: expected widths of at least 1"),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"betas": (0.9, 1.0)}, "betas: expected two numbers from 0 to below 1"),
        ({"warmup_rounds": -1}, "warmup_rounds: expected at least 0"),
        ({"betas": (0.9,)}, "betas: expected two numbers"),
        ({"task_changes": 1.5}, "task_changes: expected a probability, got 1.5"),
        ({"task_changes": 0.5, "life_rounds": 1}, "life_rounds of at least 2"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **changes)


def test_agents_that_cannot_be_fine_tuned(
    make_agent: Callable[..., InContextAgent], mamba: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_agent(head="gaussian").save_pretrained(tmp_path / "gaussian")
    with pytest.raises(ConfigError, match="has a gaussian head"):
        quietly(tmp_path / "gaussian", tmp_path / "run")
    with pytest.raises(ConfigError, match=r"is of icrl/ReacherGoal-v0, the run of icrl/PusherGoal-v0"):
        quietly(mamba, tmp_path / "run", env_id="icrl/PusherGoal-v0")
    with pytest.raises(DatasetError, match="validation or test tasks"):
        quietly(mamba, tmp_path / "run", subset="train+val")
    model, agent = load_checkpoint(mamba)
    save_checkpoint(tmp_path / "pearl", model, dataclasses.replace(agent, split="pearl"))
    with pytest.raises(ConfigError, match="made on split 'pearl', the run is of 'paper'"):
        quietly(tmp_path / "pearl", tmp_path / "run")
    save_checkpoint(tmp_path / "older", model, dataclasses.replace(agent, split_hash="0123456789abcdef"))
    with pytest.raises(ConfigError, match="with content 0123456789abcdef, which is 3f0e8bc336c5e3a1 now"):
        quietly(tmp_path / "older", tmp_path / "run")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no GPU"):
            finetune(TINY, mamba, tmp_path / "run", device="cuda")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match="one process"):
        quietly(mamba, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run(mamba: Path, tmp_path: Path) -> None:
    quietly(mamba, tmp_path / "run", rounds=2)
    with pytest.raises(ConfigError, match=r"another run, which differs in: config\.noise"):
        quietly(mamba, tmp_path / "run", rounds=2, noise=0.2)
    with pytest.raises(ConfigError, match="holds a checkpoint"):
        quietly(mamba, mamba)


@pytest.mark.parametrize("rate", [1e2, 1e30])
def test_weights_that_diverge_are_an_error(mamba: Path, tmp_path: Path, rate: float) -> None:
    """Found where the agent acts with them: in the next round, or in validation."""
    with pytest.raises(ConfigError, match=r"diverged in round [234].*Try a smaller learning_rate than 1"):
        quietly(mamba, tmp_path / "run", batch_size=4, epochs=1, learning_rate=rate, warmup_rounds=0, target_kl=1e30)


def test_divergence_is_an_error(mamba: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reinforcement, "log_prob", lambda prediction, *_: prediction.mean.sum(-1) * torch.nan)
    with pytest.raises(ConfigError, match="diverged in round 2"):
        quietly(mamba, tmp_path / "run")


def test_tasks_of_the_split_are_those_of_the_split() -> None:
    tasks = reinforcement._training_tasks(dataclasses.replace(TINY, subset="train+sampled:3"))
    assert tasks.tasks[:70] == task_split(ENV_ID).train
    assert len(tasks.tasks) == 73


def test_more_validation_tasks(make_agent: Callable[..., InContextAgent], monkeypatch: pytest.MonkeyPatch) -> None:
    """After the split's: drawn by the seed, others than the training tasks, and none twice or kept for the test."""
    split, agent = task_split(ENV_ID), make_agent()
    config = dataclasses.replace(TINY, subset="sampled:20")
    trained_on = reinforcement._training_tasks(config)

    def tasks(more: int, seed: int = config.seed) -> list[Any]:
        seen: list[Any] = []

        def note(agent: InContextAgent, tasks: list[Any], episodes: int, seed: int) -> SimpleNamespace:
            return SimpleNamespace(returns=seen.extend(tasks))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("icrl_agents.evaluation.rollout", note)
            rollout_on_unseen_tasks(trained_on, 1, seed, more)(agent)
        return seen

    assert tasks(0) == list(split.val)
    assert tasks(20)[: len(split.val)] == list(split.val)
    assert len(tasks(20)) == len(split.val) + 20
    assert tasks(20) == tasks(20)
    assert not any(task in tasks(20, seed=1) for task in tasks(20)[len(split.val) :])
    assert not any(task in trained_on.tasks for task in tasks(20))

    new = {"goal": [0.1, 0.1]}
    drawn = [trained_on.tasks[0], split.test[0], split.val[0], new, new]
    monkeypatch.setattr(type(env_definition(ENV_ID)), "sample_tasks", lambda self, n, seed: drawn[:n])
    assert tasks(5) == [*split.val, new]


def test_more_validation_tasks_are_validated_on(mamba: Path, tmp_path: Path) -> None:
    quietly(mamba, tmp_path / "few", rounds=2)
    quietly(mamba, tmp_path / "more", rounds=2, more_val_tasks=5)
    few, more = ([m["val_returns"] for m in metrics(tmp_path / run) if "val_returns" in m] for run in ("few", "more"))
    assert len(few) == len(more) == 2
    assert few[0] != more[0]


RECORDS = {path.parent.name: json.loads(path.read_text()) for path in packaged().glob("*/training.json")}


@pytest.mark.parametrize("name", [name for name, record in RECORDS.items() if RECIPE in record["recipe"]])
def test_bundled_agents_are_fine_tuned_as_the_presets_say(name: str) -> None:
    made_by = RECORDS[name]["config"]
    preset = json.loads(json.dumps(dataclasses.asdict(reinforcement_preset(made_by["env_id"]))))
    older = dataclasses.asdict(ReinforcementConfig("", "", advantages_by="round"))  # before there were such fields
    assert preset | {"name": name, "seed": made_by["seed"]} == {
        field: made_by.get(field, older[field]) for field in preset
    }
    assert is_finetuned(made_by["env_id"], "laptop")

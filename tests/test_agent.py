"""The agent's contract: what it feeds its model, and that nothing else changes what it does."""

import sys
import tracemalloc
from contextlib import closing

import gymnasium
import numpy as np
import pytest
import torch
from agent_life import experience, live, spy_on
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl_agents.agent import InContextAgent
from icrl_agents.agent_steps import device_for
from icrl_agents.errors import ConfigError, InputError, UnknownNameError

REACHER = "icrl/ReacherGoal-v0"
few = settings(max_examples=15, deadline=None)


# ------------------------------------------------------------------ what the model sees


def test_tokens_of_two_episodes_worked_by_hand(make_agent, monkeypatch):
    agent = make_agent(observation_dim=1, action_dim=1)
    seen = spy_on(agent, monkeypatch)
    # observation acted on, executed action, reward, end of episode
    steps = [
        (10.0, 0.1, 1.0, False),
        (11.0, 0.2, 2.0, True),
        (20.0, 0.3, 3.0, False),
        (21.0, 0.4, 4.0, False),
    ]
    for observation, action, reward, end in steps:
        agent.act([observation])
        agent.observe(reward, end, action=[action])
    expected = [  # observation, previous observation, previous action, previous reward, episode start
        [10, 0, 0, 0, 1],
        [11, 10, 0.1, 1, 0],
        [20, 11, 0.2, 2, 1],  # the next episode still knows how the last one ended
        [21, 20, 0.3, 3, 0],
    ]
    np.testing.assert_array_equal(np.concatenate(seen), np.array(expected, np.float32))


def test_tokens_equal_those_of_the_recorded_history(make_agent, monkeypatch):
    agent, history = make_agent(), experience(np.random.default_rng(0), 30)
    seen = spy_on(agent, monkeypatch)
    live(agent, history)
    ends = history.terminated | history.truncated
    recorded = agent.model.layout.encode_history(history.observations, history.actions, history.rewards, ends)
    np.testing.assert_array_equal(np.concatenate(seen), recorded)


def test_without_override_the_agents_own_action_is_what_it_remembers(make_agent, monkeypatch):
    agent = make_agent()
    seen, at = spy_on(agent, monkeypatch), agent.model.layout
    action = agent.act(np.ones(8))
    kept = action.copy()
    action[:] = 99.0  # the caller's array is the caller's
    agent.observe(0.0, False)
    agent.act(np.ones(8))
    np.testing.assert_array_equal(seen[1][0, at.previous_action], kept)


def test_overriding_actions_are_clipped_as_the_data_is(make_agent, monkeypatch):
    agent = make_agent()
    seen, at = spy_on(agent, monkeypatch), agent.model.layout
    agent.act(np.ones(8))
    agent.observe(0.0, False, action=[5.0, -0.5])
    agent.act(np.ones(8))
    np.testing.assert_array_equal(seen[1][0, at.previous_action], np.float32([1.0, -0.5]))


def test_begin_episode_marks_a_start_and_keeps_the_last_transition(make_agent, monkeypatch):
    agent = make_agent(observation_dim=1, action_dim=1)
    seen = spy_on(agent, monkeypatch)
    agent.act([10.0])
    agent.observe(1.0, False, action=[0.5])
    agent.begin_episode()
    agent.act([20.0])
    np.testing.assert_array_equal(seen[1], np.float32([[20, 10, 0.5, 1, 1]]))


def test_resetting_rows_yourself_takes_the_place_of_the_ignored_step(make_agent, monkeypatch):
    agent = make_agent(observation_dim=1, action_dim=1)
    agent.reset(num_envs=2, autoreset_mode=AutoresetMode.NEXT_STEP)
    agent.act([[10.0], [30.0]])
    agent.observe([1.0, 2.0], [True, True], action=[[0.5], [0.25]])
    agent.begin_episode([True, False])
    seen = spy_on(agent, monkeypatch)
    agent.act([[20.0], [31.0]])
    np.testing.assert_array_equal(seen, np.float32([[[20, 10, 0.5, 1, 1]]]))  # row 1 is still to be reset


# ------------------------------------------------------------------ rows


@few
@given(st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("backbone", ["mamba", "transformer"])
def test_rows_equal_single_agents_at_staggered_times(make_agent, backbone, seed):
    rows, steps = 3, 20
    rng = np.random.default_rng(seed)
    history = experience(rng, steps, rows)
    forget = rng.random((rows, steps)) < 0.15
    cut = rng.random((rows, steps)) < 0.1
    together = make_agent(backbone)
    together.reset(num_envs=rows)
    alone = [make_agent(backbone) for _ in range(rows)]
    for t in range(steps):
        actions = together.act(history.observations[:, t])
        for i, agent in enumerate(alone):
            np.testing.assert_allclose(actions[i], agent.act(history.observations[i, t]), atol=2e-5)
            agent.observe(history.rewards[i, t], history.terminated[i, t], history.truncated[i, t])
            if forget[i, t]:
                agent.reset()
            if cut[i, t]:
                agent.begin_episode()
        together.observe(history.rewards[:, t], history.terminated[:, t], history.truncated[:, t])
        together.forget(forget[:, t])
        together.begin_episode(cut[:, t])


def test_a_forgotten_row_is_a_fresh_agent_and_the_others_go_on(agent, make_agent):
    rng = np.random.default_rng(1)
    agent.reset(num_envs=2)
    live(agent, experience(rng, 8, 2))
    untouched = agent.clone()
    agent.forget([True, False])
    obs = rng.normal(size=(2, 8))
    actions, before = agent.act(obs), untouched.act(obs)
    np.testing.assert_allclose(actions[0], make_agent(agent.config.model.backbone).act(obs[0]), atol=2e-5)
    np.testing.assert_array_equal(actions[1], before[1])
    assert np.abs(actions[0] - before[0]).max() > 1e-3  # it did remember something


def sync_env(mode, horizons=(3, 5)):
    def make(horizon):
        return lambda: gymnasium.make(REACHER, task={"goal": [0.1, 0.05]}, max_episode_steps=horizon)

    return SyncVectorEnv([make(h) for h in horizons], autoreset_mode=mode)


def streams(agent, mode, monkeypatch, steps, horizons=(3, 5)):
    """For each row the tokens that the model was fed while acting in Gymnasium's own vector env."""
    with closing(sync_env(mode, horizons)) as env, monkeypatch.context() as patch:
        seen = spy_on(agent, patch)
        agent.reset(env=env)
        obs, _ = env.reset(seed=3)
        fed = [[] for _ in horizons]
        done = np.zeros(len(horizons), bool)
        for _ in range(steps):
            ignored = done if mode is AutoresetMode.NEXT_STEP else np.zeros_like(done)
            seen.clear()
            obs, reward, terminated, truncated, _ = env.step(agent.act(obs))
            agent.observe(reward, terminated, truncated)
            for row, token in zip(np.flatnonzero(~ignored), (t for call in seen for t in call), strict=True):
                fed[row].append(token)
            done = terminated | truncated
            if mode is AutoresetMode.DISABLED and done.any():
                obs, _ = env.reset(options={"reset_mask": done})
        return [np.array(tokens) for tokens in fed]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
@pytest.mark.parametrize("horizons", [(3, 5), (4, 4)], ids=["staggered", "together"])
def test_every_autoreset_mode_gives_the_same_experience(agent, monkeypatch, mode, horizons):
    reference = streams(agent, AutoresetMode.SAME_STEP, monkeypatch, 25, horizons)
    other = streams(agent, mode, monkeypatch, 25, horizons)
    for expected, found in zip(reference, other, strict=True):
        assert len(found) >= 20 * 0.9  # NEXT_STEP spends some steps on resets
        np.testing.assert_allclose(found, expected[: len(found)], atol=2e-5)


def test_reset_reads_rows_and_mode_from_the_env(make_agent):
    agent = make_agent()
    with closing(sync_env(AutoresetMode.NEXT_STEP)) as env:
        agent.reset(env=env)
        assert agent.num_envs == 2
        obs, _ = env.reset(seed=0)
        for _ in range(3):  # row 0 ends here
            obs, reward, terminated, truncated, _ = env.step(agent.act(obs))
            agent.observe(reward, terminated, truncated)
        np.testing.assert_array_equal(agent.act(obs)[0], [0.0, 0.0])  # the action that the env ignores
    with agent.make_env() as env:
        agent.reset(env=env)
        assert agent.num_envs is None


def test_reset_refuses_what_it_cannot_act_in(make_agent):
    agent = make_agent()
    with gymnasium.make(REACHER) as env, closing(sync_env(AutoresetMode.SAME_STEP)) as vector:
        with pytest.raises(ConfigError, match=r"\(3,\)"):
            make_agent(observation_dim=3).reset(env=env)
        vector.metadata = {}
        with pytest.raises(ConfigError, match="autoreset_mode="):
            agent.reset(env=vector)
        with pytest.raises(InputError, match="not both"):
            agent.reset(num_envs=2, env=env)
    with pytest.raises(ConfigError, match="SameStep"):
        agent.reset(num_envs=2, autoreset_mode="sometimes")
    with closing(sync_env(AutoresetMode.SAME_STEP)) as vector:
        with pytest.raises(ConfigError, match="its autoreset mode is 'SameStep', not 'NextStep'"):
            agent.reset(env=vector, autoreset_mode="NextStep")
        agent.reset(env=vector, autoreset_mode="SameStep")
    with gymnasium.wrappers.RescaleAction(gymnasium.make(REACHER), np.float32(0), np.float32(1)) as rescaled:
        with pytest.raises(ConfigError, match=r"from \[-1\.0, -1\.0\] .* rescaled perhaps, takes those from \[0\.0"):
            agent.reset(env=rescaled)
        agent.reset(env=gymnasium.wrappers.ClipAction(gymnasium.make(REACHER)))  # takes any
        rescaled.action_space = gymnasium.spaces.MultiDiscrete([3, 3])
        with pytest.raises(ConfigError, match="Box spaces; the environment's action space is MultiDiscrete"):
            agent.reset(env=rescaled)
    for wrong in (0, -1, 1.5, True, "3", 10**13):
        with pytest.raises(InputError, match="num_envs"):
            agent.reset(num_envs=wrong)
    for wrong in (-1, 1.5, "a", 2**63):
        with pytest.raises(InputError, match="seed"):
            agent.reset(seed=wrong)


# ------------------------------------------------------------------ actions


def test_actions_are_float32_and_inside_the_bounds(make_agent):
    agent = make_agent(head="gaussian")
    agent.reset(num_envs=50, seed=0)
    actions = agent.act(np.random.default_rng(0).normal(size=(50, 8)) * 30, deterministic=False)
    assert actions.dtype == np.float32
    assert actions.shape == (50, 2)
    assert np.abs(actions).max() == 1.0  # some were clipped


def test_a_gaussian_head_samples_by_default_and_its_seed_decides(make_agent):
    def first_actions(seed, deterministic=None):
        agent = make_agent(head="gaussian")
        agent.reset(seed=seed)
        actions = []
        for _ in range(5):
            actions.append(agent.act(np.ones(8), deterministic))
            agent.observe(0.0, False)
        return np.array(actions)

    np.testing.assert_array_equal(first_actions(0), first_actions(0))
    assert not np.array_equal(first_actions(0), first_actions(1))
    np.testing.assert_array_equal(first_actions(0, False), first_actions(0))
    np.testing.assert_array_equal(first_actions(0, True), first_actions(1, True))


def test_reset_without_a_seed_lets_the_random_stream_go_on(make_agent):
    agent, obs = make_agent(head="gaussian"), np.zeros((10, 8))
    agent.reset(10, seed=5)
    first = agent.act(obs)
    agent.reset(10)
    assert not np.array_equal(agent.act(obs), first)
    agent.reset(10, seed=5)
    np.testing.assert_array_equal(agent.act(obs), first)


def test_acting_touches_neither_weights_nor_torchs_random_stream(make_agent):
    agent = make_agent(head="gaussian")
    weights = {name: w.clone() for name, w in agent.model.state_dict().items()}
    stream = torch.get_rng_state()
    live(agent, experience(np.random.default_rng(0), 10))
    assert torch.equal(torch.get_rng_state(), stream)
    for name, weight in agent.model.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def test_memory_does_not_grow_with_steps(agent):
    def run(steps):
        for _ in range(steps):
            agent.act(obs)
            agent.observe(0.5, False)

    obs = np.ones(8)
    run(50)
    tracemalloc.start()
    run(20)
    held = [tracemalloc.get_traced_memory()[0]]
    for _ in range(3):
        run(300)
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    # bytes; a step that kept its token would leave 300 * 80 each time, what other threads allocate comes once
    assert min(np.diff(held)) < 3000


# ------------------------------------------------------------------ predict


@pytest.mark.parametrize("rows", [None, 3])
def test_predict_equals_act_and_changes_neither_state_nor_agent(agent, rows):
    history = experience(np.random.default_rng(0), 10, rows)
    ends = history.terminated | history.truncated
    layout = agent.model.layout
    tokens = layout.encode_history(history.observations, history.actions, history.rewards, ends)
    state = None
    predicted = []
    for t in range(10):
        before = None if state is None else [leaf.copy() for leaf in state]
        action, new_state = agent.predict(tokens[..., t, :], state, episode_start=np.ones(rows or 1, bool))
        if before is not None:
            for leaf, copy in zip(state, before, strict=True):
                np.testing.assert_array_equal(leaf, copy)
        state = new_state
        predicted.append(action)
    agent.reset(num_envs=rows)  # predict left no trace before it either
    np.testing.assert_allclose(predicted, live(agent, history), atol=2e-5)


def test_predict_without_a_state_forgets_what_the_observation_still_tells(agent):
    """The step before it, where a second evaluation begins in the same environment."""
    layout = agent.model.layout
    token = np.random.default_rng(0).normal(size=layout.size)
    blank = np.r_[token[: layout.observation_dim], np.zeros(layout.size - layout.observation_dim - 1), 1.0]
    np.testing.assert_array_equal(agent.predict(token)[0], agent.predict(blank)[0])


def test_predict_forgets_where_the_observation_begins_a_task(agent):
    """In that row alone; an episode that begins is no task."""
    layout = agent.model.layout
    tokens = np.random.default_rng(0).normal(size=(3, 2, layout.size))
    tokens[..., layout.episode_start] = 0.0
    state = None
    for token in tokens:
        _, state = agent.predict(token, state)
    begins = tokens[-1].copy()
    begins[:, layout.episode_start] = 1.0
    kept = agent.predict(begins, state)[0]
    begins[0, layout.observation_dim : -1] = 0.0
    actions = agent.predict(begins, state)[0]
    np.testing.assert_allclose(actions[0], agent.predict(begins[0])[0], atol=1e-6)
    np.testing.assert_allclose(actions[1], kept[1], atol=1e-6)
    assert abs(kept[1] - agent.predict(begins[1])[0]).max() > 1e-4


def test_predict_refuses_other_observations_and_states(agent, make_agent):
    size = agent.model.layout.size
    _, state = agent.predict(np.zeros((2, size)))
    wrong = [
        np.zeros(8),
        np.zeros((2, 3, size)),
        np.zeros((0, size)),
        np.full(size, np.nan),
        {"a": 1},
        np.zeros(()),
    ]
    for observation in wrong:
        with pytest.raises(InputError):
            agent.predict(observation)
    other = make_agent("transformer" if agent.config.model.backbone == "mamba" else "mamba")
    for strange in (other.predict(np.zeros((2, size)))[1], state[:-1], (1,), "state"):
        with pytest.raises(InputError):
            agent.predict(np.zeros((2, size)), strange)
    with pytest.raises(InputError, match="3 row"):
        agent.predict(np.zeros((3, size)), state)


# ------------------------------------------------------------------ environments


def test_make_env_gives_the_agents_environment(make_agent):
    agent = make_agent()
    with agent.make_env(task={"goal": [0.1, 0.0]}) as env:
        assert env.spec.id == REACHER
        obs, _ = env.reset(seed=0)
        assert env.action_space.contains(agent.act(obs))
    with closing(agent.make_vec_env(3)) as env:
        assert env.num_envs == 3
        agent.reset(env=env)
        assert env.action_space.contains(agent.act(env.reset(seed=0)[0]))


def test_make_env_of_an_unregistered_id(make_agent):
    from dataclasses import replace

    agent = make_agent()
    lost = InContextAgent(agent.model, replace(agent.config, env_id="icrl/ReacherGoal-v9"))
    for make in (lost.make_env, lambda: lost.make_vec_env(2)):
        with pytest.raises(UnknownNameError, match="ReacherGoal-v0"):
            make()
    wrong = make_agent(observation_dim=3)
    with pytest.raises(ConfigError, match=r"\(3,\)"):
        wrong.make_env()
    for make in (agent.make_env, lambda **options: agent.make_vec_env(2, **options)):
        with pytest.raises(ConfigError, match=r"cannot be made with the options .*gravity"):
            make(gravity=3)


@pytest.mark.parametrize("env_id", ["os:Exit-v0", "antigravity:Env-v0"])
def test_a_checkpoint_cannot_name_code_as_its_environment(make_agent, env_id):
    from dataclasses import replace

    agent = make_agent()
    hostile = InContextAgent(agent.model, replace(agent.config, env_id=env_id))
    with pytest.raises(UnknownNameError):
        hostile.make_env()
    assert "antigravity" not in sys.modules


def test_a_model_of_another_config_is_refused(make_agent, make_config):
    with pytest.raises(ConfigError, match="was built from"):
        InContextAgent(make_agent().model, make_config("transformer"))


# ------------------------------------------------------------------ precision


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_rounded_weights_act_nearly_the_same(make_agent, precision):
    plain = make_agent("mamba")
    rounded = InContextAgent(plain.model, plain.config, precision=precision)
    observations = np.random.default_rng(0).normal(size=(20, 8))
    actions = []
    for agent in (plain, rounded, rounded.clone()):
        agent.reset()
        taken = []
        for observation in observations:
            taken.append(agent.act(observation))
            agent.observe(0.5, False)
        actions.append(np.array(taken))
    assert 0 < np.abs(actions[0] - actions[1]).max() < 0.1
    np.testing.assert_array_equal(actions[1], actions[2])


def test_precisions_that_cannot_be_are_refused(make_agent, monkeypatch):
    agent = make_agent("transformer")
    with pytest.raises(ConfigError, match="float32 only"):
        InContextAgent(agent.model, agent.config, precision="int8")
    with pytest.raises(ConfigError, match="known: float32, bfloat16, int8"):
        InContextAgent(agent.model, agent.config, precision="float16")
    mamba = make_agent("mamba")
    monkeypatch.setenv("ICRL_KERNEL", "reference")
    with pytest.raises(ConfigError, match="kernel 'cpu' alone, ICRL_KERNEL names 'reference'"):
        InContextAgent(mamba.model, mamba.config, precision="int8")
    InContextAgent(mamba.model, mamba.config, precision="int8", kernel="cpu")  # goes before the variable


@pytest.mark.parametrize(
    ("precision", "kernel", "variable", "device"),
    [
        ("float32", None, None, "cuda"),
        ("float32", "triton", None, "cuda"),
        ("float32", "triton", "cpu", "cuda"),
        ("float32", None, "cpu", "cpu"),
        ("float32", "cpu", None, "cpu"),
        ("int8", None, None, "cpu"),
    ],
)
def test_the_automatic_device_is_one_that_runs_what_is_asked_for(monkeypatch, precision, kernel, variable, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("ICRL_KERNEL", raising=False)
    if variable is not None:
        monkeypatch.setenv("ICRL_KERNEL", variable)
    assert device_for(precision, kernel) == device


def test_an_agent_loaded_in_inference_mode_has_ordinary_weights(make_agent, tmp_path):
    make_agent().save_pretrained(tmp_path)
    with torch.inference_mode():
        agent = InContextAgent.from_pretrained(tmp_path)
    assert not any(weight.is_inference() for weight in agent.model.state_dict().values())

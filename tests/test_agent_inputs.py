"""Wrong input is named and changes nothing."""

import numpy as np
import pytest
import torch
from agent_life import experience, live

from icrl_agents.errors import CallOrderError, InputError

BAD_ACT = {
    "shape": np.zeros(7),
    "rows": np.zeros((1, 8)),
    "nan": np.full(8, np.nan),
    "infinite": np.full(8, np.inf),
    "infinite in float32": np.full(8, 1e300),
    "text": ["a"] * 8,
    "ragged": [[1.0], [1.0, 2.0]],
    "complex": np.zeros(8, complex),
    "dict": {"obs": 1},
    "none": None,
    "what reset returns": (np.zeros(8), {}),
    "bfloat16": torch.zeros(8, dtype=torch.bfloat16),
    "object": object(),
    "bytes": b"12345678",
    "dates": np.zeros(8, "datetime64[s]"),
}
BAD_OBSERVE = {
    "reward shape": {"reward": [0.0]},
    "reward nan": {"reward": float("nan")},
    "reward none": {"reward": None},
    "terminated shape": {"terminated": [False]},
    "terminated float": {"terminated": 0.5},
    "terminated two": {"terminated": 2},
    "truncated shape": {"truncated": [False, True]},
    "action shape": {"action": [0.0]},
    "action nan": {"action": [np.nan, 0.0]},
}


@pytest.mark.parametrize("obs", BAD_ACT.values(), ids=BAD_ACT.keys())
def test_a_bad_observation_changes_nothing(agent, obs):
    live(agent, experience(np.random.default_rng(2), 5))
    twin = agent.clone()
    with pytest.raises(InputError):
        agent.act(obs)
    np.testing.assert_array_equal(agent.act(np.ones(8)), twin.act(np.ones(8)))


MESSAGES = {
    "what reset returns": "a tuple that ends in a dict, as reset and step return it",
    "dict": "expected an array, got dict",
    "none": "expected an array, got None",
    "text": "expected real numbers, got <U1",
    "infinite in float32": r"finite in float32, got 1e\+300",
    "rows": r"expected shape \(8,\), since the agent acts in one environment, got \(1, 8\)",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_bad_observation_is_named(make_agent, name):
    with pytest.raises(InputError, match=MESSAGES[name]):
        make_agent().act(BAD_ACT[name])


def test_observations_that_are_tensors_are_read(make_agent):
    expected = make_agent().act(np.ones(8))
    for tensor in (torch.ones(8), torch.ones(8, dtype=torch.float64), torch.ones(8, requires_grad=True)):
        np.testing.assert_array_equal(make_agent().act(tensor), expected)


@pytest.mark.parametrize("wrong", BAD_OBSERVE.values(), ids=BAD_OBSERVE.keys())
def test_a_bad_outcome_changes_nothing(agent, wrong):
    live(agent, experience(np.random.default_rng(2), 5))
    agent.act(np.ones(8))
    twin = agent.clone()
    with pytest.raises(InputError):
        agent.observe(**{"reward": 1.0, "terminated": False, **wrong})
    for one in (agent, twin):
        one.observe(1.0, False)
    np.testing.assert_array_equal(agent.act(np.zeros(8)), twin.act(np.zeros(8)))


def test_bad_masks_and_histories_change_nothing(agent):
    rng = np.random.default_rng(4)
    agent.reset(num_envs=3)
    live(agent, experience(rng, 5, 3))
    twin = agent.clone()
    for mask in ([True], [[True, False, True]], [0.5, 0.0, 1.0], True):
        with pytest.raises(InputError):
            agent.forget(mask)
        with pytest.raises(InputError):
            agent.begin_episode(mask)
    damaged = experience(rng, 5, 3)
    damaged.rewards[1, 2] = np.nan
    shorter = experience(rng, 5, 3)
    shorter.actions = shorter.actions[:, :-1]
    for history in (damaged, shorter, experience(rng, 5), experience(rng, 5, 2)):
        with pytest.raises(InputError):
            agent.prefill(history)
    obs = rng.normal(size=(3, 8))
    np.testing.assert_array_equal(agent.act(obs), twin.act(obs))


def test_calls_out_of_order_are_refused_and_change_nothing(agent):
    with pytest.raises(CallOrderError, match="before act"):
        agent.observe(0.0, False)
    agent.act(np.ones(8))
    twin = agent.clone()
    calls = {
        "act was called twice": lambda: agent.act(np.ones(8)),
        "forget": lambda: agent.forget(),
        "begin_episode": lambda: agent.begin_episode(),
        "prefill": lambda: agent.prefill(experience(np.random.default_rng(0), 2)),
    }
    for message, call in calls.items():
        with pytest.raises(CallOrderError, match=message):
            call()
    for one in (agent, twin):
        one.observe(1.0, True)
    np.testing.assert_array_equal(agent.act(np.zeros(8)), twin.act(np.zeros(8)))
    agent.reset()  # always allowed
    agent.act(np.ones(8))
    with pytest.raises(InputError, match="give no mask"):
        agent.begin_episode([True], abandon=True)
    before = agent.get_state().tokens.copy()
    agent.begin_episode(abandon=True)  # so is that: what came before the action is read again, as an episode's start
    before[:, agent.model.layout.episode_start] = 1.0
    np.testing.assert_array_equal(agent.get_state().tokens, before)
    agent.act(np.ones(8))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int8", "bool", "longdouble"])
def test_observations_of_any_real_dtype(make_agent, dtype):
    obs = np.array([0, 1, 1, 0, 1, 0, 0, 1])
    np.testing.assert_array_equal(make_agent().act(obs.astype(dtype)), make_agent().act(obs.tolist()))


@pytest.mark.parametrize("huge", [1e38, -1e38])
def test_a_huge_observation_does_not_poison_the_memory(agent, huge):
    for obs in (np.full(8, huge), np.ones(8), np.ones(8)):
        assert np.isfinite(agent.act(obs)).all()
        agent.observe(huge, False)

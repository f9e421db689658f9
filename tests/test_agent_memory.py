"""Memory as a thing: prefill, clone, save and load."""

import copy
import pickle

import numpy as np
import pytest
import torch
from agent_life import experience, live, spy_on
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from icrl_agents.agent import InContextAgent
from icrl_agents.errors import CheckpointError, InputError

few = settings(max_examples=15, deadline=None)


@few
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12))
@pytest.mark.parametrize("backbone", ["mamba", "transformer"])
@pytest.mark.parametrize("rows", [None, 2])
def test_prefill_equals_living_through_it(make_agent, backbone, rows, seed, first, second):
    rng = np.random.default_rng(seed)
    parts = [experience(rng, first, rows), experience(rng, second, rows)]
    filled, lived = make_agent(backbone), make_agent(backbone)
    for agent in (filled, lived):
        agent.reset(num_envs=rows)
    for part in parts:
        filled.prefill(part)
        live(lived, part)
    obs = rng.normal(size=(8,) if rows is None else (rows, 8))
    np.testing.assert_allclose(filled.act(obs), lived.act(obs), atol=2e-5)


def test_prefill_is_chunked_without_a_seam(make_agent, monkeypatch):
    history = experience(np.random.default_rng(0), 23)
    whole, chunked = make_agent(), make_agent()
    whole.prefill(history)
    monkeypatch.setattr("icrl_agents.agent.PREFILL_CHUNK", 5)
    chunked.prefill(history)
    np.testing.assert_allclose(chunked.act(np.ones(8)), whole.act(np.ones(8)), atol=2e-5)


@pytest.mark.parametrize("backbone", ["mamba", "mamba2", "transformer"])
def test_prefill_continues_rows_that_are_at_different_times(make_agent, backbone):
    """In the middle of episodes, after rows forgot, one by one."""
    rng, rows = np.random.default_rng(0), 3
    filled, lived = make_agent(backbone), make_agent(backbone)
    for agent in (filled, lived):
        agent.reset(num_envs=rows)
    for forgotten in ([False, True, False], [True, False, False], [False, False, False]):
        before, demonstration = experience(rng, 7, rows), experience(rng, 9, rows)
        before.terminated[:, -1] = [True, False, False]
        before.truncated[:, -1] = False
        for agent in (filled, lived):
            live(agent, before)
            agent.forget(forgotten)
        filled.prefill(demonstration)
        live(lived, demonstration)
        np.testing.assert_allclose(live(filled, before), live(lived, before), atol=5e-5)


def test_prefill_leaves_resets_that_are_due(make_agent, monkeypatch):
    """The environment still begins those rows' episodes in the next step."""
    agent, history = make_agent(), experience(np.random.default_rng(0), 4, 2)
    history.terminated[:, -1] = history.truncated[:, -1] = False
    agent.reset(num_envs=2, autoreset_mode="NextStep")
    agent.act(np.ones((2, 8)))
    agent.observe([0.0, 0.0], [True, False])
    agent.prefill(history)
    seen = spy_on(agent, monkeypatch)
    np.testing.assert_array_equal(agent.act(np.ones((2, 8)))[0], [0.0, 0.0])
    agent.observe([0.0, 0.0], [False, False])
    agent.act(np.ones((2, 8)))
    assert [tokens[:, -1].tolist() for tokens in seen] == [[0.0], [1.0, 0.0]]  # episode start


def test_prefill_names_what_a_history_lacks(make_agent):
    with pytest.raises(InputError, match="a dict has no attributes observations, actions"):
        make_agent().prefill({"observations": np.zeros((3, 8))})


def test_prefill_with_nothing_changes_nothing(agent):
    history = experience(np.random.default_rng(0), 0)
    twin = agent.clone()
    agent.prefill(history)
    np.testing.assert_array_equal(agent.act(np.ones(8)), twin.act(np.ones(8)))


def test_a_clone_shares_weights_and_no_memory(agent, make_agent):
    expected, obs = make_agent(agent.config.model.backbone), np.ones((2, 8))
    for one in (agent, expected):
        one.reset(num_envs=2, autoreset_mode=AutoresetMode.NEXT_STEP)
        one.act(obs)
        one.observe([1.0, 2.0], [True, False])  # so that the next decision writes into a part of the memory
    twin = agent.clone()
    assert twin.model is agent.model
    live(twin, experience(np.random.default_rng(1), 5, 2))
    for _ in range(3):
        np.testing.assert_array_equal(agent.act(obs), expected.act(obs))
        for one in (agent, expected):
            one.observe([0.0, 0.0], [False, False])


def test_a_state_can_be_gone_back_to_more_than_once(agent):
    history = experience(np.random.default_rng(1), 5)
    before = agent.get_state()
    lives = []
    for _ in range(3):
        agent.set_state(before)
        lives.append(live(agent, history))
    np.testing.assert_array_equal(lives[0], lives[1])
    np.testing.assert_array_equal(lives[0], lives[2])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda agent: pickle.loads(pickle.dumps(agent))])
def test_a_copied_agent_goes_on_as_the_agent_would(agent, copied):
    agent.prefill(experience(np.random.default_rng(0), 5))
    twin = copied(agent)
    history = experience(np.random.default_rng(1), 5)
    np.testing.assert_array_equal(live(twin, history), live(agent, history))


def test_a_clone_samples_what_the_agent_would_have(make_agent):
    agent, obs = make_agent(head="gaussian"), np.zeros((10, 8))
    agent.reset(10)
    twin = agent.clone()
    np.testing.assert_array_equal(twin.act(obs), agent.act(obs))


@pytest.mark.parametrize("rows", [None, 3])
@pytest.mark.parametrize("acted", [False, True])
@pytest.mark.parametrize("head", ["deterministic", "gaussian", "mixture"])
def test_a_saved_state_continues_exactly(make_agent, tmp_path, rows, acted, head):
    rng = np.random.default_rng(0)
    agent = make_agent(head=head)
    agent.reset(num_envs=rows, seed=1)
    live(agent, experience(rng, 7, rows))
    next_one, after = experience(rng, 2, rows), experience(rng, 4, rows)
    if acted:
        agent.act(next_one.observations[..., 0, :])
    agent.save_state(tmp_path / "new" / "state.safetensors")
    other = make_agent(head=head)
    other.load_state(tmp_path / "new" / "state.safetensors")
    assert other.num_envs == rows
    if acted:
        for one in (agent, other):
            one.observe(next_one.rewards[..., 0], next_one.terminated[..., 0])
    np.testing.assert_array_equal(live(agent, after), live(other, after))


def test_a_saved_state_remembers_pending_resets(make_agent, tmp_path):
    agent = make_agent()
    agent.reset(num_envs=2, autoreset_mode="NextStep")
    agent.act(np.ones((2, 8)))
    agent.observe([0.0, 0.0], [True, False])
    agent.save_state(tmp_path / "state")
    other = make_agent()
    other.load_state(tmp_path / "state")
    actions = other.act(np.ones((2, 8)))
    np.testing.assert_array_equal(actions, agent.act(np.ones((2, 8))))
    np.testing.assert_array_equal(actions[0], [0.0, 0.0])


def test_load_state_refuses_what_is_not_its_own(make_agent, tmp_path):
    agent, path = make_agent(), tmp_path / "state.safetensors"
    live(agent, experience(np.random.default_rng(0), 5))
    agent.save_state(path)
    for other in (make_agent(seed=1), make_agent("transformer"), make_agent(head="gaussian")):
        with pytest.raises(CheckpointError, match="another checkpoint"):
            other.load_state(path)

    tensors = load_file(path)
    with_metadata = read_metadata(path)
    variants = {
        "no file": lambda p: None,
        "truncated": lambda p: p.write_bytes(path.read_bytes()[:-40]),
        "pickle": lambda p: p.write_bytes(pickle.dumps({"tokens": 1})),
        "foreign": lambda p: save_file({"weight": torch.zeros(3)}, p),
        "empty": lambda p: p.write_bytes(b""),
        "directory": lambda p: p.mkdir(),
        "tensor missing": lambda p: save_file({k: v for k, v in tensors.items() if k != "actions"}, p, with_metadata),
        "shape": lambda p: save_file({**tensors, "actions": torch.zeros(1, 3)}, p, with_metadata),
        "dtype": lambda p: save_file({**tensors, "actions": tensors["actions"].double()}, p, with_metadata),
        "nan": lambda p: save_file({**tensors, "actions": tensors["actions"] * torch.nan}, p, with_metadata),
        "version": lambda p: save_file(
            tensors, p, {"state": with_metadata["state"].replace('"state_version": 1', '"state_version": 2')}
        ),
        "rows": lambda p: save_file(
            {k: v.repeat(2, *[1] * (v.dim() - 1)) for k, v in tensors.items()}, p, with_metadata
        ),
    }
    twin = agent.clone()
    for name, write in variants.items():
        wrong = tmp_path / name
        write(wrong)
        with pytest.raises(CheckpointError):
            agent.load_state(wrong)
    np.testing.assert_array_equal(agent.act(np.ones(8)), twin.act(np.ones(8)))


def read_metadata(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("backbone", ["mamba", "transformer"])
def test_a_loaded_memory_is_no_view_of_its_file(make_agent, tmp_path, backbone):
    path, agent, loaded = tmp_path / "state.safetensors", make_agent(backbone), make_agent(backbone)
    agent.prefill(experience(np.random.default_rng(0), 5))
    agent.save_state(path)
    loaded.load_state(path)
    path.write_bytes(b"")  # a mapped file that shrinks kills who reads it
    np.testing.assert_array_equal(loaded.act(np.ones(8)), agent.act(np.ones(8)))


def test_a_state_of_another_kind_of_agent_is_refused(make_agent):
    agent = make_agent()
    agent.prefill(experience(np.random.default_rng(0), 5))
    twin = agent.clone()
    for state in ("nonsense", None, make_agent("transformer").get_state()):
        with pytest.raises(InputError, match="expected"):
            agent.set_state(state)
    np.testing.assert_array_equal(agent.act(np.ones(8)), twin.act(np.ones(8)))


def test_pytorchs_default_dtype_changes_no_agent(make_agent, tmp_path):
    agent = make_agent(head="gaussian")
    agent.save_pretrained(tmp_path / "agent")
    agent.save_state(tmp_path / "state.safetensors")
    agent.reset(seed=0)
    torch.set_default_dtype(torch.float64)
    try:
        loaded = InContextAgent.from_pretrained(tmp_path / "agent", device="cpu")
        loaded.load_state(tmp_path / "state.safetensors")
        loaded.reset(seed=0)
        np.testing.assert_array_equal(loaded.act(np.ones(8)), agent.act(np.ones(8)))
    finally:
        torch.set_default_dtype(torch.float32)

"""Agents that share a model act in as many threads at once, and the kernel that was asked for runs, in its thread."""

import multiprocessing
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from icrl_agents.agent import InContextAgent
from icrl_agents.errors import CheckpointError, ConfigError, UnknownNameError
from icrl_agents.kernels import available_kernels, choice, forced_kernel, reference

STEPS = 60


def lives(agent, stream):
    """Actions of an agent through episodes, tasks and a prefill of its own; ``stream`` tells them from others'."""
    rng = np.random.default_rng(stream)
    agent.reset(num_envs=1 + stream % 3, seed=stream)
    rows, actions = agent.num_envs, []
    for step in range(STEPS):
        actions.append(agent.act(rng.normal(size=(rows, 8))))
        agent.observe(rng.normal(size=rows), rng.random(rows) < 0.1)
        agent.forget(rng.random(rows) < 0.05)
        if step == STEPS // 2:
            agent.save_state(agent.scratch)
            agent.load_state(agent.scratch)
    return np.concatenate([action.ravel() for action in actions])


def _act_in_child(agent, results):
    results.put(agent.act(np.ones((64, 8))))


def test_forked_children_act(agent):
    """Where the parent has threads that its children lack, as torch's own DataLoader."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        agent.reset(64)
        twin = agent.clone()
        expected = twin.act(np.ones((64, 8)))
        torch.ones(1000, 1000).square().sum()  # starts the parent's threads
        context = multiprocessing.get_context("fork")
        results = context.SimpleQueue()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of any fork beside threads
            child = context.Process(target=_act_in_child, args=(agent, results), daemon=True)
            child.start()
        child.join(120)
        assert child.exitcode == 0
        np.testing.assert_allclose(results.get(), expected, atol=1e-6)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("backbone", ["mamba", "mamba2", "transformer"])
def test_threads_that_share_weights_act_as_if_alone(make_agent, tmp_path, backbone, precision):
    if precision == "int8" and backbone != "mamba":
        pytest.skip("only a Mamba steps in int8")
    first = make_agent(backbone, head="gaussian")
    first = InContextAgent(first.model, first.config, precision=precision)
    agents = [first.clone() for _ in range(6)]
    for stream, agent in enumerate(agents):
        agent.scratch = tmp_path / str(stream)
    alone = [lives(agent, stream) for stream, agent in enumerate(agents)]
    start = threading.Barrier(len(agents))

    def live(stream):
        start.wait()
        return [lives(agents[stream], stream) for _ in range(3)]

    with ThreadPoolExecutor(len(agents)) as pool:
        for stream, runs in enumerate(pool.map(live, range(len(agents)))):
            for run in runs:
                np.testing.assert_array_equal(run, alone[stream])


def test_agents_are_made_of_a_model_while_others_act(make_agent):
    first = make_agent()
    expected = make_agent().act(np.ones(8))

    def make(_):
        return InContextAgent(first.model, first.config).act(np.ones(8))

    with ThreadPoolExecutor(4) as pool:
        for action in pool.map(make, range(40)):
            np.testing.assert_array_equal(action, expected)


# ------------------------------------------------------------------ kernel=


def test_the_kernel_runs_that_was_asked_for(make_agent, monkeypatch):
    plain = make_agent()
    calls = []
    for name in ("selective_step", "selective_scan"):
        monkeypatch.setattr(reference, name, counted(getattr(reference, name), calls, name))
    slow = InContextAgent(plain.model, plain.config, kernel="reference")
    histories = [np.random.default_rng(0).normal(size=(10, 8))] * 2
    actions = []
    for agent, observations in zip((slow, slow.clone()), histories, strict=True):
        for observation in observations:
            actions.append(agent.act(observation))
            agent.observe(0.5, False)
    assert set(calls) == {"selective_step"}
    assert len(calls) == 20 * 2  # layers
    calls.clear()
    plain.act(histories[0][0])
    assert ("cpu" in available_kernels()) == (not calls)  # the default is not the reference where there is a faster one
    plain.observe(0.5, False)
    for observation, expected in zip(histories[0][1:], actions[1:10], strict=True):
        np.testing.assert_allclose(plain.act(observation), expected, atol=2e-5)
        plain.observe(0.5, False)


def counted(function, calls, name):
    def run(*arguments):
        calls.append(name)
        return function(*arguments)

    return run


def test_a_forced_kernel_holds_in_its_thread_alone(monkeypatch):
    monkeypatch.delenv("ICRL_KERNEL", raising=False)
    with forced_kernel("reference"), ThreadPoolExecutor(1) as pool:
        assert choice._named(None) == ("reference", "kernel=")
        assert pool.submit(choice._named, None).result()[0] is None
    monkeypatch.setenv("ICRL_KERNEL", "cpu")
    with forced_kernel("reference"):
        assert choice._named(None)[0] == "reference"
    assert choice._named(None)[0] == "cpu"
    with pytest.raises(UnknownNameError, match="reference"), forced_kernel("fastest"):
        pass


def test_kernels_that_cannot_run_here_are_refused(make_agent, tmp_path):
    agent = make_agent()
    with pytest.raises(UnknownNameError, match="unknown kernel 'numba'"):
        InContextAgent(agent.model, agent.config, kernel="numba")
    with pytest.raises(ConfigError, match="kernel=triton cannot run selective_step"):
        InContextAgent(agent.model, agent.config, kernel="triton")
    with pytest.raises(ConfigError, match="int8 run with kernel 'cpu' alone, got kernel='reference'"):
        InContextAgent(agent.model, agent.config, kernel="reference", precision="int8")
    other = make_agent("transformer")
    with pytest.raises(ConfigError, match="backbone Transformer has no kernels"):
        InContextAgent(other.model, other.config, kernel="reference")
    mamba2 = make_agent("mamba2")
    assert InContextAgent(mamba2.model, mamba2.config, kernel="reference").act(np.ones(8)).shape == (2,)
    agent.save_pretrained(tmp_path)
    assert InContextAgent.from_pretrained(tmp_path, kernel="cpu", precision="int8").kernel == "cpu"


def test_devices_that_are_not_there_are_refused(make_agent, tmp_path):
    agent = make_agent()
    agent.save_pretrained(tmp_path)
    for device in ("nonsense", "cuda:99"):
        with pytest.raises(ConfigError, match=f"cannot run on device '{device}'"):
            InContextAgent.from_pretrained(tmp_path, device=device)


def test_weights_that_overflow_are_named(make_agent):
    agent = make_agent()
    for weight in agent.model.parameters():
        weight.data.fill_(3e38)
    agent.model.eval()
    with pytest.raises(CheckpointError, match="weights of agent 'tiny-mamba' gave an action that is not finite"):
        agent.act(np.ones(8))

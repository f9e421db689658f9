"""A million steps of an agent: memory stays flat, rows stay what fresh agents would be, rounding stays small."""

from copy import deepcopy
from pathlib import Path
from resource import getpagesize

import numpy as np
import pytest
import torch

from icrl_agents import InContextAgent

EXACT_ROWS = 8
"""Rows whose actions are compared with those in float64; it is slower than the rest."""

DRIFT = 1e-4
"""Bound on the difference of any action entry, of a range of 2, to that of the same model in float64, over the whole
life of a row."""

pytestmark = pytest.mark.soak


def resident():
    """Bytes of memory in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()


class Life:
    """Experience of B rows over T steps that looks like the agent's own, made before anything is measured."""

    def __init__(self, agent, rows, steps, seed=0):
        rng, at = np.random.default_rng(seed), agent.model.layout
        mean, std = agent.model.token_mean.numpy(), agent.model.token_std.numpy()
        tokens = rng.normal(size=(steps, rows, at.size)).astype(np.float32) * std + mean
        self.observations = np.ascontiguousarray(tokens[..., at.observation])
        self.rewards = np.ascontiguousarray(tokens[..., at.previous_reward])
        self.done = rng.random((steps, rows)) < 1 / agent.config.episode_steps
        self.forget = rng.random((steps, rows)) < 1 / 700  # after the step
        self.actions = np.zeros((steps, rows, at.action_dim), np.float32)
        self.actions[:] = 1.0  # touched: resident from now on


def live(agent, life):
    """Act through it all; the largest difference to the model in float64, and how resident memory grew."""
    agent.reset(num_envs=life.rewards.shape[1])
    exact, few = deepcopy(agent.model).double(), slice(EXACT_ROWS)
    carry, drift = exact.backbone.initial_carry(min(EXACT_ROWS, agent.num_envs)), 0.0
    low, high = agent.config.action_low, agent.config.action_high
    steps, start = len(life.rewards), 0
    for t in range(steps):
        life.actions[t] = agent.act(life.observations[t])
        with torch.inference_mode():
            prediction, carry = exact.step(torch.from_numpy(agent._state.tokens[few]).double(), carry)
        drift = max(drift, np.abs(np.clip(prediction.mean.numpy(), low, high) - life.actions[t, few]).max())
        agent.observe(life.rewards[t], life.done[t])
        gone = life.forget[t]
        if gone.any():
            agent.forget(gone)
            carry = exact.backbone.forget(carry, torch.from_numpy(gone[few]))
        if t == min(2000, steps // 4):
            start = resident()
    return drift, resident() - start


def assert_rows_equal_fresh_agents(name, life, samples=12, seed=1):
    """A fresh agent that lives what a row lived since it last forgot acts as the row did."""
    rng, fresh = np.random.default_rng(seed), InContextAgent.from_pretrained(name, device="cpu")
    steps, rows = life.rewards.shape
    for row, now in zip(rng.integers(rows, size=samples), rng.integers(steps // 2, steps, size=samples), strict=True):
        forgotten = np.flatnonzero(life.forget[:now, row])
        begin = int(forgotten[-1]) + 1 if len(forgotten) else 0
        fresh.reset()
        for t in range(begin, now):
            action = fresh.act(life.observations[t, row])
            np.testing.assert_allclose(action, life.actions[t, row], atol=5e-5)
            fresh.observe(life.rewards[t, row], life.done[t, row])


@pytest.mark.parametrize(
    ("name", "rows", "steps"),
    [
        ("reacher-goal-mamba", 64, 15_625),  # a million steps of an agent
        ("reacher-goal-mamba", 1, 100_000),
        ("reacher-goal-transformer", 8, 5_000),  # many times its context
    ],
)
def test_a_long_life(name, rows, steps):
    agent = InContextAgent.from_pretrained(name, device="cpu")
    life = Life(agent, rows, steps)
    if rows == 1:
        life.forget[steps // 10 : -1] = False  # most of the life with one memory
    drift, growth = live(agent, life)
    print(f"{name}, {rows} rows, {steps} steps: drift {drift:.1e}, resident memory grew by {growth / 1e6:.1f} MB")
    assert growth < 8e6
    assert drift < DRIFT
    if rows > 1:
        assert_rows_equal_fresh_agents(name, life)

"""A million steps of every environment: nothing grows, nothing is not finite, nothing is complained about."""

import os
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from icrl_agents.envs import env_ids

ROWS, STEPS = 64, 1_000_000 // 64


def resident_bytes() -> int:
    """Memory of this process that is in RAM (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.soak
@pytest.mark.parametrize("env_id", env_ids())
def test_a_million_steps(env_id: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # where MuJoCo would write its warnings
    env = gymnasium.make_vec(env_id, num_envs=ROWS)
    log = tmp_path / "MUJOCO_LOG.TXT"
    log.unlink(missing_ok=True)  # of loading Gymnasium's own XML
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    high = env.single_action_space.high
    settled = episodes = 0
    for step in range(STEPS):
        actions = rng.uniform(-high, high, env.action_space.shape)
        observations, rewards, terminated, truncated, info = env.step(actions)
        assert np.isfinite(observations).all()
        assert np.isfinite(rewards).all()
        assert "diverged" not in info
        episodes += int((terminated | truncated).sum())
        if step == STEPS // 10:
            settled = resident_bytes()
    assert episodes >= STEPS * ROWS // env.unwrapped.horizon - ROWS  # type: ignore[attr-defined]
    assert not log.exists()
    assert resident_bytes() - settled < 2**20

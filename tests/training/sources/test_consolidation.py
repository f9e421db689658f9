"""One policy drawn to many: it does what they do, as far as one policy can."""

import numpy as np
import pytest
import torch

from icrl_agents.envs import task_split
from icrl_agents.errors import ConfigError
from icrl_agents.training.collection import make_rows
from icrl_agents.training.sources.consolidation import ConsolidationConfig, consolidate
from icrl_agents.training.sources.policies import SnapshotPolicies, snapshot_by_task
from icrl_agents.training.sources.ppo import PPOConfig, TaskParallelPPO

ENV_ID = "icrl/ReacherGoal-v0"
TASKS = task_split(ENV_ID).val
VECTORS = np.array([task["goal"] for task in TASKS])
LOW, HIGH = -np.ones(2, np.float32), np.ones(2, np.float32)


def one_policy(seed: int, scale: float) -> dict[str, torch.Tensor]:
    """A random policy that is told the task."""
    snapshot = TaskParallelPPO(PPOConfig(hidden=(16,)), 10, 2, [seed], 1, 1).snapshot()
    return {**snapshot, "weight_1": snapshot["weight_1"] * scale}


def error(one: dict[str, torch.Tensor], wanted: SnapshotPolicies, observations: np.ndarray) -> float:
    own = SnapshotPolicies(snapshot_by_task(one, VECTORS), LOW, HIGH)
    return float(np.square(own.act(observations) - wanted.act(observations)).mean())


def test_it_does_what_the_policies_of_single_tasks_do() -> None:
    """These are of one network, so that one can do all they do."""
    start = one_policy(1, 1.0)
    wanted = SnapshotPolicies(snapshot_by_task(one_policy(2, 50.0), VECTORS), LOW, HIGH)
    env = make_rows(ENV_ID, TASKS, 2)
    told: list[tuple[int, float]] = []
    config = ConsolidationConfig(rounds=60, n_steps=50, learning_rate=1e-2)
    learned = consolidate(config, env, VECTORS, wanted, start, 0, on_round=lambda *what: told.append(what))
    env.reset(seed=9)
    actions = np.random.default_rng(0).uniform(-1, 1, (50, env.num_envs, 2))
    steps = [env.step(action)[0].reshape(len(TASKS), 2, -1) for action in actions]
    observations = np.concatenate(steps, 1).astype(np.float32)
    assert error(learned, wanted, observations) < 0.1 * error(start, wanted, observations)
    assert [number for number, _ in told] == list(range(1, 61))
    assert told[-1][1] < 0.1 * told[0][1]
    for name, tensor in one_policy(1, 1.0).items():  # what it began from stays as it is
        assert torch.equal(start[name], tensor)
    again = consolidate(config, env, VECTORS, wanted, start, 0)
    assert all(torch.equal(again[name], learned[name]) for name in learned)
    other = consolidate(config, env, VECTORS, wanted, start, 1)
    assert not torch.equal(other["weight_0"], learned["weight_0"])


def test_a_rate_that_is_too_high_is_an_error() -> None:
    wanted = SnapshotPolicies(snapshot_by_task(one_policy(2, 50.0), VECTORS), LOW, HIGH)
    config = ConsolidationConfig(rounds=9, learning_rate=1e38)
    with pytest.raises(ConfigError, match="diverged"):
        consolidate(config, make_rows(ENV_ID, TASKS, 1), VECTORS, wanted, one_policy(1, 1.0), 0)

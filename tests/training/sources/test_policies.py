"""Snapshots of squashed policies act as the learners they were taken from."""

import numpy as np
import pytest
import torch

from icrl_agents.errors import DatasetError
from icrl_agents.training.sources.action_bounds import ActionBounds
from icrl_agents.training.sources.policies import SnapshotPolicies, snapshot_by_task, snapshot_of_tasks
from icrl_agents.training.sources.ppo import PPOConfig, TaskParallelPPO
from icrl_agents.training.sources.sac import SACConfig, TaskParallelSAC

LOW, HIGH = np.array([-2, -1], np.float32), np.array([2, 1], np.float32)
OBSERVATIONS = np.random.default_rng(0).normal(scale=20, size=(3, 6, 4)).astype(np.float32)


def learner(inputs: int = 4, learners: int = 3, streams: int = 6) -> TaskParallelSAC:
    made = TaskParallelSAC(SACConfig(learning_starts=0, hidden=(16, 8)), inputs, 2, range(learners), streams)
    with torch.no_grad():
        made.actor.biases[-1][..., 2:] -= 1.0
    return made


def test_a_squashed_policy_acts_as_its_learner() -> None:
    source = learner()
    policies = SnapshotPolicies(source.snapshot(), LOW, HIGH)
    sampled, mean = source.act(OBSERVATIONS)
    expected = ActionBounds(LOW, HIGH).from_unit(mean)
    np.testing.assert_allclose(policies.act(OBSERVATIONS), expected, atol=1e-5)
    assert np.abs(expected[..., 0]).max() > 1  # the first entry goes to 2
    for k in range(3):
        np.testing.assert_allclose(policies.act_as(k, OBSERVATIONS[k]), expected[k], atol=1e-5)
    noise = np.stack([np.random.default_rng([k, 0]).standard_normal((6, 2), np.float32) for k in range(3)])
    np.testing.assert_allclose(policies.act(OBSERVATIONS, noise), ActionBounds(LOW, HIGH).from_unit(sampled), atol=1e-5)
    policies.require_noise()


def test_one_informed_learner_becomes_one_policy_a_task_and_those_of_other_tasks() -> None:
    source = learner(inputs=4 + 2, learners=1, streams=18)
    known, others = (np.random.default_rng(seed).uniform(-1, 1, (3, 2)) for seed in (1, 2))
    snapshot = snapshot_by_task(source.snapshot(), known)
    assert all(len(tensor) == 3 for tensor in snapshot.values())
    arrays = {name: tensor.numpy() for name, tensor in snapshot.items()}
    for tensors, tasks in ((arrays, known), (snapshot_of_tasks(arrays, known, others), others)):
        seen = np.concatenate([OBSERVATIONS, np.repeat(tasks[:, None], 6, 1)], 2, dtype=np.float32)
        mean = source.act(seen.reshape(1, 18, 6))[1].reshape(3, 6, 2)
        actions = SnapshotPolicies(tensors, LOW, HIGH).act(OBSERVATIONS)
        np.testing.assert_allclose(actions, ActionBounds(LOW, HIGH).from_unit(mean), atol=1e-3)


def test_a_clipped_policy_explores_as_its_learner() -> None:
    source = TaskParallelPPO(PPOConfig(hidden=(8,), log_std_init=-1.0), 4, 2, [0, 1, 2], 6, 1)
    tensors = source.snapshot()
    policies = SnapshotPolicies(tensors, LOW, HIGH)
    noise = np.random.default_rng(0).normal(size=(3, 6, 2)).astype(np.float32)
    expected = source.mean_action(torch.from_numpy(OBSERVATIONS)).numpy() + np.exp(-1.0) * noise
    np.testing.assert_allclose(policies.act(OBSERVATIONS, noise), np.clip(expected, LOW, HIGH), atol=1e-5)
    silent = SnapshotPolicies({name: t for name, t in tensors.items() if name != "log_std"}, LOW, HIGH)
    for refused in (silent.require_noise, lambda: silent.act(OBSERVATIONS, noise)):
        with pytest.raises(DatasetError, match="do not tell how widely"):
            refused()


def test_a_format_of_the_future_is_refused() -> None:
    tensors = {**learner().snapshot(), "format": torch.full((3,), 7)}
    with pytest.raises(DatasetError, match=r"format 1 or 2, got \[7\]"):
        SnapshotPolicies(tensors, LOW, HIGH)

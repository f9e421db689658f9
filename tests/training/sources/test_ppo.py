"""Task-parallel PPO: independent learners, right advantages, and learning that works."""

import numpy as np
import pytest
import torch

from icrl_agents.envs import task_split
from icrl_agents.training.collection import evaluate_policies, make_rows
from icrl_agents.training.sources.batched import BatchedMLP, RunningMoments, clip_grad_norms
from icrl_agents.training.sources.policies import SnapshotPolicies
from icrl_agents.training.sources.ppo import PPOConfig, Rollout, TaskParallelPPO
from icrl_agents.training.sources.rollouts import RolloutCollector

ENV_ID = "icrl/ReacherGoal-v0"
STREAMS = 3


def learn(tasks: list[int], iterations: int, config: PPOConfig) -> TaskParallelPPO:
    """Learners of the given training tasks, seeded by the task alone."""
    chosen = [task_split(ENV_ID).train[task] for task in tasks]
    env = make_rows(ENV_ID, chosen, STREAMS)
    learner = TaskParallelPPO(config, 8, 2, [100 + task for task in tasks], STREAMS, iterations)
    observations, _ = env.reset(seed=[1000 * task + s for task in tasks for s in range(STREAMS)])
    collector = RolloutCollector(env, learner, observations)
    for _ in range(iterations):
        learner.update(collector.collect()[0])
    return learner


def test_a_learner_is_the_same_whatever_others_are_beside_it() -> None:
    config = PPOConfig(n_steps=50, hidden=(16, 16))
    together, alone = learn([0, 1, 2], 10, config), learn([1], 10, config)
    for ours, theirs in zip(together.actor.parameters, alone.actor.parameters, strict=True):
        torch.testing.assert_close(ours[1:2], theirs, rtol=1e-3, atol=1e-4)  # batched products round differently
    assert not torch.allclose(together.actor.weights[0][0], together.actor.weights[0][1])


def test_it_learns_to_reach() -> None:
    tasks = [0, 1]
    learner = learn(tasks, 40, PPOConfig())
    bounds = make_rows(ENV_ID, task_split(ENV_ID).train[:1], 1).single_action_space
    policies = SnapshotPolicies(learner.snapshot(), bounds.low, bounds.high)  # type: ignore[attr-defined]
    chosen = [task_split(ENV_ID).train[task] for task in tasks]
    learned = evaluate_policies(policies.act, ENV_ID, chosen, seed=0).mean(1)
    still = evaluate_policies(lambda obs: np.zeros((*obs.shape[:2], 2)), ENV_ID, chosen, seed=0).mean(1)
    assert (learned > still).all()
    assert learned.mean() > still.mean() + 4


def test_advantages_by_hand() -> None:
    """Three steps, the second ends an episode by truncation; gamma = lambda = 0.5, and every value is 2."""
    learner = TaskParallelPPO(PPOConfig(gamma=0.5, gae_lambda=0.5, hidden=(4,)), 1, 1, [0], 1, 1)
    for parameter in learner.critic.parameters:
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        learner.critic.biases[-1].fill_(2.0)
    learner.return_moments.var.fill_(1.0 - 1e-8)  # rewards stay as they are
    zeros = torch.zeros(1, 1, 3, 1)
    flags = torch.tensor([[[False, True, False]]])
    rollout = Rollout(zeros, zeros, torch.tensor([[[1.0, 3.0, 5.0]]]), zeros, torch.zeros_like(flags), flags)
    advantages, returns = learner._advantages(rollout)
    # deltas: r + 0.5 * 2 - 2 = 0, 2, 4; the truncated step bootstraps but passes nothing back beyond itself
    torch.testing.assert_close(advantages, torch.tensor([[0.0 + 0.25 * 2.0, 2.0, 4.0]]))
    torch.testing.assert_close(returns, advantages + 2.0)


def test_state_continues_bit_for_bit() -> None:
    config = PPOConfig(n_steps=50, hidden=(8,))
    whole, half = learn([0], 4, config), learn([0], 2, config)
    resumed = TaskParallelPPO(config, 8, 2, [100], STREAMS, 4)
    resumed.load_state_dict(half.state_dict())
    assert resumed.iteration == 2
    for ours, theirs in zip(resumed.state_dict().values(), half.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert whole.iteration == 4


def test_batched_network_equals_separate_ones() -> None:
    net = BatchedMLP((3, 5, 2), seeds=[7, 8], output_gain=1.0)
    x = torch.randn(2, 4, 3)
    for k in range(2):
        hidden = torch.tanh(x[k] @ net.weights[0][k] + net.biases[0][k])
        torch.testing.assert_close(net(x)[k], hidden @ net.weights[1][k] + net.biases[1][k])


def test_gradients_are_clipped_learner_by_learner() -> None:
    a, b = (torch.zeros(2, 3).requires_grad_() for _ in range(2))
    a.grad, b.grad = torch.tensor([[3.0, 0, 0], [0.1, 0, 0]]), torch.tensor([[4.0, 0, 0], [0, 0, 0]])
    clip_grad_norms([a, b], 1.0)
    torch.testing.assert_close(a.grad, torch.tensor([[0.6, 0, 0], [0.1, 0, 0]]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(b.grad, torch.tensor([[0.8, 0, 0], [0, 0, 0]]), rtol=1e-5, atol=1e-6)


def test_running_moments_are_those_of_all_samples() -> None:
    moments = RunningMoments(2, 3)
    samples = torch.randn(2, 50, 3, dtype=torch.float64) * 3 + 1
    for chunk in samples.split([10, 1, 39], dim=1):
        moments.update(chunk)
    torch.testing.assert_close(moments.mean, samples.mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moments.var, samples.var(1, unbiased=False), rtol=1e-4, atol=1e-4)


def test_one_learner_of_a_snapshot_acts_as_in_the_batch() -> None:
    learner = learn([0, 1], 1, PPOConfig(n_steps=50, hidden=(8,)))
    bounds = np.ones(2, np.float32)
    policies = SnapshotPolicies(learner.snapshot(), -bounds, bounds)
    observations = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
    together = policies.act(observations)
    for k in range(2):
        np.testing.assert_allclose(policies.act_as(k, observations[k]), together[k], atol=1e-6)
    mean = learner.mean_action(torch.from_numpy(observations)).clamp(-1, 1).numpy()
    np.testing.assert_allclose(together, mean, atol=1e-6)
    assert len(policies) == 2


def test_foreign_snapshot_is_refused() -> None:
    with pytest.raises(ValueError, match="tanh network"):
        SnapshotPolicies({"something": np.zeros(3)}, np.zeros(1), np.ones(1))

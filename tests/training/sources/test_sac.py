"""Task-parallel SAC and DroQ: the update is that of the papers, learner by learner, and learners are independent."""

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import SAC
from torch import Tensor

from icrl_agents.envs import task_split
from icrl_agents.errors import ConfigError
from icrl_agents.training.collection import evaluate_policies, make_rows
from icrl_agents.training.sources.off_policy import OffPolicySource
from icrl_agents.training.sources.policies import SnapshotPolicies
from icrl_agents.training.sources.q_networks import BatchedReLU
from icrl_agents.training.sources.replay import Batch
from icrl_agents.training.sources.sac import DroQConfig, SACConfig, TaskParallelSAC
from icrl_agents.training.sources.sb3_droq import DroQ

ENV_ID = "icrl/ReacherGoal-v0"
N = 12
SMALL_SAC = SACConfig(batch_size=N, hidden=(7, 5), learning_rate=1e-3, tau=0.1, initial_temperature=0.3)
SMALL_DROQ = DroQConfig(
    batch_size=N, hidden=(7, 5), learning_rate=1e-3, tau=0.1, dropout=0.3, gradient_steps=2, policy_delay=2
)


def batch(learners: int, seed: int = 0, observation_dim: int = 3, action_dim: int = 2) -> Batch:
    g = torch.Generator().manual_seed(seed)
    observations, following = (torch.randn(learners, N, observation_dim, generator=g) for _ in range(2))
    pairs = torch.cat([observations, torch.rand(learners, N, action_dim, generator=g) * 2 - 1], -1)
    continues = (torch.rand(learners, N, generator=g) < 0.8).float()
    return Batch(pairs, observations, following, torch.randn(learners, N, generator=g), continues)


# ------------------------------------------------------------------ an independent implementation


class OneLearner:
    """SAC and DroQ of learner ``k`` by the papers, in float64, with plain loops."""

    def __init__(self, of: TaskParallelSAC, k: int) -> None:
        def own(networks: BatchedReLU, index: int) -> list[list[Tensor]]:
            groups = (networks.weights, networks.biases, networks.gains, networks.shifts)
            return [[p[index].detach().double().clone().requires_grad_() for p in group] for group in groups]

        self.actor = own(of.actor, k)
        self.critics = [own(of.critics, 2 * k + c) for c in range(2)]
        self.targets = [own(of.targets, 2 * k + c) for c in range(2)]
        self.log_temperature = of.log_temperature[k].detach().double().clone().requires_grad_()

    @staticmethod
    def network(parameters: list[list[Tensor]], x: Tensor, keep: list[Tensor] | None = None) -> Tensor:
        weights, biases, gains, shifts = parameters
        for layer in range(len(weights) - 1):
            x = x @ weights[layer] + biases[layer]
            if keep is not None:
                x = x * keep[layer]
            if gains:
                x = (x - x.mean(1, True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
                x = x * gains[layer] + shifts[layer]
            x = x.clamp(min=0)
        return x @ weights[-1] + biases[-1]

    def sample(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.network(self.actor, observations)
        mean, log_std = outputs[:, :2], outputs[:, 2:].clamp(-20, 2)
        u = mean + log_std.exp() * noise
        normal = torch.distributions.Normal(mean, log_std.exp()).log_prob(u)
        return torch.tanh(u), (normal - (1 - torch.tanh(u) ** 2).log()).sum(1)

    def update(self, of: TaskParallelSAC, k: int, data: Batch, draws: Any) -> None:
        cfg = of.config
        pairs, observations, following, rewards, continues = (
            getattr(data, name)[k].double()
            for name in ("pairs", "observations", "next_observations", "rewards", "continues")
        )
        noise, next_noise = draws.noise[k].double(), draws.next_noise[k].double()

        def keep(use: list[Tensor] | None, c: int) -> list[Tensor] | None:
            return None if use is None else [layer[2 * k + c].double() for layer in use]

        temperature = self.log_temperature.detach().exp()
        with torch.no_grad():
            action, log_prob = self.sample(following, next_noise)
            both = [
                self.network(t, torch.cat([following, action], 1), keep(draws.keep_target, c))[:, 0]
                for c, t in enumerate(self.targets)
            ]
            target = rewards + cfg.gamma * continues * (torch.minimum(*both) - temperature * log_prob)
        loss: Any = sum(
            0.5 * ((self.network(p, pairs, keep(draws.keep_critic, c))[:, 0] - target) ** 2).mean()
            for c, p in enumerate(self.critics)
        )
        adam(loss, [p for critic in self.critics for group in critic for p in group], cfg.learning_rate)
        action, log_prob = self.sample(observations, noise)
        both = [
            self.network(p, torch.cat([observations, action], 1), keep(draws.keep_actor, c))[:, 0]
            for c, p in enumerate(self.critics)
        ]
        value = (both[0] + both[1]) / 2 if cfg.actor_objective == "mean" else torch.minimum(*both)
        adam((temperature * log_prob - value).mean(), [p for group in self.actor for p in group], cfg.learning_rate)
        entropy_loss = -(self.log_temperature * (log_prob.detach() - 2)).mean()  # target entropy -A
        adam(entropy_loss, [self.log_temperature], cfg.learning_rate)
        with torch.no_grad():
            for targets, critic in zip(self.targets, self.critics, strict=True):
                for group, learned in zip(targets, critic, strict=True):
                    for t, p in zip(group, learned, strict=True):
                        t.copy_((1 - cfg.tau) * t + cfg.tau * p)


def adam(loss: Tensor, parameters: list[Tensor], learning_rate: float) -> None:
    """The first step of Adam, in which both moments are the gradient's own."""
    gradients = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= learning_rate * gradient / (gradient.abs() + 1e-8)


@pytest.mark.parametrize("config", [SMALL_SAC, SMALL_DROQ], ids=["SAC", "DroQ"])
def test_an_update_is_that_of_separate_learners(config: SACConfig) -> None:
    learner = TaskParallelSAC(config, 3, 2, [5, 6, 7], 1)
    data, draws = batch(3), learner.draws(True)
    references = [OneLearner(learner, k) for k in range(3)]
    learner.update(data, draws, True)
    for k, reference in enumerate(references):
        reference.update(learner, k, data, draws)
        for networks, index, parameters in (
            (learner.actor, k, reference.actor),
            *((learner.critics, 2 * k + c, reference.critics[c]) for c in range(2)),
            *((learner.targets, 2 * k + c, reference.targets[c]) for c in range(2)),
        ):
            expected = [p for group in parameters for p in group]
            for ours, theirs in zip(networks.parameters, expected, strict=True):
                torch.testing.assert_close(ours[index].double(), theirs, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(learner.log_temperature[k].double(), reference.log_temperature)


# ------------------------------------------------------------------ stable-baselines3 on the same weights and batch


@pytest.mark.parametrize("algorithm", ["sac", "droq"])
def test_an_update_is_that_of_stable_baselines3(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = gymnasium.make(ENV_ID)
    kwargs: Any = {"policy_kwargs": {"net_arch": [16, 16]}, "learning_rate": 1e-3, "seed": 0, "device": "cpu"}
    config = SACConfig(batch_size=N, hidden=(16, 16), learning_rate=1e-3)
    if algorithm == "sac":
        model: SAC = SAC("MlpPolicy", env, **kwargs)
    else:  # what is random in dropout is left out
        kwargs["policy_kwargs"]["dropout"] = 0.0
        model = DroQ("MlpPolicy", env, gradient_steps=1, **kwargs)
        config = DroQConfig(
            batch_size=N, hidden=(16, 16), learning_rate=1e-3, dropout=0.0, gradient_steps=1, policy_delay=1
        )
    learner = TaskParallelSAC(config, 8, 2, [0], 1)
    copy_from_sb3(learner, model)
    before = copy.deepcopy(model.critic_target.state_dict())
    data = batch(1, observation_dim=8)
    sample = SimpleNamespace(
        observations=data.observations[0],
        actions=data.pairs[0, :, 8:],
        next_observations=data.next_observations[0],
        rewards=data.rewards[0, :, None],
        dones=1 - data.continues[0, :, None],
        discounts=None,
    )
    monkeypatch.setattr(model.replay_buffer, "sample", lambda *args, **kwargs: sample)
    model.learn(1)  # sets up its logger
    draws = learner.draws(True)
    # SB3's SAC draws for the actor first, its DroQ for the targets first, as the updates come
    noises = [draws.noise[0], draws.next_noise[0]]
    queue = iter(noises if algorithm == "sac" else noises[::-1])
    monkeypatch.setattr(
        torch.distributions.Normal, "rsample", lambda self, shape=(): self.loc + self.scale * next(queue)
    )
    model.train(1, N)
    learner.update(data, draws, True)
    assert any(not torch.equal(before[name], now) for name, now in model.critic_target.state_dict().items())
    expected = TaskParallelSAC(config, 8, 2, [0], 1)
    copy_from_sb3(expected, model)
    for name in ("actor", "critics", "targets"):
        for ours, theirs in zip(getattr(learner, name).parameters, getattr(expected, name).parameters, strict=True):
            # Adam's first step is the gradient's sign times the learning rate; few gradients are near 0
            off = (ours - theirs).abs() > 2e-5
            assert off.float().mean() < 0.02
    torch.testing.assert_close(learner.log_temperature, expected.log_temperature)


@torch.no_grad()
def copy_from_sb3(learner: TaskParallelSAC, model: SAC) -> None:
    linear, norm = torch.nn.Linear, torch.nn.LayerNorm

    def put(networks: BatchedReLU, index: int, layers: list[Any]) -> None:
        for kind, first, second in (
            (linear, networks.weights, networks.biases),
            (norm, networks.gains, networks.shifts),
        ):
            own = [layer for layer in layers if isinstance(layer, kind)]
            for a, b, layer in zip(first, second, own, strict=True):
                a[index] = layer.weight.T if kind is linear else layer.weight
                b[index] = layer.bias

    head = torch.nn.Linear(16, 4)
    head.weight.copy_(torch.cat([model.actor.mu.weight, model.actor.log_std.weight]))  # type: ignore[union-attr]
    head.bias.copy_(torch.cat([model.actor.mu.bias, model.actor.log_std.bias]))  # type: ignore[union-attr]
    put(learner.actor, 0, [*model.actor.latent_pi, head])
    for c in range(2):
        put(learner.critics, c, list(model.critic.q_networks[c]))  # type: ignore[call-overload]
        put(learner.targets, c, list(model.critic_target.q_networks[c]))  # type: ignore[call-overload]
    assert model.log_ent_coef is not None
    learner.log_temperature[0] = model.log_ent_coef


# ------------------------------------------------------------------ learners


def learn(tasks: list[int], steps: int, config: SACConfig) -> OffPolicySource:
    """Learners of the given training tasks, seeded by the task alone."""
    chosen = [task_split(ENV_ID).train[task] for task in tasks]
    env = make_rows(ENV_ID, chosen, 2)
    observations, _ = env.reset(seed=[1000 * task + s for task in tasks for s in range(2)])
    vectors = np.stack([env.definition.task_vector(task) for task in chosen])
    source = OffPolicySource(config, env, observations, vectors, [100 + task for task in tasks], steps)
    source.advance(steps)
    return source


@pytest.mark.parametrize(
    "config",
    [
        SACConfig(learning_starts=40, batch_size=16, hidden=(16, 16)),
        DroQConfig(learning_starts=40, batch_size=16, hidden=(16, 16), gradient_steps=2, policy_delay=2),
    ],
    ids=["SAC", "DroQ"],
)
def test_a_learner_is_the_same_whatever_others_are_beside_it(config: SACConfig) -> None:
    together, alone = (learn(tasks, 30, config).learner for tasks in ([0, 1, 2], [1]))  # 10 steps of updates
    for ours, theirs in zip(together.actor.parameters, alone.actor.parameters, strict=True):
        torch.testing.assert_close(ours[1:2], theirs, rtol=1e-3, atol=1e-4)  # batched products round differently
    for ours, theirs in zip(together.targets.parameters, alone.targets.parameters, strict=True):
        torch.testing.assert_close(ours[2:4], theirs, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(together.actor.weights[0][0], together.actor.weights[0][1])


def test_it_learns_to_reach() -> None:
    config = SACConfig(
        learning_starts=200,
        batch_size=64,
        gradient_steps=2,
        learning_rate=1e-3,
        gamma=0.9,
        initial_temperature=0.1,
        hidden=(32, 32),
    )
    source = learn([0, 1], 1_000, config)
    bounds: Any = source.env.single_action_space
    policies = SnapshotPolicies(source.snapshot(), bounds.low, bounds.high)
    chosen = [task_split(ENV_ID).train[task] for task in (0, 1)]
    learned = evaluate_policies(policies.act, ENV_ID, chosen, seed=0).mean(1)
    still = evaluate_policies(lambda obs: np.zeros((*obs.shape[:2], 2)), ENV_ID, chosen, seed=0).mean(1)
    assert learned.mean() > still.mean() + 3


def test_actions_are_random_at_first_and_then_the_policys() -> None:
    learner = TaskParallelSAC(SACConfig(learning_starts=4, hidden=(4,)), 3, 2, [0, 1], 2)
    with torch.no_grad():
        learner.actor.biases[-1][..., :2] = 50.0  # the policy would do 1
    observations = np.zeros((2, 2, 3), np.float32)
    action, mean = learner.act(observations)
    assert (np.abs(action) < 1).all()
    np.testing.assert_array_equal(mean, np.ones((2, 2, 2)))
    learner.steps = 2
    np.testing.assert_array_equal(learner.act(observations)[0], np.ones((2, 2, 2)))


# ------------------------------------------------------------------ DroQ


def test_dropout_is_as_frequent_as_asked_for_and_drawn_anew_for_every_use() -> None:
    learner = TaskParallelSAC(DroQConfig(batch_size=64, hidden=(33, 65), dropout=0.1), 3, 2, [0, 1], 1)
    draws = learner.draws(True)
    uses = (draws.keep_target, draws.keep_critic, draws.keep_actor)
    for use in uses:
        assert use is not None
        for keep, width in zip(use, (33, 65), strict=True):
            assert keep.shape == (4, 64, width)
            assert keep.unique().tolist() == pytest.approx([0, 1 / 0.9], rel=1e-4)
            assert 0.08 < (keep == 0).float().mean() < 0.12
    masks = [use[1][index] for use in uses if use is not None for index in range(4)]
    assert all(not torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])
    assert learner.draws(False).keep_actor is None


def test_dropout_acts_in_targets_critics_and_the_actors_objective() -> None:
    learner = TaskParallelSAC(SMALL_DROQ, 3, 2, [0], 1)
    data, draws, temperature = batch(1), learner.draws(True), torch.ones(1, 1)
    losses = {
        learner.critic_loss(data, draws, temperature).item(),
        *(
            learner.critic_loss(data, replace(draws, **{name: None}), temperature).item()
            for name in ("keep_target", "keep_critic")
        ),
    }
    assert len(losses) == 3
    actor = [learner.actor_loss(data, d, temperature)[0].item() for d in (draws, replace(draws, keep_actor=None))]
    assert actor[0] != actor[1]


@pytest.mark.parametrize(("objective", "value"), [("mean", 2.0), ("min", 1.0)])
def test_the_actor_follows_the_mean_or_the_minimum_of_the_critics(objective: Any, value: float) -> None:
    learner = TaskParallelSAC(SACConfig(batch_size=N, hidden=(4,), actor_objective=objective), 3, 2, [0], 1)
    with torch.no_grad():
        learner.critics.weights[-1].zero_()
        learner.critics.biases[-1][:, 0, 0] = torch.tensor([1.0, 3.0])
    loss, _ = learner.actor_loss(batch(1), learner.draws(True), torch.zeros(1, 1))
    assert loss.item() == pytest.approx(-value)


def test_the_actor_is_updated_once_after_all_critic_updates_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[bool] = []
    monkeypatch.setattr(TaskParallelSAC, "update", lambda self, data, draws, with_actor: done.append(with_actor))
    learn([0], 3, DroQConfig(learning_starts=2, batch_size=4, hidden=(4,), gradient_steps=3, policy_delay=3))
    assert done == [False, False, True] * 2  # the first step of two transitions only starts
    with pytest.raises(ConfigError, match="no multiple of policy_delay 2"):
        SACConfig(gradient_steps=3, policy_delay=2)
    with pytest.raises(ConfigError, match="probability below 1"):
        SACConfig(dropout=1.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("config", [SMALL_SAC, SMALL_DROQ], ids=["SAC", "DroQ"])
def test_cuda_equals_cpu(config: SACConfig) -> None:
    cpu, cuda = (TaskParallelSAC(config, 3, 2, [5, 6], 1, device) for device in ("cpu", "cuda"))
    data = batch(2)
    on_cuda = Batch(**{name: tensor.cuda() for name, tensor in vars(data).items()})
    cpu.update(data, cpu.draws(True), True)
    cuda.update(on_cuda, cuda.draws(True), True)
    for ours, theirs in zip(cuda.critics.parameters, cpu.critics.parameters, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-4)

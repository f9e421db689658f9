"""Task-parallel PPO: K independent learners as one batched torch program (Schulman et al. 2017, arXiv 1707.06347).

Every learner has its own weights, data, normalisation and random stream; only the arithmetic is shared. A learner that
serves several environment rows sees no task: with all goals in the rows of one learner it becomes the *blind* policy.

    K learners, S streams (environment rows) a learner, T steps a roll-out, A action entries
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from icrl_agents.errors import ConfigError
from icrl_agents.training.sources.batched import BatchedMLP, RunningMoments, clip_grad_norms


@dataclass(frozen=True)
class PPOConfig:
    """Hyper-parameters of one PPO learner; names as in stable-baselines3.

    Attributes:
        n_steps: steps per stream and roll-out.
        n_epochs: passes over a roll-out.
        n_minibatches: gradient steps a pass.
        learning_rate: of Adam at the start; decays linearly to 0 by the end where ``anneal`` is set.
        anneal: whether the learning rate decays.
        gamma: discount.
        gae_lambda: of generalised advantage estimation.
        clip_range: of the probability ratio.
        ent_coef: weight of the entropy bonus.
        vf_coef: weight of the value loss.
        max_grad_norm: per learner.
        log_std_init: logarithm of the initial exploration noise.
        hidden: widths of the hidden layers of policy and value network.
    """

    n_steps: int = 100
    n_epochs: int = 6
    n_minibatches: int = 4
    learning_rate: float = 1e-3
    anneal: bool = True
    gamma: float = 0.95
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    log_std_init: float = -0.7
    hidden: tuple[int, ...] = (64, 64)


@dataclass(frozen=True)
class Rollout:
    """What T steps of K learners on S streams each gave; every array has the leading axes ``[K, S, T]``.

    Attributes:
        observations: ``[K, S, T, N_o]`` acted on.
        actions: ``[K, S, T, A]`` as sampled, before clipping to the action space.
        rewards: ``[K, S, T]``.
        next_observations: ``[K, S, T, N_o]`` that followed, before any autoreset.
        terminated: ``[K, S, T]`` bool.
        done: ``[K, S, T]`` bool, terminated or truncated.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    terminated: Tensor
    done: Tensor


class TaskParallelPPO:
    """K independent PPO learners.

    Args:
        config: hyper-parameters.
        observation_dim: N_o.
        action_dim: A.
        seeds: one a learner; all its randomness derives from it, so it is the same whatever others are beside it.
        streams: S, environment rows a learner.
        iterations: roll-outs in the whole run, for the learning-rate schedule.
    """

    def __init__(
        self,
        config: PPOConfig,
        observation_dim: int,
        action_dim: int,
        seeds: Sequence[int],
        streams: int,
        iterations: int,
    ) -> None:
        self.config = config
        self.learners, self.streams = len(seeds), streams
        self.action_dim = action_dim
        self.iterations = iterations
        self.iteration = 0
        self._seeds = list(seeds)
        self.actor = BatchedMLP((observation_dim, *config.hidden, action_dim), seeds, 0.01)
        self.critic = BatchedMLP(
            (observation_dim, *config.hidden, 1),
            [int(np.random.SeedSequence([seed, 1]).generate_state(1)[0]) for seed in seeds],
            1.0,
        )
        self.log_std = torch.full((self.learners, 1, action_dim), config.log_std_init).requires_grad_()
        self.observation_moments = RunningMoments(self.learners, observation_dim)
        self.return_moments = RunningMoments(self.learners, 1)
        self._discounted = torch.zeros(self.learners, streams)
        self._parameters = [*self.actor.parameters, *self.critic.parameters, self.log_std]
        self._optimizer = torch.optim.Adam(self._parameters, lr=config.learning_rate, eps=1e-5, fused=True)

    def specialised(
        self, config: PPOConfig, task_vectors: np.ndarray, seeds: Sequence[int], iterations: int
    ) -> "TaskParallelPPO":
        """K learners, one a task, that go on from what this one learner of all tasks has learned.

        They agree where a task has several solutions, as independent learners do not, and each improves on its own.

        Args:
            config: of their learning; the networks have to be as wide as here. The noise begins anew: with the little
                that this learner has left, a task it is poor at stays so.
            task_vectors: ``[K, k]``, what this learner saw of the tasks; what they add becomes part of a bias.
            seeds: one a new learner.
            iterations: roll-outs that follow.

        Raises:
            ConfigError: other widths, or this is not one learner.
        """
        tasks, size = task_vectors.shape
        if self.learners != 1 or config.hidden != self.config.hidden:
            raise ConfigError(
                f"one learner of all tasks is specialised, into networks as wide: got {self.learners} of "
                f"{self.config.hidden} for {config.hidden}"
            )
        inputs = self.actor.weights[0].shape[1] - size
        new = TaskParallelPPO(config, inputs, self.action_dim, seeds, self.streams // tasks, iterations)
        mean, std = self.observation_moments.mean.float()[0], self.observation_moments.std.float()[0]
        seen = ((torch.from_numpy(task_vectors).float() - mean[inputs:]) / std[inputs:]).clamp(-10, 10)  # [K, k]
        with torch.no_grad():
            for ours, theirs in ((self.actor, new.actor), (self.critic, new.critic)):
                for old, parameter in zip(ours.parameters, theirs.parameters, strict=True):
                    parameter.copy_(old[:, :inputs] if old is ours.weights[0] else old)
                theirs.biases[0].add_((seen @ ours.weights[0][0, inputs:])[:, None])
        for name in ("observation_moments", "return_moments"):
            ours, theirs = getattr(self, name), getattr(new, name)
            kept = slice(0, theirs.mean.shape[1])
            theirs.mean, theirs.var = (x[:, kept].expand(tasks, -1).clone() for x in (ours.mean, ours.var))
            theirs.count = ours.count / tasks
        new._discounted = self._discounted.view(tasks, -1).clone()
        return new

    # Acting

    def exploration_noise(self) -> Tensor:
        """Standard normal noise ``[T, K, S, A]`` of this iteration's roll-out, from each learner's own stream."""
        shape = (self.config.n_steps, self.streams, self.action_dim)
        noise = [self._rng(k, 0).standard_normal(shape, np.float32) for k in range(self.learners)]
        return torch.from_numpy(np.stack(noise, 1))

    @torch.no_grad()
    def mean_action(self, observations: Tensor) -> Tensor:
        """The policies' mean actions ``[K, S, A]`` on observations ``[K, S, N_o]``."""
        return self.actor(self._normalized(observations))

    @torch.no_grad()
    def std(self) -> Tensor:
        """Exploration noise ``[K, 1, A]``."""
        return self.log_std.exp()

    # Learning

    def update(self, rollout: Rollout) -> None:
        """One iteration of PPO on a roll-out."""
        cfg = self.config
        self._scale_rewards(rollout)
        with torch.no_grad():
            advantages, returns = self._advantages(rollout)
            observations = self._normalized(rollout.observations.flatten(1, 2))  # [K, S T, N_o]
            actions = rollout.actions.flatten(1, 2)
            old_log_prob = self._log_prob(observations, actions)
        lr = cfg.learning_rate * (1 - self.iteration / self.iterations if cfg.anneal else 1.0)
        self._optimizer.param_groups[0]["lr"] = lr
        samples = observations.shape[1]
        size = samples // cfg.n_minibatches
        learner = torch.arange(self.learners)[:, None]
        permuting = [self._rng(k, 1) for k in range(self.learners)]
        for _ in range(cfg.n_epochs):
            order = torch.from_numpy(np.stack([rng.permutation(samples) for rng in permuting]))
            for start in range(0, size * cfg.n_minibatches, size):
                at = (learner, order[:, start : start + size])
                loss = self._loss(observations[at], actions[at], old_log_prob[at], advantages[at], returns[at])
                self._optimizer.zero_grad()
                loss.backward()
                clip_grad_norms(self._parameters, cfg.max_grad_norm)
                self._optimizer.step()
        self.observation_moments.update(rollout.observations.flatten(1, 2))
        self.iteration += 1

    def _loss(self, observations: Tensor, actions: Tensor, old: Tensor, advantages: Tensor, returns: Tensor) -> Tensor:
        """Summed over learners, so that each one's gradient is its own."""
        cfg = self.config
        advantages = (advantages - advantages.mean(1, True)) / (advantages.std(1, keepdim=True) + 1e-8)
        ratio = (self._log_prob(observations, actions) - old).exp()  # [K, N]
        clipped = ratio.clamp(1 - cfg.clip_range, 1 + cfg.clip_range)
        policy_loss = -torch.min(ratio * advantages, clipped * advantages).mean(1)
        value_loss = (self.critic(observations).squeeze(-1) - returns).square().mean(1)
        entropy = self.log_std.sum((1, 2))
        return (policy_loss + cfg.vf_coef * value_loss - cfg.ent_coef * entropy).sum()

    def _log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """``[K, N]`` log-density of actions ``[K, N, A]``."""
        z = (actions - self.actor(observations)) / self.log_std.exp()
        return -(0.5 * z.square() + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def _advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Generalised advantages and returns ``[K, S T]``; truncated episodes are bootstrapped, terminated ones not."""
        cfg = self.config
        reward_std = self.return_moments.std.float()  # [K, 1]
        rewards = rollout.rewards / reward_std[:, :, None]
        values, next_values = (
            self.critic(self._normalized(x.flatten(1, 2))).view(rewards.shape)
            for x in (rollout.observations, rollout.next_observations)
        )
        deltas = rewards + cfg.gamma * next_values * ~rollout.terminated - values
        advantages = torch.empty_like(deltas)
        running = torch.zeros_like(deltas[..., 0])
        for t in reversed(range(deltas.shape[-1])):
            running = deltas[..., t] + cfg.gamma * cfg.gae_lambda * running * ~rollout.done[..., t]
            advantages[..., t] = running
        return advantages.flatten(1), (advantages + values).flatten(1)

    def _scale_rewards(self, rollout: Rollout) -> None:
        """Update the spread of discounted returns that rewards are divided by."""
        sums = torch.empty_like(rollout.rewards)
        for t in range(sums.shape[-1]):
            self._discounted = self._discounted * self.config.gamma + rollout.rewards[..., t]
            sums[..., t] = self._discounted
            self._discounted = self._discounted * ~rollout.done[..., t]
        self.return_moments.update(sums.flatten(1)[..., None])

    def _normalized(self, observations: Tensor) -> Tensor:
        """Observations ``[K, N, N_o]`` by each learner's running moments, clipped to ±10."""
        moments = self.observation_moments
        mean, std = moments.mean.float()[:, None], moments.std.float()[:, None]
        return ((observations - mean) / std).clamp(-10, 10)

    def _rng(self, learner: int, purpose: int) -> np.random.Generator:
        """A stream that depends on nothing but the learner's seed, the iteration and the purpose: no state to save."""
        return np.random.default_rng([self._seeds[learner], self.iteration, purpose])

    # Saving

    def snapshot(self) -> dict[str, Tensor]:
        """The policies alone, as :class:`~icrl_agents.training.sources.policies.SnapshotPolicies` reads them."""
        moments = self.observation_moments
        tensors = {"observation_mean": moments.mean.float(), "observation_std": moments.std.float()}
        for layer, (weight, bias) in enumerate(zip(self.actor.weights, self.actor.biases, strict=True)):
            tensors[f"weight_{layer}"], tensors[f"bias_{layer}"] = weight.detach(), bias.detach()
        return {**tensors, "log_std": self.log_std.detach()}

    def knowledge(self) -> dict[str, Tensor]:
        """What was learned: policies, value functions and moments, which other learners can begin from."""
        state = {f"parameter_{i}": p.detach() for i, p in enumerate(self._parameters)}
        for name, moments in (("observation", self.observation_moments), ("return", self.return_moments)):
            state.update({f"{name}_{part}": getattr(moments, part) for part in ("mean", "var", "count")})
        return state

    def state_dict(self) -> dict[str, Tensor]:
        """Everything the next iterations depend on."""
        state = self.knowledge()
        for i, p in enumerate(self._parameters):
            for name, value in self._optimizer.state.get(p, {}).items():
                state[f"adam_{i}_{name}"] = value
        return {**state, "discounted": self._discounted, "iteration": torch.tensor(self.iteration)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what :meth:`state_dict` gave; begin from what :meth:`knowledge` gave."""
        for i, p in enumerate(self._parameters):
            p.copy_(state[f"parameter_{i}"])
            if f"adam_{i}_step" in state:
                self._optimizer.state[p] = {
                    name: state[f"adam_{i}_{name}"].clone() for name in ("step", "exp_avg", "exp_avg_sq")
                }
        for name, moments in (("observation", self.observation_moments), ("return", self.return_moments)):
            for part in ("mean", "var", "count"):
                setattr(moments, part, state[f"{name}_{part}"].clone())
        if "iteration" in state:
            self._discounted = state["discounted"].clone()
            self.iteration = int(state["iteration"])

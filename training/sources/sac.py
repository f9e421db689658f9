"""Task-parallel SAC and DroQ: K independent off-policy learners as one batched torch program.

SAC: Haarnoja et al. 2018, arXiv 1812.05905, with the order of updates of stable-baselines3. DroQ: Hiraoka et al. 2022,
arXiv 2110.02034: critics with dropout and LayerNorm, dropout also in their targets, many critic updates for each of the
actor, which follows the mean of the critics. Every learner has its own weights, replay and random stream; only the
arithmetic is shared. The two critics of all learners are one network with 2K members, learner k's at 2k and 2k + 1.

    K learners, S streams (environment rows) a learner, N samples a batch, A action entries, H units of a hidden layer
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from icrl_agents.config import check_literals
from icrl_agents.errors import ConfigError
from icrl_agents.training.sources.batched import mlp_forward
from icrl_agents.training.sources.policies import SQUASHED_FORMAT, gaussian_parameters
from icrl_agents.training.sources.q_networks import BatchedReLU
from icrl_agents.training.sources.replay import Batch, ReplayBuffer

CRITICS = 2


@dataclass(frozen=True)
class SACConfig:
    """Hyper-parameters of one SAC learner; names as in stable-baselines3.

    Attributes:
        buffer_size: transitions that the replay holds.
        learning_starts: environment steps, over all streams, of uniformly random actions before the first update.
        batch_size: N.
        gradient_steps: critic updates per step of all streams.
        policy_delay: one update of actor and temperature after every so many of the critics.
        learning_rate: of Adam.
        gamma: discount.
        tau: share of the critics that each update mixes into their targets.
        initial_temperature: weight of the entropy at the start; it is learned.
        target_entropy: that it is learned for; None is minus the number of action entries.
        hidden: widths of the hidden layers of actor and critics.
        dropout: probability to drop a hidden unit of critics and their targets, in steps of 1/65,536.
        layer_norm: whether critics normalise their hidden layers.
        actor_objective: which of the critics the actor follows, their ``"min"`` or their ``"mean"``.
    """

    buffer_size: int = 1_000_000
    learning_starts: int = 400
    batch_size: int = 256
    gradient_steps: int = 1
    policy_delay: int = 1
    learning_rate: float = 3e-4
    gamma: float = 0.99
    tau: float = 0.005
    initial_temperature: float = 1.0
    target_entropy: float | None = None
    hidden: tuple[int, ...] = (256, 256)
    dropout: float = 0.0
    layer_norm: bool = False
    actor_objective: Literal["min", "mean"] = "min"

    def __post_init__(self) -> None:
        check_literals(self)
        if self.gradient_steps < 1 or self.policy_delay < 1 or self.gradient_steps % self.policy_delay:
            raise ConfigError(
                f"gradient_steps {self.gradient_steps} is no multiple of policy_delay {self.policy_delay}: "
                "the actor would not be updated equally often after every step"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is a probability below 1, got {self.dropout}")

    @property
    def algorithm(self) -> str:
        """What the field calls it."""
        return "DroQ" if self.dropout or self.layer_norm else "SAC"


@dataclass(frozen=True)
class DroQConfig(SACConfig):
    """Hyper-parameters of one DroQ learner: those of SAC with the paper's values where it differs."""

    gradient_steps: int = 20
    policy_delay: int = 20
    dropout: float = 0.01
    layer_norm: bool = True
    actor_objective: Literal["min", "mean"] = "mean"


@dataclass(frozen=True)
class Draws:
    """The randomness of one update; dropout as :class:`BatchedReLU` takes it, None without dropout.

    Attributes:
        noise: ``[K, N, A]`` standard normal, of the actions that the actor is improved with.
        next_noise: ``[K, N, A]``, of the next actions.
        keep_target: per hidden layer ``[2K, N, H]``, in the targets.
        keep_critic: in the critics.
        keep_actor: in the critics that the actor follows; None also where the actor is not updated.
    """

    noise: Tensor
    next_noise: Tensor
    keep_target: list[Tensor] | None = None
    keep_critic: list[Tensor] | None = None
    keep_actor: list[Tensor] | None = None


class TaskParallelSAC:
    """K independent SAC learners.

    Each step: :meth:`act`, give the transitions to the replay, :meth:`learn`.

    Args:
        config: hyper-parameters.
        observation_dim: N_o.
        action_dim: A.
        seeds: one a learner; all its randomness derives from it, so it is the same whatever others are beside it.
        streams: S, environment rows a learner.
        device: that networks and arithmetic live on; random numbers are drawn on the CPU and the same on all devices.
    """

    def __init__(
        self,
        config: SACConfig,
        observation_dim: int,
        action_dim: int,
        seeds: Sequence[int],
        streams: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.learners, self.streams, self.action_dim = len(seeds), streams, action_dim
        self.device = torch.device(device)
        self.steps = 0
        """Steps of all streams that were learned from or, at the start, only waited through."""
        self.target_entropy = -float(action_dim) if config.target_entropy is None else config.target_entropy
        self._seeds = list(seeds)
        self.actor = BatchedReLU((observation_dim, *config.hidden, 2 * action_dim), seeds, device=device)
        self.critics = BatchedReLU(
            (observation_dim + action_dim, *config.hidden, 1),
            [int(s) for seed in seeds for s in np.random.SeedSequence([seed, 1]).generate_state(CRITICS)],
            layer_norm=config.layer_norm,
            device=device,
        )
        self.targets = self.critics.copied()
        self.log_temperature = torch.full(
            (self.learners, 1), math.log(config.initial_temperature), device=device
        ).requires_grad_()
        self._optimizers = [
            torch.optim.Adam(parameters, lr=config.learning_rate, fused=True)
            for parameters in (self.actor.parameters, self.critics.parameters, [self.log_temperature])
        ]
        self._rngs = self._step_rngs()

    # Acting

    @torch.no_grad()
    def act(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What to do and the deterministic action in its place, both in the unit box ``[K, S, A]``.

        Args:
            observations: ``[K, S, N_o]``.
        """
        self._rngs = self._step_rngs()
        shape = (self.streams, self.action_dim)
        mean, log_std = self._distribution(torch.from_numpy(observations).to(self.device))
        deterministic = torch.tanh(mean).cpu().numpy()
        if self.steps * self.streams < self.config.learning_starts:
            return np.stack([rng.uniform(-1, 1, shape).astype(np.float32) for rng in self._rngs]), deterministic
        noise = np.stack([rng.standard_normal(shape, np.float32) for rng in self._rngs])
        return torch.tanh(mean + log_std.exp() * torch.from_numpy(noise).to(self.device)).cpu().numpy(), deterministic

    # Learning

    def learn(self, replay: ReplayBuffer) -> None:
        """The updates that follow a step whose transitions the replay has taken in."""
        cfg = self.config
        self.steps += 1
        if self.steps * self.streams <= cfg.learning_starts:
            return
        for update in range(1, cfg.gradient_steps + 1):
            with_actor = update % cfg.policy_delay == 0
            indices = np.stack([rng.integers(len(replay), size=cfg.batch_size) for rng in self._rngs])
            batch = replay.gather(torch.from_numpy(indices).to(self.device))
            self.update(batch, self.draws(with_actor), with_actor)

    def update(self, batch: Batch, draws: Draws, with_actor: bool) -> None:
        """One update of the critics and their targets and, where asked for, of actor and temperature before the latter.

        Losses are summed over learners, so that each one's gradient is its own.
        """
        cfg = self.config
        temperature = self.log_temperature.detach().exp()  # [K, 1]
        actor_optimizer, critic_optimizer, temperature_optimizer = self._optimizers
        critic_loss = self.critic_loss(batch, draws, temperature)
        _minimise(critic_loss, critic_optimizer)
        if with_actor:
            actor_loss, log_prob = self.actor_loss(batch, draws, temperature)
            _minimise(actor_loss, actor_optimizer)
            surplus = log_prob.detach().mean(1, keepdim=True) + self.target_entropy  # [K, 1]
            _minimise(-(self.log_temperature * surplus).sum(), temperature_optimizer)
        with torch.no_grad():
            torch._foreach_lerp_(self.targets.parameters, self.critics.parameters, cfg.tau)

    def critic_loss(self, batch: Batch, draws: Draws, temperature: Tensor) -> Tensor:
        """Half the squared error of both critics, summed over learners; ``temperature`` ``[K, 1]``."""
        with torch.no_grad():
            actions, log_prob = self._sample(batch.next_observations, draws.next_noise)
            following = torch.cat([batch.next_observations, actions], -1)
            value = self._values(self.targets, following, draws.keep_target).amin(1) - temperature * log_prob
            target = batch.rewards + self.config.gamma * batch.continues * value  # [K, N]
        values = self._values(self.critics, batch.pairs, draws.keep_critic)
        return 0.5 * (values - target[:, None]).square().mean(2).sum()

    def actor_loss(self, batch: Batch, draws: Draws, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """The actor's loss, summed over learners, and the log-density ``[K, N]`` of its actions."""
        actions, log_prob = self._sample(batch.observations, draws.noise)
        pairs = torch.cat([batch.observations, actions], -1)
        values = self._values(self.critics.detached(), pairs, draws.keep_actor)
        value = values.mean(1) if self.config.actor_objective == "mean" else torch.minimum(*values.unbind(1))
        return (temperature * log_prob - value).mean(1).sum(), log_prob

    def _values(self, critics: BatchedReLU, pairs: Tensor, keep: list[Tensor] | None) -> Tensor:
        """``[K, 2, N]`` of pairs ``[K, N, N_o + A]``."""
        twice = pairs[:, None].expand(-1, CRITICS, -1, -1).flatten(0, 1)
        return critics(twice, keep).view(self.learners, CRITICS, -1)

    def _sample(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions ``[K, N, A]`` in the unit box and their log-density ``[K, N]``, from standard normal noise.

        log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), which loses nothing where tanh is near 1.
        """
        mean, log_std = self._distribution(observations)
        u = mean + log_std.exp() * noise
        normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        squash = 2 * (math.log(2) - u - functional.softplus(-2 * u))
        return torch.tanh(u), (normal - squash).sum(-1)

    def _distribution(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation ``[K, N, A]`` before squashing, on observations ``[K, N, N_o]``."""
        return gaussian_parameters(mlp_forward(self.actor.weights, self.actor.biases, observations, "relu"))

    # Randomness

    def _step_rngs(self) -> list[np.random.Generator]:
        """Streams that depend on nothing but a learner's seed and the step: no state to save."""
        return [np.random.default_rng([seed, self.steps]) for seed in self._seeds]

    def draws(self, with_actor: bool) -> Draws:
        """The randomness of the step's next update."""
        cfg = self.config
        normal = np.empty((self.learners, 2, cfg.batch_size, self.action_dim), np.float32)
        for own, rng in zip(normal, self._rngs, strict=True):
            rng.standard_normal(dtype=np.float32, out=own)
        noise, next_noise = torch.from_numpy(normal).to(self.device).unbind(1)
        if not cfg.dropout:
            return Draws(noise, next_noise)
        return Draws(noise, next_noise, self._keep(), self._keep(), self._keep() if with_actor else None)

    def _keep(self) -> list[Tensor]:
        """Dropout of one evaluation of all critics, per hidden layer ``[2K, N, H]``."""
        cfg = self.config
        dropped = round(cfg.dropout * 2**16)
        keep = []
        for width in cfg.hidden:
            shape = (CRITICS, cfg.batch_size, width)
            words = math.ceil(math.prod(shape) / 4)  # of 64 bits, four units each
            raw = np.stack([rng.bit_generator.random_raw(words) for rng in self._rngs]).view(np.int16)
            bits = torch.from_numpy(raw[:, : math.prod(shape)]).to(self.device)
            scaled = (bits >= dropped - 2**15).float().mul_(1 / (1 - dropped / 2**16))
            keep.append(scaled.view(self.learners * CRITICS, *shape[1:]))
        return keep

    # Saving

    def snapshot(self) -> dict[str, Tensor]:
        """The policies alone, as :class:`~icrl_agents.training.sources.policies.SnapshotPolicies` reads them."""
        inputs = self.actor.weights[0].shape[1]
        tensors = {
            "format": torch.full((self.learners,), SQUASHED_FORMAT),
            "observation_mean": torch.zeros(self.learners, inputs),
            "observation_std": torch.ones(self.learners, inputs),
        }
        for layer, (weight, bias) in enumerate(zip(self.actor.weights, self.actor.biases, strict=True)):
            tensors[f"weight_{layer}"], tensors[f"bias_{layer}"] = weight.detach().cpu(), bias.detach().cpu()
        return tensors

    def state_dict(self) -> dict[str, Tensor]:
        """Everything the next steps depend on, the replay excepted."""
        state = {f"target_{i}": tensor for i, tensor in enumerate(self.targets.parameters)}
        for i, (parameter, optimizer) in enumerate(self._learned()):
            state[f"parameter_{i}"] = parameter.detach()
            for name, value in optimizer.state.get(parameter, {}).items():
                state[f"adam_{i}_{name}"] = value
        return {**state, "steps": torch.tensor(self.steps)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what :meth:`state_dict` gave."""
        for i, target in enumerate(self.targets.parameters):
            target.copy_(state[f"target_{i}"])
        for i, (parameter, optimizer) in enumerate(self._learned()):
            parameter.copy_(state[f"parameter_{i}"])
            if f"adam_{i}_step" in state:
                names = ("step", "exp_avg", "exp_avg_sq")
                optimizer.state[parameter] = {
                    name: state[f"adam_{i}_{name}"].to(parameter.device, copy=True) for name in names
                }
        self.steps = int(state["steps"])

    def _learned(self) -> list[tuple[Tensor, torch.optim.Adam]]:
        """Every learned tensor and what optimises it."""
        return [(p, optimizer) for optimizer in self._optimizers for p in optimizer.param_groups[0]["params"]]


def _minimise(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

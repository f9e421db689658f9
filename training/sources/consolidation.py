"""Many policies, one a task, drawn into one that is told the task: local policies into a global one.

Divide-and-Conquer Reinforcement Learning, arXiv 1711.09874. Learners of single tasks become better than one learner of
all, and each in its own way; the one policy keeps what they share, and does tasks between theirs. It acts itself, as in
DAgger (arXiv 1011.0686), among the policies that it learns from, and those say what they would do.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from icrl_agents.envs import MetaVectorEnv
from icrl_agents.errors import ConfigError
from icrl_agents.training.sources.batched import mlp_forward
from icrl_agents.training.sources.policies import SnapshotPolicies
from icrl_agents.training.sources.rollouts import require_finite, told


@dataclass(frozen=True)
class ConsolidationConfig:
    """How one policy is drawn to many.

    Attributes:
        rounds: of acting and learning; 0 does without.
        n_steps: of each row in a round.
        n_epochs: over what a round gave.
        n_minibatches: of each epoch.
        learning_rate: of Adam; it falls linearly to 0.
        teacher_fraction: rows in which the policies of single tasks act.
        noise: on all actions, in units of half the action space.

    Raises:
        ConfigError: a value that cannot be.
    """

    rounds: int = 0
    n_steps: int = 100
    n_epochs: int = 2
    n_minibatches: int = 10
    learning_rate: float = 1e-3
    teacher_fraction: float = 0.25
    noise: float = 0.05

    def __post_init__(self) -> None:
        least = {"rounds": 0, "n_steps": 1, "n_epochs": 1, "n_minibatches": 1}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ConfigError(f"{name} is at least {lowest}, got {getattr(self, name)}")
        if not (self.learning_rate > 0 and self.noise >= 0 and 0 <= self.teacher_fraction <= 1):
            raise ConfigError(
                "learning_rate is above 0, noise at least 0 and teacher_fraction from 0 to 1, got "
                f"{self.learning_rate}, {self.noise} and {self.teacher_fraction}"
            )


def consolidate(
    config: ConsolidationConfig,
    env: MetaVectorEnv,
    task_vectors: np.ndarray,
    policies: SnapshotPolicies,
    start: Mapping[str, Tensor],
    seed: int,
    *,
    privileged: bool = False,
    on_round: Callable[[int, float], None] | None = None,
) -> dict[str, Tensor]:
    """Draw a policy that is told the task to the policies of single tasks.

    Args:
        config: how.
        env: rows, equally many adjacent ones of each task; is reset.
        task_vectors: ``[K, k]``.
        policies: one a task.
        start: snapshot of one policy (first axis 1) with inputs ``[observation, task]``, to begin from.
        seed: of initial states, noise and minibatches.
        privileged: whether all of them see what the environment calls privileged.
        on_round: called with the number of rounds done and the mean squared error of the last one's actions.

    Returns:
        Its snapshot, first axis 1; ``log_std`` is that of ``start``.

    Raises:
        ConfigError: learning diverged.
    """
    space = env.single_action_space
    low, high = space.low, space.high  # type: ignore[attr-defined]
    rows_per_task = env.num_envs // len(task_vectors)
    owner = np.repeat(np.arange(len(task_vectors)), rows_per_task)
    tasks = task_vectors[owner]
    layers = sum(name.startswith("weight_") for name in start)
    weights, biases = (
        [start[f"{kind}_{i}"].clone().requires_grad_() for i in range(layers)] for kind in ("weight", "bias")
    )
    mean, std = (start[f"observation_{name}"].float()[:, None] for name in ("mean", "std"))
    adam = torch.optim.Adam([*weights, *biases], lr=config.learning_rate, fused=True)

    def normalized(seen: np.ndarray) -> Tensor:
        return ((torch.from_numpy(seen)[None] - mean) / std).clamp(-10, 10)

    observations, _ = env.reset(seed=seed)
    by_policies = np.arange(env.num_envs) < config.teacher_fraction * env.num_envs
    for number in range(config.rounds):
        adam.param_groups[0]["lr"] = config.learning_rate * (1 - number / config.rounds)
        rng = np.random.default_rng(np.random.SeedSequence([seed, number]))
        acting = rng.permutation(by_policies)[:, None]
        seen, labels = [], []
        for t in range(config.n_steps):
            at = told(observations, env.privileged) if privileged else observations.astype(np.float32)
            seen.append(told(at, tasks))
            labels.append(policies.act_each(owner, at))
            with torch.no_grad():
                own = mlp_forward(weights, biases, normalized(seen[-1])).numpy()[0]
            noise = config.noise * (high - low) / 2 * rng.standard_normal(own.shape, np.float32)
            actions = np.clip(np.where(acting, labels[-1], own) + noise, low, high)
            require_finite(actions, env, t)
            observations = env.step(actions)[0]
        inputs, targets = normalized(np.concatenate(seen)), torch.from_numpy(np.concatenate(labels))[None]
        errors = []
        for _ in range(config.n_epochs):
            order = torch.from_numpy(rng.permutation(inputs.shape[1]))
            for batch in order.chunk(config.n_minibatches):
                loss = (mlp_forward(weights, biases, inputs[:, batch]) - targets[:, batch]).square().mean()
                adam.zero_grad()
                loss.backward()
                adam.step()
                errors.append(loss.item())
        if on_round is not None:
            on_round(number + 1, float(np.mean(errors)))
    if not all(torch.isfinite(parameter).all() for parameter in (*weights, *biases)):
        raise ConfigError("consolidation diverged in its last round; try a lower learning_rate")
    learned = {f"weight_{i}": weight.detach() for i, weight in enumerate(weights)}
    learned |= {f"bias_{i}": bias.detach() for i, bias in enumerate(biases)}
    return {**start, **learned}

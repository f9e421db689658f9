"""DroQ (Hiraoka et al. 2022, arXiv 2110.02034) on stable-baselines3's SAC, which has none of its own."""

from functools import partial
from typing import Any, ClassVar

import torch
from stable_baselines3 import SAC
from stable_baselines3.common.policies import BasePolicy, ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor, nn
from torch.nn import functional


class DroQCritic(ContinuousCritic):
    """Critics with dropout and LayerNorm after every hidden product.

    Args:
        dropout: probability to drop a hidden unit.
        args: as of SB3's critic.
        kwargs: as of SB3's critic.
    """

    def __init__(self, *args: Any, dropout: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        plain: Any = self.q_networks[0]
        linear = [layer for layer in plain if isinstance(layer, nn.Linear)]
        widths = [layer.out_features for layer in linear[:-1]]
        after: list[Any] = [partial(_dropout, dropout), nn.LayerNorm]
        for index in range(self.n_critics):
            layers = create_mlp(linear[0].in_features, 1, widths, post_linear_modules=after)
            self.q_networks[index] = nn.Sequential(*layers)
            self.add_module(f"qf{index}", self.q_networks[index])


def _dropout(probability: float, width: int) -> nn.Dropout:
    """``create_mlp`` gives every module the width of its layer, which dropout does not need."""
    return nn.Dropout(probability)


class DroQPolicy(SACPolicy):
    """SAC's policy with DroQ's critics; their targets drop units too, always.

    Args:
        dropout: probability to drop a hidden unit.
        args: as of SB3's policy.
        kwargs: as of SB3's policy.
    """

    def __init__(self, *args: Any, dropout: float = 0.01, **kwargs: Any) -> None:
        self._dropout = dropout
        super().__init__(*args, **kwargs)

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.critic_target.set_training_mode(True)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> DroQCritic:
        """A pair of critics."""
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return DroQCritic(**kwargs, dropout=self._dropout).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "dropout": self._dropout}


class DroQ(SAC):
    """SAC with DroQ's critics, more critic updates, and an actor that follows their mean.

    Args:
        policy: ``"MlpPolicy"``.
        env: as of SAC.
        gradient_steps: critic updates after each step of all environments.
        policy_delay: one update of actor and temperature after every so many critic updates; None: one after all
            updates of a step.
        kwargs: as of SAC.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": DroQPolicy}

    def __init__(
        self, policy: Any, env: Any, gradient_steps: int = 20, policy_delay: int | None = None, **kwargs: Any
    ) -> None:
        self.policy_delay = policy_delay
        super().__init__(policy, env, gradient_steps=gradient_steps, **kwargs)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """So many updates of the critics and, last of all, one of actor and temperature."""
        self.policy.set_training_mode(True)
        assert self.ent_coef_optimizer is not None, "DroQ learns its temperature"
        assert self.log_ent_coef is not None
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer, self.ent_coef_optimizer])
        delay = self.policy_delay or gradient_steps
        for update in range(1, gradient_steps + 1):
            assert self.replay_buffer is not None
            data = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            temperature = self.log_ent_coef.detach().exp()
            _minimise(self.critic_loss(data, temperature), self.critic.optimizer)
            polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
            if update % delay == 0:
                loss, log_prob = self.actor_loss(data, temperature)
                _minimise(loss, self.actor.optimizer)
                surplus = log_prob.detach() + float(self.target_entropy)
                _minimise(-(self.log_ent_coef * surplus).mean(), self.ent_coef_optimizer)
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def critic_loss(self, data: Any, temperature: Tensor) -> Tensor:
        """Half the squared error, summed over critics; the targets take the minimum over theirs."""
        with torch.no_grad():
            actions, log_prob = self.actor.action_log_prob(data.next_observations)
            values = torch.cat(self.critic_target(data.next_observations, actions), 1)  # [N, 2]
            value = values.amin(1, keepdim=True) - temperature * log_prob[:, None]
            target = data.rewards + (1 - data.dones) * self.gamma * value  # [N, 1]
        values = torch.cat(self.critic(data.observations, data.actions), 1)
        return 0.5 * functional.mse_loss(values, target.expand_as(values), reduction="none").mean(0).sum()

    def actor_loss(self, data: Any, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """The loss against the mean of the critics, and the log-density ``[N]`` of the actions."""
        actions, log_prob = self.actor.action_log_prob(data.observations)
        value = torch.cat(self.critic(data.observations, actions), 1).mean(1)
        return (temperature * log_prob - value).mean(), log_prob


def _minimise(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

"""From tokens of experience to actions: embed, backbone, head.

B batch, L steps, T token entries, D model width, A action entries
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from icrl_agents.backbones import Carry, make_backbone
from icrl_agents.config import ModelConfig
from icrl_agents.tokens import TokenLayout

BackboneStep = Callable[[Tensor, Carry], tuple[Tensor, Carry]]
"""What :meth:`icrl_agents.backbones.Backbone.step` does."""

LOG_STD_RANGE = (-5.0, 1.0)
"""Range of the Gaussian head's log standard deviation."""


TOKEN_RANGE = 1e3
"""Normalised entries are clamped to this many deviations: a wild observation must not overflow the memory."""


@dataclass(frozen=True)
class ActionPrediction:
    """What the model would do.

    Attributes:
        mean: ``[..., A]`` in the units of the environment's action.
        log_std: ``[..., A]``; None where actions are not drawn.
        components: ``[..., K, A]``, the actions of a mixture head, of which ``mean`` is the most probable; else None.
        logits: ``[..., K]``, how probable each is; None where there are no components.
    """

    mean: Tensor
    log_std: Tensor | None
    components: Tensor | None = None
    logits: Tensor | None = None


class InContextModel(nn.Module):
    """A causal model from experience to actions.

    Buffers ``token_mean`` and ``token_std`` ``[T]`` normalise raw tokens; they are saved with the weights.

    Args:
        config: shape of the model.
    """

    token_mean: Tensor
    token_std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.layout = TokenLayout(config.observation_dim, config.action_dim)
        self.backbone = make_backbone(config.backbone, config.backbone_options)
        d_model = self.backbone.d_model
        self.register_buffer("token_mean", torch.zeros(self.layout.size))
        self.register_buffer("token_std", torch.ones(self.layout.size))
        if config.tokenization == "element":
            self.embed_action = nn.Linear(config.action_dim, d_model)
            self.embed_reward = nn.Linear(1, d_model)
            self.embed_observation = nn.Linear(config.observation_dim + 1, d_model)
        else:
            self.embed = nn.Linear(self.layout.size, d_model)
        outputs = {
            "deterministic": config.action_dim,
            "gaussian": 2 * config.action_dim,
            "mixture": config.head_components * (config.action_dim + 1),
        }[config.head]
        self.head = _head(d_model, config.head_hidden, config.head_layers, outputs)

    def normalize(self, tokens: Tensor) -> Tensor:
        """Raw tokens ``[..., T]`` to zero mean and unit variance, rewards hidden where the config says so."""
        normalized = ((tokens - self.token_mean) / self.token_std).clamp(-TOKEN_RANGE, TOKEN_RANGE)
        if self.config.mask_rewards:
            normalized = normalized.clone()
            normalized[..., self.layout.previous_reward] = 0.0
        return normalized

    def forward(
        self,
        tokens: Tensor,
        carry: Carry | None = None,
        forget_before: Tensor | None = None,
        *,
        input_noise: Tensor | None = None,
    ) -> tuple[ActionPrediction, Carry]:
        """Decide at every step of whole sequences.

        Args:
            tokens: raw tokens ``[B, L, T]``.
            carry: where an earlier call stopped.
            forget_before: ``[B, L]`` bool, True where a new task starts.
            input_noise: ``[B, L, T]`` added to the normalized tokens (training).

        Returns:
            Predictions ``[B, L, A]`` and the carry after the last step.
        """
        x = self.normalize(tokens)
        if input_noise is not None:
            x = x + input_noise
        embedded = self._embed(x)  # [B, L, tokens a step, D]
        per_step = embedded.shape[-2]
        if forget_before is not None and per_step > 1:
            spread = torch.zeros(*forget_before.shape, per_step, dtype=torch.bool, device=tokens.device)
            spread[..., 0] = forget_before
            forget_before = spread.flatten(-2)
        y, carry = self.backbone(embedded.flatten(1, 2), carry, forget_before)
        return self._decide(y[:, per_step - 1 :: per_step]), carry

    def step(
        self, tokens: Tensor, carry: Carry, *, backbone_step: BackboneStep | None = None
    ) -> tuple[ActionPrediction, Carry]:
        """Decide once for every row.

        Args:
            tokens: raw tokens ``[B, T]``.
            carry: the rows' carry; consumed.
            backbone_step: runs instead of the backbone's own, e.g. with rounded weights.

        Returns:
            Predictions ``[B, A]`` and the new carry.
        """
        step = self.backbone.step if backbone_step is None else backbone_step
        for embedded in self._embed(self.normalize(tokens)).unbind(-2):
            y, carry = step(embedded, carry)
        return self._decide(y), carry

    def _embed(self, x: Tensor) -> Tensor:
        """Normalised tokens ``[..., T]`` to what the backbone reads, ``[..., tokens a step, D]``."""
        if self.config.tokenization == "transition":
            return self.embed(x).unsqueeze(-2)
        at = self.layout
        observation = torch.cat([x[..., at.observation], x[..., at.episode_start :]], -1)
        reward = x[..., at.previous_reward : at.previous_reward + 1]
        parts = [
            self.embed_action(x[..., at.previous_action]),
            self.embed_reward(reward),
            self.embed_observation(observation),
        ]
        return torch.stack(parts, -2)

    def _decide(self, y: Tensor) -> ActionPrediction:
        out = self.head(y)
        if self.config.head == "deterministic":
            return ActionPrediction(out, None)
        if self.config.head == "mixture":
            k = self.config.head_components
            components, logits = out[..., :-k].unflatten(-1, (k, -1)), out[..., -k:]
            chosen = logits.argmax(-1)[..., None, None].expand(*logits.shape[:-1], 1, components.shape[-1])
            return ActionPrediction(components.gather(-2, chosen).squeeze(-2), None, components, logits)
        mean, log_std = out.chunk(2, -1)
        return ActionPrediction(mean, log_std.clamp(*LOG_STD_RANGE))


def _head(d_model: int, hidden: int, layers: int, outputs: int) -> nn.Module:
    if not hidden:
        return nn.Linear(d_model, outputs)
    widths = [d_model, *[hidden] * layers]
    inner = [part for i, o in pairwise(widths) for part in (nn.Linear(i, o), nn.SiLU())]
    return nn.Sequential(*inner, nn.Linear(hidden, outputs))

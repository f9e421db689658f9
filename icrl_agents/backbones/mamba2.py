"""Mamba-2: a stack of state space dual (SSD) blocks (Dao and Gu, arXiv 2405.21060).

    here            the paper
    B               batch
    L               sequence length                (section 2.1, "T")
    D, d_model      model width                    (section 7.2, "D")
    E               inner width, expand * D
    H               heads, E / P                   (section 7.1, "H")
    P, head_dim     channels a head                (section 7.1, "P")
    N, d_state      states a channel               (section 2.1, "N")
    K, d_conv       width of the causal convolution
    Q               steps in a chunk               (section 6, "Q")
    dt              Delta, the step size, one a head
    A, B, C         state matrix, one number a head; input and output matrices, shared by all heads
    log_decay       dt A, the logarithm of the paper's scalar A_t
    segment         how many tasks began inside the chunk, up to and including a step
    D (of a block)  skip connection, one number a head
    taps            the K - 1 inputs the convolution remembers

Parameter names and shapes inside a block are those of ``mamba_ssm.modules.mamba2.Mamba2`` with one group: weights
move both ways.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icrl_agents.backbones.base import Backbone
from icrl_agents.backbones.step_sizes import check_step_sizes, initial_step_biases
from icrl_agents.errors import ConfigError
from icrl_agents.kernels import causal_conv, conv_step

A_RANGE = (1.0, 16.0)
"""-A at initialisation is uniform in this range."""
CHUNK = 32
"""Steps that meet each other in one matrix product: Q."""


@dataclass(frozen=True)
class Mamba2Config:
    """Shape of a :class:`Mamba2`.

    Attributes:
        d_model: width of inputs and outputs.
        n_layers: blocks.
        d_state: states a channel.
        d_conv: inputs that the convolution sees.
        expand: inner width over ``d_model``.
        head_dim: channels that share a step size and a decay; divides the inner width.
        dt_min: smallest step size at initialisation, see :mod:`icrl_agents.backbones.step_sizes`.
        dt_max: largest.
    """

    d_model: int = 128
    n_layers: int = 4
    d_state: int = 64
    d_conv: int = 4
    expand: int = 2
    head_dim: int = 32
    dt_min: float = 1e-3
    dt_max: float = 1e-1

    def __post_init__(self) -> None:
        check_step_sizes("mamba2", self.dt_min, self.dt_max)
        for name in ("d_model", "n_layers", "d_state", "d_conv", "expand", "head_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"mamba2 options: {name} must be at least 1, got {getattr(self, name)}")
        if self.d_inner % self.head_dim:
            raise ConfigError(
                f"mamba2 options: head_dim {self.head_dim} does not divide expand * d_model = {self.d_inner}"
            )

    @property
    def d_inner(self) -> int:
        """E, channels inside a block."""
        return self.expand * self.d_model

    @property
    def n_heads(self) -> int:
        """H."""
        return self.d_inner // self.head_dim


class BlockCarry(NamedTuple):
    """What one block remembers.

    Attributes:
        taps: its last inputs to the convolution ``[B, K - 1, E + 2 N]``, oldest first.
        state: ``[B, N, E]``, the channels of a head side by side.
    """

    taps: Tensor
    state: Tensor


class SSDBlock(nn.Module):
    """One state space dual block (the paper's figure 6, right: the parallel block)."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        inner, states, heads = config.d_inner, config.d_state, config.n_heads
        self.head_dim = config.head_dim
        self.into = [inner, inner + 2 * states, heads]  # z; x, B and C; dt
        self.split = [inner, states, states]
        self.in_proj = nn.Linear(config.d_model, sum(self.into), bias=False)
        self.conv1d = nn.Conv1d(self.into[1], self.into[1], config.d_conv, groups=self.into[1])
        self.dt_bias = nn.Parameter(torch.empty(heads))  # [H]
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(*A_RANGE).log())  # [H]
        self.D = nn.Parameter(torch.ones(heads))  # [H]
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out_proj = nn.Linear(inner, config.d_model, bias=False)
        self._initialise(config)

    @torch.no_grad()
    def _initialise(self, config: Mamba2Config) -> None:
        self.dt_bias.copy_(initial_step_biases(config.n_heads, config.dt_min, config.dt_max))
        self.out_proj.weight.div_(math.sqrt(config.n_layers))  # the residual stream's variance stays O(1)

    def initial_carry(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> BlockCarry:
        """An empty memory for ``batch_size`` rows."""
        inner, states, _ = self.split
        taps = self.conv1d.kernel_size[0] - 1
        return BlockCarry(
            torch.zeros(batch_size, taps, self.into[1], device=device, dtype=dtype),
            torch.zeros(batch_size, states, inner, device=device, dtype=dtype),
        )

    def forward(self, x: Tensor, carry: BlockCarry, forget_before: Tensor | None) -> tuple[Tensor, BlockCarry]:
        """``x`` ``[B, L, D]`` to the block's output ``[B, L, D]``."""
        z, xBC, dt = (F.linear(x, weight) for weight in self.in_proj.weight.split(self.into))  # no result needs a copy
        xBC, taps = causal_conv(xBC, self.conv1d.weight.squeeze(1), self.conv1d.bias, carry.taps, forget_before)
        x, B, C = xBC.split(self.split, -1)  # [B, L, E], [B, L, N], [B, L, N]
        dt = F.softplus(dt + self.dt_bias)  # [B, L, H]
        log_decay = -dt * self.A_log.exp()  # [B, L, H]
        y, state = ssd(self._per_head(x, dt), log_decay, B, C, carry.state, forget_before)  # [B, L, E], [B, N, E]
        y = y + self._per_head(x, self.D)
        return self.out_proj(self.norm(y * F.silu(z))), BlockCarry(taps, state)

    def step(self, x: Tensor, carry: BlockCarry) -> tuple[Tensor, BlockCarry]:
        """``x`` ``[B, D]`` to the block's output ``[B, D]``: h = exp(dt A) h + dt B x, y = C h + D x."""
        z, xBC, dt = self.in_proj(x).split(self.into, -1)  # [B, E], [B, E + 2 N], [B, H]
        xBC, taps = conv_step(xBC, self.conv1d.weight.squeeze(1), self.conv1d.bias, carry.taps)
        x, B, C = xBC.split(self.split, -1)  # [B, E], [B, N], [B, N]
        dt = F.softplus(dt + self.dt_bias)  # [B, H]
        decay = torch.exp(-dt * self.A_log.exp()).repeat_interleave(self.head_dim, -1)  # [B, E]
        write = self._per_head(x, dt).unsqueeze(1)  # [B, 1, E]
        state = torch.addcmul(carry.state * decay.unsqueeze(1), B.unsqueeze(2), write)  # [B, N, E]
        y = torch.bmm(C.unsqueeze(1), state).squeeze(1) + self._per_head(x, self.D)  # [B, E]
        return self.out_proj(self.norm(y * F.silu(z))), BlockCarry(taps, state)

    def _per_head(self, x: Tensor, factor: Tensor) -> Tensor:
        """``x`` ``[..., E]`` times one ``factor`` ``[..., H]`` a head."""
        return (x.unflatten(-1, (-1, self.head_dim)) * factor.unsqueeze(-1)).flatten(-2)


def ssd(
    x: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor,
    forget_before: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    r"""The state space dual map, chunk by chunk (section 6; listing 1), in O(L Q).

    .. math::
        h_t = e^{a_t} h_{t-1} + B_t x_t, \qquad y_t = C_t h_t

    Args:
        x: inputs times their step sizes ``[B, L, E]``, the channels of a head side by side.
        log_decay: a, not positive ``[B, L, H]``.
        B: input matrices ``[B, L, N]``.
        C: output matrices ``[B, L, N]``.
        initial_state: ``[B, N, E]``; not changed.
        forget_before: ``[B, L]`` bool; where True the state is zero before that step.
        chunk: Q.

    Returns:
        Outputs ``[B, L, E]`` and the state after the last step ``[B, N, E]``.
    """
    batch, length, inner = x.shape
    heads = log_decay.shape[2]
    if not length or not batch:
        return x, initial_state
    size = min(chunk, length)
    lacking = -length % size  # steps that write nothing and decay nothing
    x, log_decay, B, C = (F.pad(t, (0, 0, 0, lacking)).unflatten(1, (-1, size)) for t in (x, log_decay, B, C))
    decay = chunk_decays(log_decay, _segments(forget_before, lacking, size))
    x_heads = x.unflatten(-1, (heads, -1)).transpose(2, 3)  # [B, chunks, H, Q, P]

    # 1. What the steps of a chunk read from each other: attention with decay for softmax.
    scores = (C @ B.transpose(2, 3)).unsqueeze(2) * decay.between  # [B, chunks, H, Q, Q]
    inside = (scores @ x_heads).transpose(2, 3)  # [B, chunks, Q, H, P]

    # 2. What each chunk adds to the state, and how much of the state survives it.
    kept = (x.unflatten(-1, (heads, -1)) * decay.to_end.unsqueeze(-1)).flatten(-2)  # [B, chunks, Q, E]
    added = B.transpose(2, 3) @ kept  # [B, chunks, N, E]
    survives = decay.from_start[:, :, -1].repeat_interleave(inner // heads, -1).unsqueeze(2)  # [B, chunks, 1, E]

    # 3. The state before each chunk: the recurrence, one step a chunk.
    state, before = initial_state, []
    for now, new in zip(survives.unbind(1), added.unbind(1), strict=True):
        before.append(state)
        state = torch.addcmul(new, now, state)  # [B, N, E]

    # 4. What the steps read from before their chunk.
    read = (C @ torch.stack(before, 1)).unflatten(-1, (heads, -1))  # [B, chunks, Q, H, P]
    y = torch.addcmul(inside, read, decay.from_start.unsqueeze(-1))  # [B, chunks, Q, H, P]
    return y.flatten(3).flatten(1, 2)[:, :length], state


class Decays(NamedTuple):
    """How much of what was written survives; zero where a task began in between.

    Attributes:
        between: from one step of a chunk to another, the later first ``[B, chunks, H, Q, Q]``.
        from_start: from before the chunk to a step ``[B, chunks, Q, H]``.
        to_end: from a step to the chunk's end ``[B, chunks, Q, H]``.
    """

    between: Tensor
    from_start: Tensor
    to_end: Tensor


def chunk_decays(log_decay: Tensor, segments: Tensor | None) -> Decays:
    """Products of decays inside chunks, as sums of ``log_decay`` ``[B, chunks, Q, H]`` (the paper's segsum).

    Args:
        log_decay: of each step.
        segments: ``[B, chunks, Q]``; None where no task begins.
    """
    size, dtype = log_decay.shape[2], log_decay.dtype
    # One strong decay makes every later sum large: in float32 their small differences would be lost.
    total = log_decay.double().cumsum(2)  # [B, chunks, Q, H]
    steps = total.transpose(2, 3)  # [B, chunks, H, Q]
    between = (steps.unsqueeze(4) - steps.unsqueeze(3)).to(dtype)  # [B, chunks, H, Q, Q]
    hidden = torch.ones(size, size, dtype=torch.bool, device=total.device).triu(1)  # [Q, Q], later steps
    from_start, to_end = total.to(dtype), (total[:, :, -1:] - total).to(dtype)  # [B, chunks, Q, H] each
    if segments is not None:
        hidden = (hidden | (segments.unsqueeze(3) != segments.unsqueeze(2))).unsqueeze(2)  # [B, chunks, 1, Q, Q]
        from_start = from_start.masked_fill((segments > 0).unsqueeze(3), -math.inf)
        to_end = to_end.masked_fill((segments != segments[:, :, -1:]).unsqueeze(3), -math.inf)
    return Decays(between.masked_fill(hidden, -math.inf).exp(), from_start.exp(), to_end.exp())


def _segments(forget_before: Tensor | None, lacking: int, size: int) -> Tensor | None:
    if forget_before is None:
        return None
    return F.pad(forget_before, (0, lacking)).unflatten(1, (-1, size)).cumsum(2)  # [B, chunks, Q]


class Layer(nn.Module):
    """A block on the residual stream, normalised before."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.d_model, eps=1e-5)
        self.mixer = SSDBlock(config)


class Mamba2(Backbone):
    """Residual SSD blocks, a norm before each and one at the end. Constant time and memory a step.

    Args:
        config: its shape.
    """

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self.config = config
        self.d_model = config.d_model
        layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.layers = cast(Sequence[Layer], layers)  # ModuleList's own type forgets what it holds
        self.norm_f = nn.RMSNorm(config.d_model, eps=1e-5)

    def initial_carry(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> tuple[BlockCarry, ...]:
        weight = self.norm_f.weight
        where = weight.device if device is None else torch.device(device)
        return tuple(layer.mixer.initial_carry(batch_size, where, dtype or weight.dtype) for layer in self.layers)

    def forward(
        self, x: Tensor, carry: tuple[BlockCarry, ...] | None = None, forget_before: Tensor | None = None
    ) -> tuple[Tensor, tuple[BlockCarry, ...]]:
        if carry is None:
            carry = self.initial_carry(x.shape[0], device=x.device, dtype=x.dtype)
        after = []
        for layer, block_carry in zip(self.layers, carry, strict=True):
            y, block_carry = layer.mixer(layer.norm(x), block_carry, forget_before)  # [B, L, D]
            x = x + y  # [B, L, D]
            after.append(block_carry)
        return self.norm_f(x), tuple(after)

    def step(self, x: Tensor, carry: tuple[BlockCarry, ...]) -> tuple[Tensor, tuple[BlockCarry, ...]]:
        after = []
        for layer, block_carry in zip(self.layers, carry, strict=True):
            y, block_carry = layer.mixer.step(layer.norm(x), block_carry)  # [B, D]
            x = x + y  # [B, D]
            after.append(block_carry)
        return self.norm_f(x), tuple(after)

    def forget(self, carry: tuple[BlockCarry, ...], mask: Tensor) -> tuple[BlockCarry, ...]:
        gone = mask[:, None, None]
        return tuple(BlockCarry(taps.masked_fill(gone, 0.0), state.masked_fill(gone, 0.0)) for taps, state in carry)

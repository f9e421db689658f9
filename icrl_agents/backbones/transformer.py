"""A pre-norm decoder with banded causal attention, the model of Algorithm Distillation (arXiv 2210.14215).

    B  batch            D   d_model, model width              W  context_length, width of the band
    L  length           H   n_heads                           Q  queries attended at once
    F  d_ff             Dh  D / H, width of a head            S  keys those queries may see

Every step attends to itself and the W - 1 steps before it of its own task: in training, in prefill and step by
step. ``step`` keeps the keys and values of the last W steps in a ring, position p at slot p mod W, so nothing is
encoded twice or moved. Rotary positions are arXiv 2104.09864, section 3.4.2.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icrl_agents.backbones.base import Backbone, clone_carry
from icrl_agents.errors import ConfigError, ContextOverrunError

ROTARY_BASE = 10_000.0
BLOCK = 128
"""Queries attended at once where the band is narrower than the sequence."""


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a :class:`Transformer`.

    Attributes:
        d_model: width of inputs and outputs.
        n_layers: layers.
        n_heads: attention heads; divides ``d_model``.
        d_ff: width of the feed-forward layer.
        context_length: steps that attention sees, the present one included.
        position: ``"rotary"``, relative and unbounded; or ``"absolute"``, learned, from the task's start.
        max_positions: how many absolute positions there are.
    """

    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    d_ff: int = 512
    context_length: int = 1000
    position: Literal["rotary", "absolute"] = "rotary"
    max_positions: int = 4096

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "n_heads", "d_ff", "context_length", "max_positions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"transformer options: {name} must be at least 1, got {getattr(self, name)}")
        if self.d_model % self.n_heads:
            raise ConfigError(f"transformer options: n_heads {self.n_heads} does not divide d_model {self.d_model}")
        if self.position == "rotary" and (self.d_model // self.n_heads) % 2:
            raise ConfigError("transformer options: rotary positions need heads of even width")


class TransformerCarry(NamedTuple):
    """What the layers remember.

    Attributes:
        positions: steps since each row's task began ``[B]``, int64.
        keys: one ring a layer ``[B, H, W, Dh]``; only slots below ``positions`` hold anything.
        values: likewise.
    """

    positions: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class Band(NamedTuple):
    """Which keys each block of queries sees. The key sequence is the remembered steps, then the new ones.

    Attributes:
        chunks: sizes of the pieces that the key sequence is cut into.
        queries: sizes of the blocks of queries.
        spans: for each block of queries, the first piece of keys it needs and the one after the last.
        masks: for each block ``[Q, S]`` or ``[B, 1, Q, S]``, True where seen; None is plain causal attention.
    """

    chunks: list[int]
    queries: list[int]
    spans: list[tuple[int, int]]
    masks: Sequence[Tensor | None]


class Turn(NamedTuple):
    """Rotary positions, the same for all layers: cosine and sine of the angles, ``[B or 1, L, 1, 1, Dh / 2]``."""

    cos: Tensor
    sin: Tensor


class Layer(nn.Module):
    """Banded self-attention and a feed-forward network, each normalised before, on the residual stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d_model, scale = config.d_model, (2 * config.n_layers) ** -0.5
        self.n_heads = config.n_heads
        self.attention_norm = nn.RMSNorm(d_model, eps=1e-5)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.attention_out = nn.Linear(d_model, d_model, bias=False)
        self.feed_forward_norm = nn.RMSNorm(d_model, eps=1e-5)
        self.up = nn.Linear(d_model, config.d_ff)
        self.down = nn.Linear(config.d_ff, d_model)
        with torch.no_grad():  # the residual stream's variance stays O(1)
            self.attention_out.weight.mul_(scale)
            self.down.weight.mul_(scale)

    def project(self, x: Tensor, turn: Turn | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[B, H, L, Dh]`` of ``x`` ``[B, L, D]``, the first two turned by ``turn``."""
        batch, length, _ = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.n_heads, -1)  # [B, L, 3, H, Dh]
        if turn is None:
            q, k, v = qkv.unbind(2)  # [B, L, H, Dh] each
        else:
            qk, v = qkv.split((2, 1), 2)  # not by index: the gradients of that fill qkv with zeros twice
            (q, k), v = rotate(qk, turn).unbind(2), v.squeeze(2)  # [B, L, H, Dh] each
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The residual stream ``[B, L, D]`` after this layer, given what attention read ``[B, H, L, Dh]``."""
        x = x + self.attention_out(attended.transpose(1, 2).flatten(2))  # [B, L, D]
        return x + self.down(F.gelu(self.up(self.feed_forward_norm(x))))  # [B, L, D]


class Transformer(Backbone):
    """Layers of banded causal attention.

    Args:
        config: its shape.
    """

    frequencies: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.d_model = config.d_model
        layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.layers = cast(Sequence[Layer], layers)  # ModuleList's own type forgets what it holds
        self.norm_f = nn.RMSNorm(config.d_model, eps=1e-5)
        head = config.d_model // config.n_heads
        if config.position == "absolute":
            self.position_embedding = nn.Parameter(0.02 * torch.randn(config.max_positions, config.d_model))
        else:
            self.register_buffer("frequencies", _rotary_frequencies(head), persistent=False)  # [Dh / 2]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.config.position == "rotary":  # moved, but never rounded with the weights
            exact = _rotary_frequencies(self.d_model // self.config.n_heads)
            self.frequencies = exact.to(self.frequencies.device)
        return self

    def initial_carry(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> TransformerCarry:
        weight = self.norm_f.weight
        where, kind = weight.device if device is None else torch.device(device), dtype or weight.dtype
        heads, width = self.config.n_heads, self.config.context_length
        shape = (batch_size, heads, width, self.d_model // heads)
        rings = [torch.zeros(shape, device=where, dtype=kind) for _ in range(2 * self.config.n_layers)]
        positions = torch.zeros(batch_size, dtype=torch.int64, device=where)
        return TransformerCarry(positions, tuple(rings[::2]), tuple(rings[1::2]))

    def forward(
        self, x: Tensor, carry: TransformerCarry | None = None, forget_before: Tensor | None = None
    ) -> tuple[Tensor, TransformerCarry]:
        batch, length, _ = x.shape
        if not length:  # a carry of its own, which the next step may write to
            fresh = self.initial_carry(batch, device=x.device, dtype=x.dtype) if carry is None else clone_carry(carry)
            return x, fresh
        width = self.config.context_length
        start = torch.zeros(batch, dtype=torch.int64, device=x.device) if carry is None else carry.positions
        past = 0 if carry is None or not batch else min(width - 1, int(start.max()))
        together = carry is None and forget_before is None  # all rows at the same positions
        positions = positions_since_forget(start[:1] if together else start, forget_before, length)  # [B or 1, L]
        x, turn = self._place(x, positions)
        band = make_band(past, length, width, None if together else positions, x.device)
        after = positions[:, -1] + 1  # [B or 1]
        keys, values = [], []
        for i, layer in enumerate(self.layers):
            q, k, v = layer.project(x, turn)  # [B, H, L, Dh] each
            if carry is not None and past:
                k = torch.cat([unroll(carry.keys[i], start, past), k], 2)  # [B, H, P + L, Dh]
                v = torch.cat([unroll(carry.values[i], start, past), v], 2)  # [B, H, P + L, Dh]
            x = layer.finish(x, attend(q, k, v, band))  # [B, L, D]
            keys.append(roll(k, after, width))
            values.append(roll(v, after, width))
        return self.norm_f(x), TransformerCarry(after.expand(batch).clone(), tuple(keys), tuple(values))

    def step(self, x: Tensor, carry: TransformerCarry) -> tuple[Tensor, TransformerCarry]:
        positions, width = carry.positions, self.config.context_length  # [B]
        if not len(x):
            return x, carry
        x, turn = self._place(x.unsqueeze(1), positions.unsqueeze(1))  # [B, 1, D]
        first, last = torch.stack(positions.aminmax()).tolist()
        used = min(width, last + 1)
        mask, slot = None, last % width
        if first < last:  # rows at different times
            mask = (torch.arange(used, device=x.device) <= positions.unsqueeze(1))[:, None, None]  # [B, 1, 1, S]
            slot = positions % width
        keys, values = [], []
        for layer, ring_k, ring_v in zip(self.layers, carry.keys, carry.values, strict=True):
            q, k, v = layer.project(x, turn)  # [B, H, 1, Dh] each
            ring_k, ring_v = put(ring_k, k, slot), put(ring_v, v, slot)  # [B, H, W, Dh] each
            attended = F.scaled_dot_product_attention(q, ring_k[:, :, :used], ring_v[:, :, :used], mask)
            x = layer.finish(x, attended)  # [B, 1, D]
            keys.append(ring_k)
            values.append(ring_v)
        return self.norm_f(x).squeeze(1), TransformerCarry(positions + 1, tuple(keys), tuple(values))

    def forget(self, carry: TransformerCarry, mask: Tensor) -> TransformerCarry:
        return carry._replace(positions=carry.positions.masked_fill(mask, 0))  # slots beyond are never read

    def _place(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Turn | None]:
        """Inputs ``[B, L, D]`` at ``positions`` ``[B or 1, L]``: absolute ones added, rotary ones returned."""
        if self.config.position == "rotary":
            angles = positions[:, :, None, None, None].double() * self.frequencies.double()
            exact = torch.promote_types(x.dtype, torch.float32)
            angles = angles.remainder(2 * math.pi).to(exact)  # float32 is too coarse far out
            return x, Turn(angles.cos().to(x.dtype), angles.sin().to(x.dtype))
        limit = self.config.max_positions
        if positions.numel() and int(positions.max()) >= limit:
            raise ContextOverrunError(
                f"step {int(positions.max()) + 1} of a task; this transformer has {limit} absolute positions"
            )
        return x + self.position_embedding[positions], None


def _rotary_frequencies(head: int) -> Tensor:
    """``[Dh / 2]`` float32."""
    return ROTARY_BASE ** -(torch.arange(0, head, 2, dtype=torch.float32) / head)


def positions_since_forget(start: Tensor, forget_before: Tensor | None, length: int) -> Tensor:
    """Positions ``[B, L]`` of new steps that follow ``start`` ``[B]`` earlier ones; 0 where a task begins."""
    time = torch.arange(length, device=start.device)  # [L]
    if forget_before is None:
        return start.unsqueeze(1) + time
    began = torch.where(forget_before, time, -start.unsqueeze(1)).cummax(1).values  # [B, L]
    return time - began


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """``x`` ``[B, L, 2, H, Dh]``, each pair (i, i + Dh / 2) turned by the angles of ``turn``."""
    a, b = x.chunk(2, -1)  # [B, L, 2, H, Dh / 2] each
    return torch.cat([a * turn.cos - b * turn.sin, b * turn.cos + a * turn.sin], -1)


def make_band(
    past: int, length: int, width: int, positions: Tensor | None, device: torch.device, block: int = BLOCK
) -> Band:
    """The band of ``length`` new steps after ``past`` remembered ones.

    Args:
        past: remembered steps, P.
        length: new steps, L.
        width: width of the band, W.
        positions: of the new steps ``[B, L]``; None where row i of every sequence is at position i.
        device: where masks live.
        block: queries attended at once.
    """
    if positions is None and length <= width:
        return Band([length], [length], [(0, 1)], [None])
    queries = [min(block, length - begin) for begin in range(0, length, block)]
    chunks = [past, *queries]
    begins = [0, *torch.tensor(chunks).cumsum(0).tolist()]  # where each piece of keys begins, and the end
    spans, masks = [], []
    for i in range(len(queries)):
        oldest = begins[i + 1] - (width - 1)
        first = max(c for c in range(i + 2) if begins[c] <= max(0, oldest))
        query = torch.arange(begins[i + 1], begins[i + 2], device=device)  # [Q], as places in the key sequence
        key = torch.arange(begins[first], begins[i + 2], device=device)  # [S]
        distance = query.unsqueeze(1) - key  # [Q, S]
        mask = (distance >= 0) & (distance < width)
        if positions is not None:  # nothing older than the task's first step
            since = positions[:, begins[i + 1] - past : begins[i + 2] - past]  # [B, Q]
            mask = (mask & (distance <= since.unsqueeze(2))).unsqueeze(1)  # [B, 1, Q, S]
        spans.append((first, i + 2))
        masks.append(mask)
    return Band(chunks, queries, spans, masks)


def attend(q: Tensor, k: Tensor, v: Tensor, band: Band) -> Tensor:
    """What queries ``[B, H, L, Dh]`` read from keys and values ``[B, H, P + L, Dh]``: ``[B, H, L, Dh]``.

    Costs O(L W): each block of queries meets only the pieces of keys that its band touches.
    """
    if band.masks[0] is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    k_chunks, v_chunks = k.split(band.chunks, 2), v.split(band.chunks, 2)
    read = [
        F.scaled_dot_product_attention(part, torch.cat(k_chunks[a:b], 2), torch.cat(v_chunks[a:b], 2), mask)
        for part, (a, b), mask in zip(q.split(band.queries, 2), band.spans, band.masks, strict=True)
    ]
    return torch.cat(read, 2)


def put(ring: Tensor, entry: Tensor, slot: int | Tensor) -> Tensor:
    """The ring ``[B, H, W, Dh]`` with ``entry`` ``[B, H, 1, Dh]`` in ``slot``, one for all rows or ``[B]``."""
    if torch.is_grad_enabled():  # what autograd saved of earlier steps must stay as it was
        ring = ring.clone()
    if isinstance(slot, int):
        ring[:, :, slot] = entry.squeeze(2)
    else:
        ring[torch.arange(len(ring), device=ring.device), :, slot] = entry.squeeze(2)
    return ring


def unroll(ring: Tensor, positions: Tensor, past: int) -> Tensor:
    """The last ``past`` entries of a ring ``[B, H, W, Dh]`` in order of time; rows are at ``positions`` ``[B]``."""
    back = torch.arange(-past, 0, device=ring.device)  # [P]
    return _take(ring, (positions.unsqueeze(1) + back) % ring.shape[2])


def roll(line: Tensor, positions: Tensor, width: int) -> Tensor:
    """Entries in order of time ``[B, H, S, Dh]`` as a ring ``[B, H, W, Dh]``; rows are at ``[B or 1]``."""
    slot = torch.arange(width, device=line.device)  # [W]
    age = (positions.unsqueeze(1) - 1 - slot) % width  # [B or 1, W], steps before the last one
    return _take(line, (line.shape[2] - 1 - age).clamp(min=0))


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Entries ``index`` ``[B or 1, S]`` of the third axis of ``[B, H, *, Dh]``."""
    if len(index) == 1:  # whole entries at once, several times faster
        return x.index_select(2, index[0])
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))

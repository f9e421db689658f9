"""Mamba: a stack of selective state space (S6) blocks (Gu and Dao, arXiv 2312.00752).

    here            the paper
    B               batch                          (section 3, "B")
    L               sequence length                (section 3, "L")
    D, d_model      model width                    (section 3.4, "D")
    E               inner width, expand * D        (section 3.4, "ED")
    N, d_state      states a channel               (section 3, "N")
    K, d_conv       width of the causal convolution
    R, dt_rank      rank of Delta's projection     (section 3.6, "R")
    delta           Delta, the step size           (algorithm 2)
    A, B, C         state, input, output matrices  (eq. 1 and 2; algorithm 2)
    D (of a block)  skip connection
    taps            the K - 1 inputs the convolution remembers

Parameter names and shapes inside a block are those of ``mamba_ssm.modules.mamba_simple.Mamba``: weights move
both ways.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icrl_agents.backbones.base import Backbone, Precision
from icrl_agents.backbones.fused_steps import fused_steps
from icrl_agents.backbones.step_sizes import check_step_sizes, initial_step_biases
from icrl_agents.errors import ConfigError
from icrl_agents.kernels import available_kernels, causal_conv, compiled, conv_step, selective_scan, selective_step

if TYPE_CHECKING:
    from icrl_agents.backbones.packed_mamba import PackedMamba


@dataclass(frozen=True)
class MambaConfig:
    """Shape of a :class:`Mamba`.

    Attributes:
        d_model: width of inputs and outputs.
        n_layers: blocks.
        d_state: states a channel.
        d_conv: inputs that the convolution sees.
        expand: inner width over ``d_model``.
        dt_rank: rank of the step size's projection; ``"auto"`` is ceil(d_model / 16).
        dt_min: smallest step size at initialisation, see :mod:`icrl_agents.backbones.step_sizes`.
        dt_max: largest.
    """

    d_model: int = 128
    n_layers: int = 4
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int | Literal["auto"] = "auto"
    dt_min: float = 1e-3
    dt_max: float = 1e-1

    def __post_init__(self) -> None:
        check_step_sizes("mamba", self.dt_min, self.dt_max)
        sizes = {"d_model", "n_layers", "d_state", "d_conv", "expand"} | ({"dt_rank"} - {self.dt_rank})
        for name in sorted(sizes):
            value = getattr(self, name)
            if value != "auto" and value < 1:
                raise ConfigError(f"mamba options: {name} must be at least 1, got {value}")

    @property
    def d_inner(self) -> int:
        """E, channels inside a block."""
        return self.expand * self.d_model

    @property
    def delta_rank(self) -> int:
        """R, ``dt_rank`` as a number."""
        return math.ceil(self.d_model / 16) if self.dt_rank == "auto" else self.dt_rank


class BlockCarry(NamedTuple):
    """What one block remembers.

    Attributes:
        taps: its last inputs to the convolution ``[B, K - 1, E]``, oldest first.
        state: ``[B, N, E]``.
    """

    taps: Tensor
    state: Tensor


class S6Block(nn.Module):
    """One selective state space block (the paper's figure 3, right)."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        inner, states, rank = config.d_inner, config.d_state, config.delta_rank
        self.split = [rank, states, states]
        self.in_proj = nn.Linear(config.d_model, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, config.d_conv, groups=inner, padding=config.d_conv - 1)
        self.x_proj = nn.Linear(inner, rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))  # [E, N], S4D-real
        self.D = nn.Parameter(torch.ones(inner))  # [E]
        self.out_proj = nn.Linear(inner, config.d_model, bias=False)
        self._initialise(config)
        self._decay: tuple[Tensor, tuple[int, int], Tensor] | None = None  # A_log, its version, -exp of it

    @torch.no_grad()
    def _initialise(self, config: MambaConfig) -> None:
        nn.init.uniform_(self.dt_proj.weight, -(config.delta_rank**-0.5), config.delta_rank**-0.5)
        self.dt_proj.bias.copy_(initial_step_biases(config.d_inner, config.dt_min, config.dt_max))
        self.out_proj.weight.div_(math.sqrt(config.n_layers))  # the residual stream's variance stays O(1)

    def train(self, mode: bool = True) -> Self:
        """Also what shows new weights that were written past autograd, through ``A_log.data``, to the steps."""
        self._decay = None
        return super().train(mode)

    def initial_carry(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> BlockCarry:
        """An empty memory for ``batch_size`` rows."""
        inner, states = self.A_log.shape
        taps = self.conv1d.kernel_size[0] - 1
        return BlockCarry(
            torch.zeros(batch_size, taps, inner, device=device, dtype=dtype),
            torch.zeros(batch_size, states, inner, device=device, dtype=dtype),
        )

    def forward(self, x: Tensor, carry: BlockCarry | None, forget_before: Tensor | None) -> tuple[Tensor, BlockCarry]:
        """``x`` ``[B, L, D]`` to the block's output ``[B, L, D]``; no carry is an empty one."""
        inner = self.D.shape[0]
        before, state = (None, None) if carry is None else carry
        into_conv, into_gate = self.in_proj.weight.split(inner)  # two products: neither result needs a copy
        x, z = F.linear(x, into_conv), F.linear(x, into_gate)  # [B, L, E] each
        x, taps = causal_conv(x, self.conv1d.weight.squeeze(1), self.conv1d.bias, before, forget_before)
        delta, B, C = self.x_proj(x).split(self.split, -1)  # [B, L, R], [B, L, N], [B, L, N]
        delta = F.linear(delta, self.dt_proj.weight)  # [B, L, E]
        y, state = selective_scan(
            x,
            delta,
            self.decay(),
            B,
            C,
            D=self.D,
            z=z,
            delta_bias=self.dt_proj.bias,
            initial_state=state,
            forget_before=forget_before,
        )
        return self.out_proj(y), BlockCarry(taps, state)

    def step(self, x: Tensor, carry: BlockCarry) -> tuple[Tensor, BlockCarry]:
        """``x`` ``[B, D]`` to the block's output ``[B, D]``."""
        x, z = self.in_proj(x).chunk(2, -1)  # [B, E] each
        x, taps = conv_step(x, self.conv1d.weight.squeeze(1), self.conv1d.bias, carry.taps)  # [B, E]
        delta, B, C = self.x_proj(x).split(self.split, -1)  # [B, R], [B, N], [B, N]
        delta = F.linear(delta, self.dt_proj.weight)  # [B, E]
        y, state = selective_step(x, delta, self.decay(), B, C, self.D, z, self.dt_proj.bias, True, carry.state)
        return self.out_proj(y), BlockCarry(taps, state)

    def decay(self) -> Tensor:
        """A = -exp(A_log) ``[E, N]``; computed once per set of weights where no gradient is wanted.

        New weights are noticed however they come, but for edits of ``A_log.data``, which PyTorch does not count:
        after those, call ``train`` or ``eval`` of the model.
        """
        if torch.is_grad_enabled() or self.A_log.is_inference():
            return -torch.exp(self.A_log)
        version = self.A_log._version, fused_steps()
        if self._decay is not None:
            source, seen, decay = self._decay
            if source.data_ptr() == self.A_log.data_ptr() and seen == version:
                return decay
        decay = -torch.exp(self.A_log.t().contiguous()).t()  # as the step reads it: no copy there
        self._decay = self.A_log.detach(), version, decay  # detach: its address is not given anew
        return decay


class Layer(nn.Module):
    """A block on the residual stream, normalised before."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.d_model, eps=1e-5)
        self.mixer = S6Block(config)


class Mamba(Backbone):
    """Residual S6 blocks, a norm before each and one at the end. Constant time and memory a step.

    Args:
        config: its shape.
    """

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.config = config
        self.d_model = config.d_model
        layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.layers = cast(Sequence[Layer], layers)  # ModuleList's own type forgets what it holds
        self.norm_f = nn.RMSNorm(config.d_model, eps=1e-5)
        self.weights_shown = 0  # calls of train or eval: what shows weights that were written past autograd
        self._packed: PackedMamba | None = None

    def train(self, mode: bool = True) -> Self:
        self.weights_shown += 1
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}  # packed weights are weights again: not to be saved or copied

    def pack(self, precision: Precision = "float32") -> "PackedMamba":
        """The same steps with packed weights, faster and, below float32, rounded; see :class:`PackedMamba`.

        Raises:
            ConfigError: no such precision, weights that are not float32 on the CPU, or no numba.
        """
        if "cpu" not in available_kernels():
            raise ConfigError("packed steps are compiled by numba, which is not installed: pip install numba")
        from icrl_agents.backbones.packed_mamba import PackedMamba

        return PackedMamba(self, precision)

    def initial_carry(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> tuple[BlockCarry, ...]:
        weight = self.norm_f.weight
        where = weight.device if device is None else torch.device(device)
        return tuple(layer.mixer.initial_carry(batch_size, where, dtype or weight.dtype) for layer in self.layers)

    def forward(
        self, x: Tensor, carry: tuple[BlockCarry, ...] | None = None, forget_before: Tensor | None = None
    ) -> tuple[Tensor, tuple[BlockCarry, ...]]:
        before = [None] * len(self.layers) if carry is None else carry
        after = []
        for layer, block_carry in zip(self.layers, before, strict=True):
            y, block_carry = layer.mixer(layer.norm(x), block_carry, forget_before)  # [B, L, D]
            x = x + y  # [B, L, D]
            after.append(block_carry)
        return self.norm_f(x), tuple(after)

    def step(self, x: Tensor, carry: tuple[BlockCarry, ...]) -> tuple[Tensor, tuple[BlockCarry, ...]]:
        if self._steps_packed(x):
            assert self._packed is not None
            return self._packed.run(x, carry)
        return self.step_by_layers(x, carry)

    def step_by_layers(self, x: Tensor, carry: tuple[BlockCarry, ...]) -> tuple[Tensor, tuple[BlockCarry, ...]]:
        """:meth:`step`, one operation after the other: with gradients, in any dtype, on any device."""
        after = []
        for layer, block_carry in zip(self.layers, carry, strict=True):
            y, block_carry = layer.mixer.step(layer.norm(x), block_carry)  # [B, D]
            x = x + y  # [B, D]
            after.append(block_carry)
        return self.norm_f(x), tuple(after)

    def _steps_packed(self, x: Tensor) -> bool:
        """Whether a step runs as one compiled call: float32 on the CPU, no gradients wanted."""
        if torch.is_grad_enabled() or x.dtype != torch.float32 or x.device.type != "cpu" or not compiled():
            return False
        if self.norm_f.weight.is_inference():
            _warn_of_inference_weights()
            return False
        from icrl_agents.backbones.packed_mamba import PackedMamba

        if self._packed is None and PackedMamba.accepts(self):
            self._packed = PackedMamba(self)
        return self._packed is not None and self._packed.refresh()

    def forget(self, carry: tuple[BlockCarry, ...], mask: Tensor) -> tuple[BlockCarry, ...]:
        gone = mask[:, None, None]
        return tuple(BlockCarry(taps.masked_fill(gone, 0.0), state.masked_fill(gone, 0.0)) for taps, state in carry)


@cache
def _warn_of_inference_weights() -> None:
    """Once: PyTorch does not count changes of such weights, so packed copies of them would go stale unseen."""
    warnings.warn(
        "this Mamba was built or loaded under torch.inference_mode, so its steps run one operation after the other, "
        "several times slower: load it outside (steps may then run under inference_mode)",
        RuntimeWarning,
        stacklevel=5,
    )

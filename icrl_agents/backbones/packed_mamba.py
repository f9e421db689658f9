"""The inference step of :class:`icrl_agents.backbones.mamba.Mamba` as one compiled call over packed weights.

Letters as in :mod:`icrl_agents.backbones.mamba`; P and Q panels of ``LANES`` outputs for x_proj and out_proj. How the
weights lie and how the call works: :mod:`icrl_agents.kernels.cpu_step`.
"""

from collections.abc import Iterator
from functools import lru_cache
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from icrl_agents.backbones.base import Precision
from icrl_agents.backbones.fused_steps import fused_steps
from icrl_agents.errors import ConfigError, InputError
from icrl_agents.kernels import cpu_step
from icrl_agents.kernels.cpu_step import LANES, LOG2_E, TAKEN
from icrl_agents.kernels.threads import run_pieces

if TYPE_CHECKING:
    from icrl_agents.backbones.mamba import BlockCarry, Mamba, MambaConfig, S6Block

ALONE = 2**21
"""Products (weights times rows) up to which a second thread costs more than it brings."""

PLAIN = (nn.Linear, nn.Conv1d, nn.RMSNorm)
"""Modules whose weights say all that they do."""

NOT_PACKABLE = "only a Mamba whose modules are its own and whose weights are float32 on the CPU can be packed"

_version, _shape, _requires_grad = (attrgetter(name) for name in ("_version", "shape", "requires_grad"))


class PackedMamba:
    """The steps of a Mamba, faster: packed weights, one call a step, the carry updated in place.

    New weights are noticed, however they come, and packed again; but for edits of ``parameter.data``, which PyTorch
    does not count: after those, call ``train`` or ``eval`` of the model.

    Args:
        backbone: float32 weights on the CPU.
        precision: how the packed matrices are stored.

    Raises:
        ConfigError: no such precision, or a backbone that :meth:`accepts` does not.
    """

    def __init__(self, backbone: "Mamba", precision: Precision = "float32") -> None:
        if not self.accepts(backbone):
            raise ConfigError(NOT_PACKABLE)
        if precision not in get_args(Precision):
            raise ConfigError(f"unknown precision {precision!r}; known: {', '.join(get_args(Precision))}")
        self.backbone = backbone
        self.precision = precision
        self._pack()

    @staticmethod
    def accepts(backbone: "Mamba") -> bool:
        """Whether it is built as its config says, of plain parts, all float32 on the CPU, outside inference mode."""
        parts = list(_watched(backbone))
        plain = all(_is_plain(part) for _, _, part in parts if isinstance(part, nn.Module) and not _holds(part))
        in_place = plain and all(
            part.dtype == torch.float32 and part.device.type == "cpu" and not part.is_inference()
            for _, _, part in parts
            if isinstance(part, Tensor)
        )
        return in_place and _structure(backbone) == _structure_of(backbone.config)

    def refresh(self) -> bool:
        """Pack again if the weights are not those that were packed; False if they cannot be packed any more."""
        if self._is_current():
            return True
        if not self.accepts(self.backbone):
            return False
        self._pack()
        return True

    def step(self, x: Tensor, carry: "tuple[BlockCarry, ...]") -> "tuple[Tensor, tuple[BlockCarry, ...]]":
        """:meth:`icrl_agents.backbones.Backbone.step`, without gradients.

        Args:
            x: float32 inputs ``[B, D]`` on the CPU.
            carry: consumed: what it returns lies in the same memory wherever that is float32 and contiguous.

        Raises:
            InputError: shapes, dtypes or devices that do not fit.
            ConfigError: the weights cannot be packed any more, since they were moved or changed their type.
        """
        if not self.refresh():
            raise ConfigError(NOT_PACKABLE)
        return self.run(x, carry)

    def run(self, x: Tensor, carry: "tuple[BlockCarry, ...]") -> "tuple[Tensor, tuple[BlockCarry, ...]]":
        """:meth:`step` with the weights that :meth:`refresh` last saw."""
        size = self.backbone.d_model
        if x.ndim != 2 or x.shape[1] != size or x.dtype != torch.float32 or not x.is_cpu:
            raise InputError(f"x: expected shape [batch, {size}], float32 on the CPU, got {_described(x)}")
        batch = len(x)
        carry, leaves = self._writable(carry, batch)
        y = x.new_empty(batch, size)
        if not batch:
            return y, carry
        # a gradient that still needs what is overwritten now says so instead of being wrong
        increment_version([leaf for leaf in leaves if not leaf.is_inference()])
        run_pieces(
            cpu_step.stack_step,
            1 if batch * self._products <= ALONE else min(torch.get_num_threads(), self._shape[0]),  # one call a thread
            batch * self._products,
            x.detach().contiguous().numpy(),
            y.numpy(),
            self._eps,
            *self._sizes,
            *self._arrays,
            np.array(list(map(Tensor.data_ptr, leaves)), np.int64).reshape(-1, 2),
            np.empty(cpu_step.scratch_floats(batch, size, *self._shape), np.float32),
            np.zeros(TAKEN + 2 * (2 * len(carry) + 1), np.int64),
        )
        return y, carry

    def _writable(self, carry: "tuple[BlockCarry, ...]", batch: int) -> "tuple[tuple[BlockCarry, ...], list[Tensor]]":
        """A carry that may be written to, nearly always the one given, and its tensors."""
        channels, _, states = self._sizes
        expected = [(batch, self._taps, channels), (batch, states, channels)] * self._layers
        leaves = [leaf for block in carry for leaf in block]
        if list(map(_shape, leaves)) != expected:
            raise InputError(f"carry: expected shapes {expected}, got {[tuple(leaf.shape) for leaf in leaves]}")
        for leaf in leaves:
            if leaf.dtype != torch.float32 or not leaf.is_cpu:
                raise InputError(f"carry: expected float32 on the CPU, got {_described(leaf)}")
        if any(map(_requires_grad, leaves)) or not all(map(Tensor.is_contiguous, leaves)):
            # what a gradient may still read is not overwritten
            carry = tuple(type(block)(*(_own(leaf) for leaf in block)) for block in carry)
            leaves = [leaf for block in carry for leaf in block]
        return carry, leaves

    # ------------------------------------------------------------------ the weights

    def _is_current(self) -> bool:
        """Whether the weights are those that were packed."""
        weights = self._weights
        return (
            self.backbone.weights_shown == self._shown
            and fused_steps() == self._fused_steps
            and not any(self._hooks)
            and all(map(is_, map(dict.get, self._owners, self._names), self._parts))
            and list(map(len, self._holders)) == self._held
            and list(map(_version, weights)) == self._versions
            and list(map(Tensor.data_ptr, weights)) == self._places
        )

    @torch.no_grad()
    def _pack(self) -> None:
        backbone = self.backbone
        config, layers = backbone.config, backbone.layers
        channels, rank, states = config.d_inner, config.delta_rank, config.d_state
        self._layers, self._taps = len(layers), config.d_conv - 1
        self._sizes = (channels, rank, states)
        blocks, outer = -(-channels // LANES), -(-config.d_model // LANES)
        self._shape = (blocks, -(-(rank + 2 * states) // LANES), outer)  # blocks, P, Q
        self._eps = float(backbone.norm_f.eps or torch.finfo(torch.float32).eps)
        norms = torch.stack([*(layer.norm.weight for layer in layers), backbone.norm_f.weight])  # [T + 1, D]
        into, into_scale = self._stored([_into_panels(layer.mixer, blocks) for layer in layers])
        out, out_scale = self._stored([_block_panels(layer.mixer.out_proj.weight, blocks) for layer in layers])
        rows = torch.stack([_channel_rows(layer.mixer, blocks) for layer in layers])
        self._products = into.size + out.size
        self._arrays = (norms.numpy(), into, into_scale, out, out_scale, rows.numpy())
        self._shown, self._fused_steps = backbone.weights_shown, fused_steps()
        watched = list(_watched(backbone))
        self._owners = [owner for owner, _, _ in watched]
        self._names = [name for _, name, _ in watched]
        self._parts = [part for _, _, part in watched]
        self._holders = list({id(owner): owner for owner in self._owners}.values())
        self._held = list(map(len, self._holders))
        self._hooks = [hooks for part in self._parts if isinstance(part, PLAIN) for hooks in _hooks(part)]
        self._weights = [part for part in self._parts if isinstance(part, Tensor)]
        self._versions = [weight._version for weight in self._weights]
        self._places = [weight.data_ptr() for weight in self._weights]
        self._kept = [weight.detach() for weight in self._weights]  # their addresses are not given anew

    def _stored(self, layers: list[list[Tensor]]) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
        """Each layer's panels ``[blocks, inputs, LANES]`` one after the other, as they are stored, and their scales."""
        if self.precision == "int8":
            scales = [[panel.abs().amax(1).div(127.0).clamp(min=1e-30) for panel in layer] for layer in layers]
            layers = [
                [(panel / scale.unsqueeze(1)).round() for panel, scale in zip(*pair, strict=True)]
                for pair in zip(layers, scales, strict=True)
            ]
            scale = torch.stack([torch.cat(layer, 1) for layer in scales])  # [T, blocks, panels LANES]
        else:
            scale = layers[0][0].new_ones(len(layers), self._shape[0], len(layers[0]) * LANES)
        whole = torch.stack([torch.cat(layer, 1).flatten(1) for layer in layers])  # [T, blocks, all inputs LANES]
        if self.precision == "bfloat16":
            stored = whole.bfloat16().view(torch.int16).numpy().view(np.uint16)
        else:
            stored = (whole.to(torch.int8) if self.precision == "int8" else whole).numpy()
        return stored.copy(), scale.numpy()  # NumPy keeps large arrays in huge pages, which are read faster


def _is_plain(module: nn.Module) -> bool:
    """Whether a module does with its own weight what its type does, and nothing else: pruned ones have another."""
    return type(module) in PLAIN and module._parameters.get("weight") is not None and not any(_hooks(module))


def _hooks(module: nn.Module) -> tuple[dict[int, Any], dict[int, Any]]:
    return module._forward_pre_hooks, module._forward_hooks


def _holds(module: nn.Module) -> bool:
    """Whether a module of the stack is one that holds those with weights: the layers, one of them, or its block."""
    return isinstance(module, nn.ModuleList) or hasattr(module, "mixer") or hasattr(module, "in_proj")


def _structure(backbone: "Mamba") -> tuple[list[str], list[tuple[str, torch.Size]]]:
    """What its modules are, biases and epsilons included, and the shapes of its weights."""
    shapes = [(name, weight.shape) for name, weight in backbone.named_parameters()]
    return [repr(module) for module in backbone.children()], shapes


@lru_cache
def _structure_of(config: "MambaConfig") -> tuple[list[str], list[tuple[str, torch.Size]]]:
    """The same of a stack that was just built."""
    from icrl_agents.backbones.mamba import Mamba

    with torch.device("meta"):
        return _structure(Mamba(config))


def _watched(backbone: "Mamba") -> Iterator[tuple[dict[str, Any], str, Any]]:
    """All modules and weights of a stack, each with the dictionary and the name that it has in its owner."""
    layers = backbone.layers
    holders = [backbone, cast(nn.Module, layers), *layers, *(layer.mixer for layer in layers)]
    for owner in holders:
        for name, module in owner._modules.items():
            yield owner._modules, name, module
    for module in backbone.modules():
        for name, weight in module._parameters.items():
            yield module._parameters, name, weight


def _into_panels(mixer: "S6Block", blocks: int) -> list[Tensor]:
    """The panels of in_proj (x, then z) and of x_proj, ``[blocks, inputs, LANES]`` each."""
    inner = [
        _padded(part, blocks * LANES, part.shape[1]) for part in mixer.in_proj.weight.chunk(2)
    ]  # [blocks LANES, D]
    panels = [part.unflatten(0, (blocks, LANES)).transpose(1, 2) for part in inner]
    return panels + _block_panels(mixer.x_proj.weight, blocks)


def _block_panels(weight: Tensor, blocks: int) -> list[Tensor]:
    """The panels ``[blocks, LANES, LANES]`` of a matrix ``[outputs, E]`` whose inputs are the channels of a block."""
    panels = -(-weight.shape[0] // LANES)
    padded = _padded(weight, panels * LANES, blocks * LANES)
    return list(padded.view(panels, LANES, blocks, LANES).permute(0, 2, 3, 1))


def _channel_rows(mixer: "S6Block", blocks: int) -> Tensor:
    """What each channel has for itself ``[blocks, K + 1 + R + 1 + N + 1, LANES]``."""
    kernel, step = mixer.conv1d, mixer.dt_proj
    assert kernel.bias is not None
    rows = torch.cat([
        kernel.weight.squeeze(1).t(),  # [K, E]
        kernel.bias.unsqueeze(0),
        step.weight.t(),  # [R, E]
        step.bias.unsqueeze(0),
        -torch.exp(mixer.A_log.t()) * float(LOG2_E),  # [N, E]
        mixer.D.unsqueeze(0),
    ])  # fmt: skip
    return _padded(rows, len(rows), blocks * LANES).unflatten(1, (blocks, LANES)).transpose(0, 1).contiguous()


def _padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """A matrix filled up with zeros to ``[rows, columns]``."""
    padded = matrix.new_zeros(rows, columns)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded


def _own(leaf: Tensor) -> Tensor:
    """The same numbers in contiguous memory that no gradient reads."""
    return leaf.detach().clone(memory_format=torch.contiguous_format)


def _described(x: Tensor) -> str:
    return f"{list(x.shape)}, {x.dtype} on {x.device}"

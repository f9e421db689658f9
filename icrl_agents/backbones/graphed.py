"""A backbone's or model's step as one CUDA graph: one launch a step instead of dozens."""

from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from icrl_agents.backbones.base import Carry, clone_carry
from icrl_agents.errors import ConfigError, InputError

WARM_UP = 3
"""Steps before recording: they compile kernels and fill caches, which a recording cannot."""


class Stepping(Protocol):
    """A module that steps and, while it does, reads no values back from the GPU; the transformer's step does."""

    def eval(self) -> Any: ...

    def step(self, x: Tensor, carry: Carry, /) -> tuple[Any, Carry]: ...


class GraphedStep:
    """``module.step``, recorded once for rows like ``x`` and replayed; without gradients.

    It runs a copy of the module, with the weights of now: a recording refers to memory, and what the module keeps
    from step to step must not move. The carry that a call returns is its own memory, which the next call updates in
    place; another carry is copied in first.

    Args:
        module: a backbone or an :class:`~icrl_agents.model.InContextModel`, its weights on a GPU.
        x: an input of the step ``[B, ...]``; its values do not matter.
        carry: a carry of as many rows; its values do not matter. It stays as it is.

    Raises:
        ConfigError: ``x`` is not on a GPU.
    """

    def __init__(self, module: Stepping, x: Tensor, carry: Carry) -> None:
        if x.device.type != "cuda":
            raise ConfigError(f"only steps on a GPU can be recorded as CUDA graphs; the input is on {x.device}")
        self._module = deepcopy(module)
        self._module.eval()
        self._x, self._carry = x.clone(), clone_carry(carry)
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.device(x.device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    self._module.step(self._x, clone_carry(self._carry))
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(self._graph, stream=aside):  # its own default lies on the GPU of its first use
                self._output, after = self._module.step(self._x, self._carry)
                _copy(after, self._carry)

    @torch.no_grad()
    def __call__(self, x: Tensor, carry: Carry) -> tuple[Any, Carry]:
        """The module's step.

        Args:
            x: as the input at recording.
            carry: consumed.

        Returns:
            What the module's step returns: the output is the caller's, the carry is consumed by the next call.

        Raises:
            InputError: ``x`` or ``carry`` has another shape than at recording.
        """
        if x.shape != self._x.shape:
            raise InputError(f"x: this step was recorded for shape {list(self._x.shape)}, got {list(x.shape)}")
        if [leaf.shape for leaf in _tensors(carry)] != [leaf.shape for leaf in _tensors(self._carry)]:
            raise InputError(f"carry: this step was recorded for one of {len(self._x)} rows")
        self._x.copy_(x)
        _copy(carry, self._carry)
        self._graph.replay()
        return _clone(self._output), self._carry


def _tensors(carry: Carry) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(carry) if isinstance(leaf, Tensor)]


def _copy(source: Carry, target: Carry) -> None:
    """Every tensor of ``source`` into its place in ``target``, unless it lies there."""
    for new, old in zip(pytree.tree_leaves(source), pytree.tree_leaves(target), strict=True):
        if isinstance(old, Tensor) and new.data_ptr() != old.data_ptr():
            old.copy_(new)


def _clone(output: Any) -> Any:
    """A tensor, or a dataclass of tensors, that the next replay leaves alone."""
    if is_dataclass(output) and not isinstance(output, type):
        return replace(output, **{field.name: _clone(getattr(output, field.name)) for field in fields(output)})
    return output.clone() if isinstance(output, Tensor) else output

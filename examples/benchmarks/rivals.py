"""What the benchmarks compare: the backbones of this package and the Mambas of others, trained and stepped alike.

The others are not dependencies: they are taken where they import, or from the folder named by ``--peers``, made by
``pip install --no-deps --target FOLDER mambapy transformers tokenizers regex``.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from icrl_agents.backbones import carry_bytes, make_backbone

PREFILL = 4096
"""Steps encoded at once where a memory is filled by living."""
OTHERS = {"Mamba of mambapy": "mambapy", "Mamba of transformers": "transformers"}
"""Name -> the module it comes from."""


class Rival(Protocol):
    """One model to measure. ``D`` is its width."""

    parameters: int

    def train(self, x: Tensor) -> None:
        """Forward and backward over ``x`` ``[B, L, D]``."""

    def live(self, steps: int, more: int) -> None:
        """Be where one row is after so many steps; ``more`` will follow."""

    def step(self, x: Tensor) -> None:
        """The next step of one row ``[1, D]``."""

    def memory(self) -> int:
        """Bytes of what it remembers of a task."""


class Ours:
    """A registered backbone.

    Args:
        backbone: registered name.
        options: fields of its config.
        kernel: forces a kernel; None is the fastest.
    """

    def __init__(self, backbone: str, options: Mapping[str, Any], kernel: str = "") -> None:
        self.backbone, self.kernel = make_backbone(backbone, options), kernel
        self.parameters = _count(self.backbone)

    def train(self, x: Tensor) -> None:
        os.environ["ICRL_KERNEL"] = self.kernel
        self.backbone.zero_grad()
        y, _ = self.backbone(x)
        y.square().mean().backward()

    def live(self, steps: int, more: int) -> None:
        self.carry = self.backbone.initial_carry(1)
        for begin in range(0, steps, PREFILL):
            x = torch.randn(1, min(PREFILL, steps - begin), self.backbone.d_model)
            _, self.carry = self.backbone(x, self.carry)

    def step(self, x: Tensor) -> None:
        _, self.carry = self.backbone.step(x, self.carry)

    def memory(self) -> int:
        return carry_bytes(self.carry)


class BandedTransformer(Ours):
    """The transformer; a window of None is as wide as the life is long."""

    def __init__(self, options: Mapping[str, Any], window: int | None) -> None:
        self.options, self.window = options, window
        super().__init__("transformer", {**options, "context_length": window or 1})

    def live(self, steps: int, more: int) -> None:
        if self.window is None:
            self.backbone = make_backbone("transformer", {**self.options, "context_length": steps + more})
        carry = self.backbone.initial_carry(1)
        for ring in (*carry.keys, *carry.values):  # drawn, not computed: the time does not depend on what they are
            ring.normal_()
        self.carry = carry._replace(positions=torch.full((1,), steps))


class MambaPy:
    """``mambapy``, trained by its parallel scan."""

    def __init__(self, d_model: int, n_layers: int) -> None:
        from mambapy.mamba import Mamba, MambaConfig

        self.model = Mamba(MambaConfig(d_model=d_model, n_layers=n_layers, d_state=16, expand_factor=2, pscan=True))
        self.parameters = _count(self.model)

    def train(self, x: Tensor) -> None:
        self.model.zero_grad()
        self.model(x).square().mean().backward()

    def live(self, steps: int, more: int) -> None:
        of = self.model.config
        taps = torch.zeros(1, of.d_inner, of.d_conv - 1)
        self.caches = [(torch.zeros(1, of.d_inner, of.d_state), taps) for _ in range(of.n_layers)]

    def step(self, x: Tensor) -> None:
        _, self.caches = self.model.step(x, self.caches)

    def memory(self) -> int:
        return carry_bytes(self.caches)


class TransformersMamba:
    """``transformers``' Mamba without CUDA kernels (its slow path)."""

    def __init__(self, d_model: int, n_layers: int) -> None:
        from transformers import MambaConfig, MambaModel
        from transformers.utils import logging

        logging.set_verbosity_error()  # else it says at length that its CUDA kernels are missing
        self.model = MambaModel(
            MambaConfig(hidden_size=d_model, state_size=16, num_hidden_layers=n_layers, vocab_size=1, use_mambapy=False)
        )
        self.parameters = _count(self.model) - d_model  # without the embedding of its one token

    def train(self, x: Tensor) -> None:
        self.model.zero_grad()
        self.model(inputs_embeds=x, use_cache=False).last_hidden_state.square().mean().backward()

    def live(self, steps: int, more: int) -> None:
        begin = torch.zeros(1, 4, self.model.config.hidden_size)
        self.cache = self.model(inputs_embeds=begin, use_cache=True).cache_params

    def step(self, x: Tensor) -> None:
        self.model(inputs_embeds=x.unsqueeze(1), cache_params=self.cache, use_cache=True)

    def memory(self) -> int:
        return carry_bytes([list(vars(layer).values()) for layer in self.cache.layers])


def others(d_model: int, n_layers: int) -> dict[str, Callable[[], Rival]]:
    """Makers of the Mambas of other packages that import here; says which do not."""
    makers: dict[str, Callable[[], Rival]] = {
        "Mamba of mambapy": lambda: MambaPy(d_model, n_layers),
        "Mamba of transformers": lambda: TransformersMamba(d_model, n_layers),
    }
    missing = [name for name, module in OTHERS.items() if find_spec(module) is None]
    if missing:
        print(f"not installed, so not measured: {', '.join(missing)} (see --peers)")
    return {name: make for name, make in makers.items() if name not in missing}


def transformer_options(d_model: int, n_layers: int) -> dict[str, int]:
    """Of a transformer with as many parameters as the Mamba of that width and depth, within 5 %."""
    return {"d_model": d_model, "n_layers": n_layers, "n_heads": 4, "d_ff": 3 * d_model // 2}


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, those that all benchmarks share among them; makes the peers importable."""
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--n-layers", type=int, default=4)
    parser.add_argument("--peers", metavar="FOLDER", help="where pip put mambapy and transformers (--target)")
    parser.add_argument("--quick", action="store_true", help="so small that the numbers mean nothing")
    parser.add_argument("--json", metavar="PATH", help="also write the numbers there")
    arguments = parser.parse_args()
    if arguments.peers:
        sys.path.append(arguments.peers)
    return arguments


def take_turns(runs: Mapping[str, Callable[[], None]], turns: int) -> dict[str, list[float]]:
    """Seconds of every run in every turn, after one that does not count: a busy machine is busy for all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def median_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """a / b: the median over the turns that they took together."""
    return float(np.median(np.divide(a, b)))


def _count(model: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())

"""The time of one step, batch 1, against how long the agent has lived; and the memory of what it remembers.

Mambas live their steps; the transformer's rings hold drawn keys and values, as many as it would have. The Mambas of
other packages do the same work at every step, so they are measured once. All models take turns in one run.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from rivals import BandedTransformer, Ours, Rival, others, parse, transformer_options

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--lived", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000])
parser.add_argument("--windows", type=int, nargs="+", default=[500, 8_000])
parser.add_argument("--turns", type=int, default=10)
parser.add_argument("--steps", type=int, default=20, help="of every model, per turn")
arguments = parse(parser)
if arguments.quick:
    arguments.lived, arguments.windows, arguments.turns, arguments.steps = [10, 50], [20], 1, 5
d_model, n_layers = arguments.d_model, arguments.n_layers
more = arguments.steps * (arguments.turns + 1)


@torch.inference_mode()
def measure(rivals: dict[tuple[str, int], Rival]) -> dict[tuple[str, int], float]:
    """Median seconds of a step for each; the first turn warms up."""
    x = torch.randn(1, d_model)
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in rivals}
    for turn in range(arguments.turns + 1):
        for key, rival in rivals.items():
            for _ in range(arguments.steps):
                started = time.perf_counter()
                rival.step(x)
                if turn:
                    seconds[key].append(time.perf_counter() - started)
    return {key: float(np.median(values)) for key, values in seconds.items()}


torch.manual_seed(0)
size = {"d_model": d_model, "n_layers": n_layers}
small = transformer_options(d_model, n_layers)
rivals: dict[tuple[str, int], Rival] = {}
for lived in arguments.lived:  # not in inference mode: weights are loaded outside it, and steps watch their versions
    rivals["mamba", lived] = Ours("mamba", size)
    rivals["mamba2", lived] = Ours("mamba2", size)
    for window in arguments.windows:
        rivals[f"transformer, window {window:,}", lived] = BandedTransformer(small, window)
    rivals["transformer, unbounded", lived] = BandedTransformer(small, None)
for name, make in others(d_model, n_layers).items():
    rivals[name, arguments.lived[0]] = make()
with torch.inference_mode():
    for (_, lived), rival in rivals.items():
        rival.live(lived, more)
seconds = measure(rivals)

print(f"{__doc__.splitlines()[0]}\n{torch.get_num_threads()} threads, d_model {d_model}, {n_layers} layers; ", end="")
print(f"medians of {arguments.turns} x {arguments.steps} steps; microseconds, and the ratio to mamba's\n")
print(f"{'steps lived':26}" + "".join(f"{lived:>17,}" for lived in arguments.lived) + "   last/first   memory KiB")
results: dict[str, dict] = {}
for name in dict.fromkeys(name for name, _ in rivals):
    at = [lived for lived in arguments.lived if (name, lived) in rivals]
    micros = [seconds[name, lived] * 1e6 for lived in at]
    ratios = [seconds[name, lived] / seconds["mamba", lived] for lived in at]
    memory = [rivals[name, lived].memory() for lived in at]
    results[name] = {"lived": at, "microseconds": micros, "ratio": ratios, "bytes": memory}
    cells = "".join(f"{value:9.0f} ({ratio:4.1f}x)" for value, ratio in zip(micros, ratios, strict=True))
    growth = f"{micros[-1] / micros[0]:.2f}" if len(at) > 1 else ""
    print(f"{name:26}{cells:{17 * len(arguments.lived)}}{growth:>13}{memory[-1] / 1024:13,.0f}")
if arguments.json:
    Path(arguments.json).write_text(json.dumps(results, indent=1), encoding="utf-8")

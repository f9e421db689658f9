"""Training whole sequences, forward and backward: tokens per second, growth with length, peak memory.

All models take turns in one run; ratios are medians over the turns. Where a model is slow its sequences are a quarter
as long, which its time per token does not depend on. Peak memory is of a process of its own for each model.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rivals import BandedTransformer, Ours, Rival, median_ratio, others, parse, take_turns, transformer_options

BASELINE = "Mamba of mambapy"
SLOW = ("mamba, reference kernel", "Mamba of transformers")

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--batch", type=int, default=4)
parser.add_argument("--length", type=int, default=1024)
parser.add_argument("--long", type=int, nargs="+", default=[1024, 8192, 32_768], help="lengths of a single row")
parser.add_argument("--window", type=int, default=500, help="of the transformer")
parser.add_argument("--turns", type=int, default=3)
parser.add_argument("--models", nargs="+", help="only these, by their names in the table")
parser.add_argument("--peak-memory-of", metavar="MODEL", help="print the bytes that training this model adds, no more")
arguments = parse(parser)
if arguments.quick:
    arguments.length, arguments.long, arguments.turns = 64, [64, 256], 1
d_model, n_layers = arguments.d_model, arguments.n_layers


def bytes_added(run: Callable[[], None]) -> int:
    """How much more memory this process has in RAM at the peak of ``run`` than before it (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here: imports and compilers have theirs too
    before, _ = resident_bytes()
    run()
    return resident_bytes()[1] - before


def resident_bytes() -> tuple[int, int]:
    """Memory in RAM, now and at its peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


def memory_of(name: str) -> float:
    """Bytes that training ``name`` adds at the peak, in a fresh process."""
    again = [sys.executable, *sys.argv, "--peak-memory-of", name]
    done = subprocess.run(again, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


size = {"d_model": d_model, "n_layers": n_layers}
ours: dict[str, Callable[[], Rival]] = {
    "mamba": lambda: Ours("mamba", size),
    "mamba2": lambda: Ours("mamba2", size),
    f"transformer, window {arguments.window}": lambda: BandedTransformer(
        transformer_options(d_model, n_layers), arguments.window
    ),
}
if not arguments.quick:
    ours["mamba, reference kernel"] = lambda: Ours("mamba", size, "reference")
makers = ours | others(d_model, n_layers)
if arguments.models:
    makers = {name: make for name, make in makers.items() if name in arguments.models}
torch.manual_seed(0)

if arguments.peak_memory_of:
    rival = makers[arguments.peak_memory_of]()
    rival.train(torch.randn(arguments.batch, 4, d_model))
    sequences = torch.randn(arguments.batch, arguments.length, d_model)
    print(bytes_added(lambda: rival.train(sequences)))
    raise SystemExit

rivals = {name: make() for name, make in makers.items()}
baseline = BASELINE if BASELINE in rivals else next(iter(rivals))
tokens = {n: arguments.batch * (arguments.length // 4 if n in SLOW else arguments.length) for n in rivals}
sequences = {n: torch.randn(arguments.batch, tokens[n] // arguments.batch, d_model) for n in rivals}
seconds = take_turns({n: partial(rival.train, sequences[n]) for n, rival in rivals.items()}, arguments.turns)
each = {n: [s / tokens[n] for s in seconds[n]] for n in rivals}  # seconds a token
peak = {n: memory_of(n) for n in rivals}

print(f"{__doc__.splitlines()[0]}\n{torch.get_num_threads()} threads, d_model {d_model}, {n_layers} layers, ", end="")
print(f"batch {arguments.batch}, length {arguments.length}; {arguments.turns} turns\n")
print(f"{'':28}{'parameters':>12}{'tokens/s':>10}{'ratio':>8}{'peak MiB':>10}{'ratio':>8}   (ratios to: {baseline})")
results = {}
for name, rival in rivals.items():
    results[name] = {
        "parameters": rival.parameters,
        "tokens_per_second": 1 / float(np.median(each[name])),
        "speed_ratio": median_ratio(each[baseline], each[name]),
        "peak_bytes": peak[name],
        "memory_ratio": peak[name] / peak[baseline],
    }
    row = results[name]
    print(
        f"{name:28}{row['parameters']:12,}{row['tokens_per_second']:10,.0f}{row['speed_ratio']:8.2f}"
        f"{row['peak_bytes'] / 2**20:10,.0f}{row['memory_ratio']:8.3f}"
    )

fast = [name for name in rivals if name in ours and name not in SLOW]
rows = {(n, length): torch.randn(1, length, d_model) for n in fast for length in arguments.long}
seconds = take_turns({str(key): partial(rivals[key[0]].train, x) for key, x in rows.items()}, min(2, arguments.turns))
print(f"\nus/token of one row, by length {'':3}" + "".join(f"{length:>10,}" for length in arguments.long) + "   growth")
for name in fast:
    micros = [float(np.median(seconds[str((name, length))])) / length * 1e6 for length in arguments.long]
    results[name]["micros_per_token_by_length"] = dict(zip(arguments.long, micros, strict=True))
    print(f"{name:34}" + "".join(f"{value:10.1f}" for value in micros) + f"{micros[-1] / micros[0]:9.2f}")
if arguments.json:
    Path(arguments.json).write_text(json.dumps(results, indent=1), encoding="utf-8")

"""Speed and memory at a glance: runs step_latency.py and sequence_training.py, prints their tables, draws one figure.

Arguments that are not listed here, --peers FOLDER above all, go to both.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

HERE = Path(__file__).parent
LOOKS = {
    "mamba": ("#0072b2", "-"),
    "mamba2": ("#56b4e9", "-"),
    "transformer, window 500": ("#e69f00", "-"),
    "transformer, window 8,000": ("#d55e00", "--"),
    "transformer, unbounded": ("#d55e00", ":"),
    "Mamba of mambapy": ("#009e73", "-."),
    "Mamba of transformers": ("#cc79a7", "-."),
}
"""Colour (Okabe and Ito, safe for colour blindness) and line; a model that is not here is grey."""
OTHER_LOOKS = ("#777777", "-")


def run(script: str, arguments: list[str]) -> dict[str, Any]:
    """The numbers of one benchmark; its table goes to the screen."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "numbers.json"
        subprocess.run([sys.executable, HERE / script, *arguments, "--json", path], check=True)
        return json.loads(path.read_text(encoding="utf-8"))


def draw_steps(axes: Axes, results: dict[str, Any]) -> None:
    """Latency against steps lived, both logarithmic; memory in the legend."""
    every = [lived for row in results.values() for lived in row["lived"]]
    for name, row in results.items():
        colour, line = LOOKS.get(name, OTHER_LOOKS)
        lived, micros = row["lived"], row["microseconds"]
        if len(lived) == 1:  # measured once, the same work at every step
            lived, micros = [min(every), max(every)], 2 * micros
        label = f"{name} ({in_bytes(row['bytes'][-1])})"
        axes.plot(lived, [value / 1e3 for value in micros], color=colour, ls=line, lw=2.2, label=label)
    axes.set(xscale="log", yscale="log", xlabel="steps lived", ylabel="milliseconds")
    axes.set_title("time of one step (and the memory it works with)", fontsize=10)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, framealpha=0.9, edgecolor="none")


def draw_bars(axes: Axes, values: dict[str, float], title: str, text: Callable[[float], str]) -> None:
    """One horizontal bar a model, the best on top; logarithmic, with the number beside it."""
    names = list(values)[::-1]
    bars = axes.barh(names, [values[n] for n in names], color=[LOOKS.get(n, OTHER_LOOKS)[0] for n in names])
    axes.bar_label(bars, [text(values[n]) for n in names], padding=3, fontsize=8)
    axes.set(xscale="log")
    axes.set_title(f"{title} (logarithmic)", fontsize=10)
    axes.set_xlim(min(values.values()) / 2, max(values.values()) * 6)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_visible(False)  # the labels say it


def in_bytes(value: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("benchmarks.png"))
arguments, passed_on = parser.parse_known_args()
steps, training = run("step_latency.py", passed_on), run("sequence_training.py", passed_on)

figure = Figure(figsize=(11, 4.6), layout="constrained", dpi=150)
left, right = figure.subfigures(1, 2, width_ratios=(1, 1))
draw_steps(left.subplots(), steps)
speed, memory = right.subplots(2, 1)
by_speed = dict(sorted(((n, row["tokens_per_second"]) for n, row in training.items()), key=lambda item: -item[1]))
draw_bars(speed, by_speed, "training: tokens per second", lambda value: f"{value:,.0f}")
draw_bars(memory, {n: training[n]["peak_bytes"] for n in by_speed}, "training: memory at its peak", in_bytes)
for axes in (*left.axes, *right.axes):
    axes.spines[["top", "right"]].set_visible(False)
for axes in (speed, memory):
    axes.spines[["bottom"]].set_visible(False)
arguments.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(arguments.out)
print(f"\nfigure: {arguments.out}")

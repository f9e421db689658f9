"""What an agent costs and what it reaches: the time of one step of each bundled agent against its normalized return.

A step is act and observe, batch 1, after as many steps as its memory may hold; all agents take turns in one run. The
returns are those of the last episodes in the evaluation.json beside each checkpoint, with their 95 % intervals.
"""

import argparse
import time
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from icrl_agents import InContextAgent
from icrl_agents.evaluation import EvalResult
from icrl_agents.hub import packaged

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--checkpoints", type=Path, default=packaged(), help="folder of folders with an evaluation.json")
parser.add_argument("--lived", type=int, default=600, help="steps before it is timed; the transformers see 500 back")
parser.add_argument("--turns", type=int, default=10)
parser.add_argument("--steps", type=int, default=50, help="of every agent, per turn")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--out", type=Path, default=Path("docs/images/latency.png"))
arguments = parser.parse_args()
MARKERS = {"mamba": "o", "mamba2": "D", "transformer": "^"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito, one an environment


def live(agent: InContextAgent, steps: int) -> list[float]:
    """Seconds of each step."""
    observation, seconds = np.zeros(agent.config.model.observation_dim), []
    for _ in range(steps):
        started = time.perf_counter()
        agent.act(observation)
        agent.observe(-0.1, False)
        seconds.append(time.perf_counter() - started)
    return seconds


torch.set_num_threads(arguments.threads)
found = sorted(arguments.checkpoints.glob("*/evaluation.json"))
results = [EvalResult.load(path) for path in found]
agents = [InContextAgent.from_pretrained(path.parent) for path in found]
for agent in agents:
    agent.reset()
    live(agent, arguments.lived)
times: list[list[float]] = [[] for _ in agents]
for _ in range(arguments.turns):
    for own, agent in zip(times, agents, strict=True):
        own += live(agent, arguments.steps)

print(
    f"{arguments.threads} thread(s), medians of {arguments.turns} x {arguments.steps} steps after {arguments.lived}\n"
)
figure = Figure(figsize=(7, 4.2), layout="constrained", dpi=130)
axes = figure.subplots()
colours = dict(zip(dict.fromkeys(result.env_id for result in results), cycle(COLOURS), strict=False))
for result, agent, own in zip(results, agents, times, strict=True):
    micros, reached = 1e6 * float(np.median(own)), result.summary["final_normalized"]
    mean, low, high = (reached[key] for key in ("mean", "low", "high"))
    print(f"{result.agent:28} {micros:8.0f} us   normalized return {mean:.2f} [{low:.2f}, {high:.2f}]")
    backbone = agent.config.model.backbone
    axes.errorbar(
        micros,
        mean,
        [[mean - low], [high - mean]],
        color=colours[result.env_id],
        marker=MARKERS.get(backbone, "s"),
        ms=8,
        fillstyle="none" if "-ad" in result.agent else "full",  # Algorithm Distillation
        label=result.agent,
    )
axes.axhline(1, color="#555555", ls="--", lw=1)
axes.set(xscale="log", xlabel="one step of one agent, microseconds", ylabel="normalized return, last episodes")
for axis_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
    axis_formatter("{x:.0f}")
axes.set_title("1 is the policy that was told the task, 0 the best that sees neither task nor reward", fontsize=9)
axes.grid(alpha=0.25, which="both")
axes.legend(fontsize=8, framealpha=0.9, edgecolor="none")
arguments.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(arguments.out)
print("picture:", arguments.out)

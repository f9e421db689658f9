"""Mamba and transformer beside each other, finely: by task, by step, by the length of their lives, and what they cost.

A table and one figure over unseen val tasks, whose anchors must have been measured. About a minute on two cores.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy.stats import wilcoxon

from icrl_agents import InContextAgent, evaluate
from icrl_agents.backbones import carry_bytes
from icrl_agents.envs import env_definition
from icrl_agents.evaluation import LAST_EPISODES, paired_difference

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--agents", nargs=2, default=("reacher-goal-mamba", "reacher-goal-transformer"))
parser.add_argument("--tasks", type=int, default=10, help="of the val tasks")
parser.add_argument("--episodes", type=int, default=40)
parser.add_argument("--lived", type=int, nargs="+", default=[20, 100, 500, 2_000], help="steps at which to time")
parser.add_argument("--out", type=Path, default=Path("out/compare_backbones.png"))
arguments = parser.parse_args()


def cost(agent: InContextAgent) -> list[float]:
    """Microseconds of a step, the quickest of the last 20, after having lived so many steps."""
    observation, times = np.zeros(agent.config.model.observation_dim), []
    agent.reset()
    for _ in range(max(arguments.lived)):
        started = time.perf_counter()
        agent.act(observation)
        times.append(time.perf_counter() - started)
        agent.observe(-0.1, False)
    return [1e6 * min(times[lived - 20 : lived]) for lived in arguments.lived]


agents = [InContextAgent.from_pretrained(name) for name in arguments.agents]
how = {"subset": "val", "tasks": arguments.tasks, "episodes": arguments.episodes, "controls": False}
results = [evaluate(agent, **how) for agent in agents]
finals = [np.asarray(result.returns)[:, -LAST_EPISODES:].mean(1) for result in results]  # [N] each
names, console = [result.agent for result in results], Console(width=110)
table = Table("", *names, title=f"{len(finals[0])} unseen tasks")
for key in ("first_return", "final_return", "final_normalized"):
    table.add_row(key.replace("_", " "), *(f"{result.summary[key]['mean']:.2f}" for result in results))
reached = [result.summary["episodes_to_90_percent_of_gain"] for result in results]
table.add_row("episodes to 90 % of the gain", *(str(episode or "-") for episode in reached))
inside = [np.mean(r.first_episode, 0) for r in results]  # reward per step inside episode 1, [H] each
for step in range(0, len(inside[0]), max(1, len(inside[0]) // 4)):
    table.add_row(f"episode 1, reward of step {step + 1}", *(f"{rewards[step]:.3f}" for rewards in inside))
definition = env_definition(results[0].env_id)
numbers = np.stack([definition.task_numbers(task) for task in results[0].tasks])  # [N, m]
labels = [f"{key}[{i}]" for key, size in definition.task_keys.items() for i in range(size)]
for label, column in zip(labels, numbers.T, strict=True):
    for third in np.array_split(np.argsort(column), min(3, len(column))):
        span = f"{label} {column[third].min():.2f} to {column[third].max():.2f}"
        table.add_row(f"last, {span}", *(f"{final[third].mean():.2f}" for final in finals))
costs = [cost(agent) for agent in agents]
for row, lived in enumerate(arguments.lived):
    table.add_row(f"step after {lived} steps, us", *(f"{of[row]:.0f}" for of in costs))
table.add_row("memory of a task, bytes", *(str(carry_bytes(a.model.backbone.initial_carry(1))) for a in agents))
console.print(table, f"{names[0]} minus {names[1]}, normalized, paired by task: {paired_difference(*results)}")
console.print(f"Wilcoxon's signed-rank test of the last episodes: p = {wilcoxon(*finals).pvalue:.3f}")
panels = (figure := Figure(figsize=(13, 3.6), layout="constrained", dpi=130)).subplots(1, 4)
for result, final, reward, of in zip(results, finals, inside, costs, strict=True):
    panels[0].plot(np.arange(1, arguments.episodes + 1), np.mean(result.returns, 0), label=result.agent)
    panels[1].plot(np.arange(1, len(reward) + 1), reward)
    panels[2].plot(numbers[:, 0], final, "o", alpha=0.7)
    panels[3].semilogx(arguments.lived, of, "o-")
titles = "return by episode", "reward by step of episode 1", f"last episodes by {labels[0]}", "us by steps lived"
for panel, title in zip(panels, titles, strict=True):
    panel.set_title(title)
panels[0].legend(fontsize=8)
arguments.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(arguments.out)

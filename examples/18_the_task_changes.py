"""What if the task changes and nobody tells the agent? It lives in one unseen task, then in another, by what it knows.

Agents are trained on lives in one task each, but for reacher-goal-mamba and ant-dir-mamba-changes (`--task-changes`).
Beside it: the same agent, told of the change by reset(). Val tasks, each followed by the next one; the returns of the
first task are in neither row. Seconds to a minute.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Column, Table

from icrl_agents import InContextAgent, task_split
from icrl_agents.envs import load_anchors

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
agents = ["reacher-goal-mamba", "reacher-goal-transformer", "pusher-goal-mamba"]
parser.add_argument("--agents", nargs="+", default=agents)
parser.add_argument("--before", type=int, default=10, help="episodes in the first task")
parser.add_argument("--episodes", type=int, default=20, help="in the second")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, default=Path("out/task-changes.png"))
arguments = parser.parse_args()

shown = (1, max(1, arguments.episodes // 4), arguments.episodes)
columns = min(3, len(arguments.agents))
rows = -(-len(arguments.agents) // columns)
figure = Figure(figsize=(5 * columns, 3.6 * rows), layout="constrained", dpi=130)
panels = figure.subplots(rows, columns, squeeze=False).ravel()
for spare in panels[len(arguments.agents) :]:
    spare.remove()
table = Table(Column("agent", no_wrap=True), "told", *(f"episode {episode}" for episode in shown), "ends below 0.5")
for name, panel in zip(arguments.agents, panels, strict=False):
    agent = InContextAgent.from_pretrained(name)
    env_id = agent.config.env_id
    tasks = list(task_split(env_id).val)
    anchors = load_anchors(env_id, "paper").of("val")
    blind, oracle = (np.roll(anchors[of], -1)[:, None] for of in ("blind", "oracle"))
    env = agent.make_vec_env(len(tasks), tasks=tasks)
    for told in (False, True):
        agent.run_episodes(env, arguments.before, seed=arguments.seed)
        env.unwrapped.set_tasks([*tasks[1:], tasks[0]])
        lived = agent.run_episodes(env, arguments.episodes, seed=arguments.seed + 1, remember=not told)
        env.unwrapped.set_tasks(tasks)
        reached = (lived.returns - blind) / (oracle - blind)  # [tasks, episodes]
        means = [f"{reached[:, episode - 1].mean():.2f}" for episode in shown]
        table.add_row(name, "yes" if told else "no", *means, f"{(reached[:, -1] < 0.5).sum()} of {len(tasks)}")
        panel.plot(range(1, arguments.episodes + 1), reached.mean(0), label="told by reset()" if told else "not told")
    env.close()
    panel.axhline(1, color="#555555", ls="--", lw=1)
    panel.axhline(0, color="#555555", ls="-.", lw=1)
    panel.set(title=name, xlabel="episode after the change", ylabel="normalized return, mean over tasks")
    panel.legend()
Console().print(table)
arguments.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(arguments.out)
print("picture:", arguments.out)

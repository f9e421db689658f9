"""What does an agent take from a learning history? Shows it a source's of an unseen task, then lets it act.

Parts of the history as it is, with every reward replaced by their mean, and of another task: if that costs nothing, it
does not read the task from it; if the rewards do not matter, it goes on as the source did, and not by what pays.
A table and a figure; a minute for reacher-goal, more for others. --steps-per-task 2000 shows the way.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from icrl_agents import InContextAgent
from icrl_agents.hub import load_training_record, resolve
from icrl_agents.training.histories import HistoryDataset
from icrl_agents.training.sources.presets import run_collection
from icrl_agents.training.windows import kept_episodes

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--agent", default="reacher-goal-mamba-ad", help="bundled name, directory or Hub id")
parser.add_argument("--out", type=Path, help="default: runs/shown/AGENT")
parser.add_argument("--data", type=Path, help="histories of unseen tasks; default: collect those of val into --out")
parser.add_argument("--steps-per-task", type=int, help="of the sources; default: the preset's")
parser.add_argument("--keep-every", type=int, help="one episode in so many is shown; default: as in its training")
parser.add_argument("--parts", type=float, nargs="+", default=[0, 0.1, 0.25, 0.5, 0.75, 1], help="shown of a history")
parser.add_argument("--episodes", type=int, default=5, help="that the agent then lives itself")
arguments = parser.parse_args()
agent = InContextAgent.from_pretrained(arguments.agent)
out = arguments.out or Path("runs/shown") / agent.config.name
out.mkdir(parents=True, exist_ok=True)
data = arguments.data or out / "histories"
trained = (load_training_record(resolve(arguments.agent)) or {}).get("config", {})
keep_every = arguments.keep_every or trained.get("keep_every") or parser.error("its training does not say --keep-every")
if arguments.data is None:
    run_collection(agent.config.env_id, data, subset="val", steps_per_task=arguments.steps_per_task)
dataset = HistoryDataset(data)
tasks, parts = dataset.manifest.tasks, sorted(set(arguments.parts))
first = {dataset.task_index(h): h for h in reversed(range(len(dataset)))}  # one history of each task
kept = [kept_episodes(len(dataset.episode_ends(first[task])), keep_every).tolist() for task in range(len(tasks))]


def returns_after(another: int = 0, rewards: bool = True) -> list[list[list[float]]]:
    """Returns [tasks, parts, episodes] in each task, once the agent was shown each part of a history."""
    found = [[] for _ in tasks]
    for task, shown in enumerate(np.roll(range(len(tasks)), -another)):
        env = agent.make_env(task=tasks[task])
        for part in parts:
            agent.reset(seed=0)
            if until := round(part * len(kept[shown])):
                history = dataset.history(first[shown], kept[shown][:until])
                mean = np.full_like(history.rewards, history.rewards.mean())
                agent.prefill(history if rewards else replace(history, rewards=mean))
            found[task].append(agent.run_episodes(env, arguments.episodes, seed=0, remember=True).returns.tolist())
    return found


found = {"its history": returns_after(), "its history without rewards": returns_after(rewards=False)}
found["another task's history"] = returns_after(another=1)
returns = [dataset.history(first[task], kept[task]).returns for task in range(len(tasks))]
source = [np.interp(parts, np.linspace(0, 1, len(curve)), curve).tolist() for curve in returns]
curves = {"the source": np.mean(source, 0)} | {f"after {of}": np.mean(found[of], 0)[:, 0] for of in found}
table, figure = Table("shown", *curves), Figure(figsize=(6, 4), layout="constrained", dpi=130)
panel = figure.subplots()
for part, *values in zip(parts, *curves.values(), strict=True):
    table.add_row(f"{part:.0%}", *(f"{value:.2f}" for value in values))
Console(width=120).print("mean return of the next episode:", table)
for label, curve in curves.items():
    panel.plot(parts, curve, "o-", label=label)
panel.set(xlabel="part of a learning history shown", ylabel="return of the next episode", title=agent.config.name)
panel.legend()
figure.savefig(out / "shown.png")
found |= {"agent": agent.config.name, "tasks": tasks, "keep_every": keep_every, "parts": parts, "source": source}
(out / "shown.json").write_text(json.dumps(found), encoding="utf-8")
print(f"picture: {out / 'shown.png'}")

"""Can an agent read a learning history? Shows it parts of a source's history of an unseen task, then lets it act.

Where Algorithm Distillation ends below its sources, either it cannot find out from a history what the task is, or the
histories that it lives itself do not tell. So it is also shown another task's: if that costs nothing, it cannot read.
A table and a figure; on two cores a minute for reacher-goal, more for others. --steps-per-task 2000 shows the way.
"""

import argparse
import json
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
parser.add_argument("--data", type=Path, help="histories of unseen tasks; default: collect them into --out")
parser.add_argument("--subset", default="val", help="the unseen tasks: val, test, or sampled:N of the distribution")
parser.add_argument("--steps-per-task", type=int, help="of the sources; default: the preset's")
parser.add_argument("--keep-every", type=int, help="one episode in so many is shown; default: as in the training")
parser.add_argument("--parts", type=float, nargs="+", default=[0, 0.1, 0.25, 0.5, 0.75, 1], help="shown of a history")
parser.add_argument("--episodes", type=int, default=5, help="that the agent then lives itself")
arguments = parser.parse_args()

agent = InContextAgent.from_pretrained(arguments.agent)
out = arguments.out or Path("runs/shown") / agent.config.name
data = arguments.data or out / "histories"
if arguments.data is None:
    run_collection(agent.config.env_id, data, subset=arguments.subset, steps_per_task=arguments.steps_per_task)
dataset = HistoryDataset(data)
tasks, parts = dataset.manifest.tasks, sorted(set(arguments.parts))
trained = (load_training_record(resolve(arguments.agent)) or {"config": {}})["config"]
keep_every = arguments.keep_every or trained.get("keep_every", 1)
first = {dataset.task_index(h): h for h in reversed(range(len(dataset)))}  # one history of each task
kept = [kept_episodes(len(dataset.episode_ends(first[task])), keep_every).tolist() for task in range(len(tasks))]


def returns_after(shown: int, task: int) -> np.ndarray:
    """Returns [parts, episodes] of the agent in ``task``, once it was shown each part of the history of ``shown``."""
    env, seen, found = agent.make_env(task=tasks[task]), 0, []
    agent.reset(seed=0)
    for part in parts:
        if (until := round(part * len(kept[shown]))) > seen:
            agent.prefill(dataset.history(first[shown], kept[shown][seen:until]))
            seen = until
        found.append(agent.clone().run_episodes(env, arguments.episodes, seed=0, remember=True).returns)
    return np.reshape(found, (len(parts), -1))


own = np.mean([returns_after(task, task) for task in range(len(tasks))], 0)
other = np.mean([returns_after((task + 1) % len(tasks), task) for task in range(len(tasks))], 0)
returns = [dataset.history(first[task], kept[task]).returns for task in range(len(tasks))]
source = np.mean([np.interp(parts, np.linspace(0, 1, len(curve)), curve) for curve in returns], 0)
table = Table("shown", "the source there", "the agent after it", f"episode {arguments.episodes} after it", "another's")
for part, *values in zip(parts, source, own[:, 0], own[:, -1], other[:, 0], strict=True):
    table.add_row(f"{part:.0%}", *(f"{value:.2f}" for value in values))
Console(width=110).print(table)
figure = Figure(figsize=(6, 4), layout="constrained", dpi=130)
panel = figure.subplots()
panel.plot(parts, source, "o-", label="the source")
panel.plot(parts, own[:, 0], "o-", label="the agent, after its history")
panel.plot(parts, other[:, 0], "o-", label="the agent, after another task's")
panel.set(xlabel="part of a learning history shown", ylabel="return of the next episode", title=agent.config.name)
panel.legend()
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "shown.png")
curves = {"source": source.tolist(), "own": own.tolist(), "other": other.tolist()}
record = {"agent": agent.config.name, "tasks": tasks, "keep_every": keep_every, "parts": parts, **curves}
(out / "shown.json").write_text(json.dumps(record), encoding="utf-8")
print(f"picture: {out / 'shown.png'}")

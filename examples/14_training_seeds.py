"""Does training with another seed give the same conclusions? Distils every backbone by several seeds.

A table of how each ends on unseen test tasks, and how often it follows the rewards of another task, the difference of
the backbones, and a figure. The results go into --out as JSON. Some hours on two cores with the defaults; the same
command goes on where it was interrupted. --updates 20 --steps-per-task 5000 shows the way (planning, in
reacher-goal, takes its seven minutes).
"""

import argparse
import json
from pathlib import Path
from typing import get_args

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from icrl_agents import InContextAgent, evaluate
from icrl_agents.atomic import write_text_atomically
from icrl_agents.envs import resolve_env_id, short_name
from icrl_agents.evaluation import LAST_EPISODES, EvalResult, difference_over_seeds, paired_difference
from icrl_agents.training.pipeline import EVALUATION_SEEDS, run_training, source_of
from icrl_agents.training.presets import Method
from icrl_agents.training.sources.presets import run_collection

KINDS = ["mamba", "mamba2", "transformer"]
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--env", default="half-cheetah-vel")
parser.add_argument("--out", type=Path, help="default: runs/seeds/ENV-METHOD")
parser.add_argument("--method", default="on-policy", choices=get_args(Method), help="as in icrl-agents train")
parser.add_argument("--data", type=Path, help="sources that were collected before; default: collect them into --out")
parser.add_argument("--steps-per-task", type=int, help="of the sources; default: the preset's")
parser.add_argument("--backbones", nargs="+", default=KINDS[::2], choices=KINDS)
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings")
parser.add_argument("--updates", type=int, help="of each; default: the preset's")
parser.add_argument("--tasks", type=int, help="of the test tasks; default: all")
parser.add_argument("--episodes", type=int, default=40, help="of the evaluation")
arguments = parser.parse_args()

env_id = resolve_env_id(arguments.env)
out = arguments.out or Path("runs/seeds") / f"{short_name(env_id)}-{arguments.method}"
data = arguments.data or out / "data"
if arguments.data is None:
    run_collection(env_id, data, source=source_of(arguments.method, env_id), steps_per_task=arguments.steps_per_task)

table = Table("backbone", "seed", "episode 1", f"last {LAST_EPISODES}", "normalized", "IQM", "followed")
figure = Figure(figsize=(6.5, 4), layout="constrained")
panel = figure.subplots()
found: dict[str, list[EvalResult]] = {backbone: [] for backbone in arguments.backbones}
for color, backbone in enumerate(found):
    for seed in dict.fromkeys(arguments.seeds):
        folder = out / f"{backbone}-{seed}"
        changes = {"updates": arguments.updates, "seed": seed, "name": folder.name}
        run_training(env_id, data, folder, backbone=backbone, method=arguments.method, **changes)
        agent = InContextAgent.from_pretrained(folder)
        result = evaluate(agent, tasks=arguments.tasks, episodes=arguments.episodes, seeds=EVALUATION_SEEDS)
        result.save(out / f"{folder.name}.json")
        found[backbone].append(result)
        told = [f"{result.summary[key]['mean']:.2f}" for key in ("first_return", "final_return", "final_normalized")]
        followed = result.controls.get("swapped_rewards", {}).get("nearer_to_rewarded", float("nan"))
        table.add_row(backbone, str(seed), *told, f"{result.summary['final_normalized']['iqm']:.2f}", f"{followed:.0%}")
        label = backbone if seed == arguments.seeds[0] else None
        panel.plot(np.arange(1, arguments.episodes + 1), np.mean(result.returns, 0), color=f"C{color}", label=label)

Console(width=110).print(table)
ours, *others = found
differences = {other: difference_over_seeds(found[ours], found[other]) for other in others}
for other, difference in differences.items():
    pairs = zip(found[ours], found[other], strict=True)
    by_seed = ", ".join(f"{paired_difference(mine, theirs)['mean']:.3f}" for mine, theirs in pairs)
    print(f"{ours} minus {other}, normalized, by seed: {by_seed}; over seeds and tasks: {difference}")
panel.set(xlabel="episode of an unseen task", ylabel="return", title=f"{short_name(env_id)}, {arguments.method}")
panel.legend()
figure.savefig(out / "seeds.png", dpi=150)
record = {"command": vars(arguments), "differences": differences}
write_text_atomically(out / "seeds.json", json.dumps(record, default=str))
print(f"picture: {out / 'seeds.png'}")

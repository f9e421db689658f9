"""Does training with another seed give the same conclusions? Distils every backbone by several seeds from one teacher.

A table of how each ends on unseen test tasks, with rewards of other tasks besides, the difference by seed and over all,
paired by task, and a figure. The results go into --out as JSON. Some hours on two cores with the defaults; the same
command goes on where it was interrupted. --updates 20 --steps-per-task 5000 shows the way.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from icrl_agents import InContextAgent, evaluate
from icrl_agents.envs import resolve_env_id, short_name
from icrl_agents.evaluation import LAST_EPISODES, interval
from icrl_agents.training.pipeline import run_training
from icrl_agents.training.sources.presets import run_collection

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--env", default="half-cheetah-vel")
parser.add_argument("--out", type=Path, help="default: runs/seeds/ENV")
parser.add_argument("--data", type=Path, help="a teacher that was collected before; default: collect one into --out")
parser.add_argument("--steps-per-task", type=int, help="of the teacher; default: the preset's")
parser.add_argument("--backbones", nargs="+", default=["mamba", "transformer"])
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings")
parser.add_argument("--updates", type=int, help="of each; default: the preset's")
parser.add_argument("--tasks", type=int, help="of the test tasks; default: all")
parser.add_argument("--episodes", type=int, default=40, help="of the evaluation")
arguments = parser.parse_args()

env_id = resolve_env_id(arguments.env)
out = arguments.out or Path("runs/seeds") / short_name(env_id)
teacher = arguments.data or out / "teacher"
if arguments.data is None:
    run_collection(env_id, teacher, source="task-informed", steps_per_task=arguments.steps_per_task)

table = Table(
    "backbone", "seed", "episode 1", f"last {LAST_EPISODES}", "normalized", "IQM", "nearer to the rewards' task"
)
figure = Figure(figsize=(6.5, 4), layout="constrained")
panel = figure.subplots()
finals: dict[str, np.ndarray] = {}  # [seeds, tasks] of each backbone, normalized
for color, backbone in enumerate(arguments.backbones):
    rows = []
    for seed in arguments.seeds:
        folder = out / f"{backbone}-{seed}"
        changes = {"updates": arguments.updates, "seed": seed, "name": folder.name}
        run_training(env_id, teacher, folder, backbone=backbone, method="on-policy", **changes)
        agent = InContextAgent.from_pretrained(folder)
        result = evaluate(agent, tasks=arguments.tasks, episodes=arguments.episodes, seeds=(0, 1, 2))
        result.save(out / f"{folder.name}.json")
        rows.append(np.asarray(result.normalized)[:, -LAST_EPISODES:].mean(1))
        told = [f"{result.summary[key]['mean']:.2f}" for key in ("first_return", "final_return", "final_normalized")]
        followed = result.controls.get("swapped_rewards", {}).get("nearer_to_rewarded", float("nan"))
        table.add_row(backbone, str(seed), *told, f"{result.summary['final_normalized']['iqm']:.2f}", f"{followed:.0%}")
        label = backbone if seed == arguments.seeds[0] else None
        panel.plot(np.arange(1, arguments.episodes + 1), np.mean(result.returns, 0), color=f"C{color}", label=label)
    finals[backbone] = np.stack(rows)

Console(width=110).print(table)
ours, *others = finals
differences = {}
for other in others:
    gaps = finals[ours] - finals[other]
    differences[other] = {"by_seed": [interval(gap) for gap in gaps], "over_seeds": interval(gaps.mean(0))}
    print(f"{ours} minus {other}, normalized, paired by task: over all seeds {differences[other]['over_seeds']}")
    print("  by seed:", ", ".join(f"{seed}: {gap.mean():.3f}" for seed, gap in zip(arguments.seeds, gaps, strict=True)))
panel.set(xlabel="episode of an unseen task", ylabel="return", title=f"{arguments.env}, seeds {arguments.seeds}")
panel.legend()
figure.savefig(out / "seeds.png", dpi=150)
record = {"command": vars(arguments), "differences": differences}
(out / "seeds.json").write_text(json.dumps(record, default=str, indent=1), encoding="utf-8")
print(f"picture: {out / 'seeds.png'}")

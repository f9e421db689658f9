"""What does each option of Algorithm Distillation do? One change at a time from the paper's recipe, on the val tasks.

The sizes are those of preset laptop. Some options act on the training, some on histories that are made again from the
policy snapshots of --data, and two let the final policies teach instead. Every training has as many updates, of as many
tokens. A table, and the returns as JSON. Hours on two cores with the defaults; the same command goes on where it was
interrupted. --updates 20 --out elsewhere shows the way.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from icrl_agents import InContextAgent, evaluate
from icrl_agents.envs import resolve_env_id, short_name
from icrl_agents.model_card import quoted
from icrl_agents.training.pipeline import run_training
from icrl_agents.training.presets import distillation_preset
from icrl_agents.training.regeneration import RegenerationConfig, regenerate
from icrl_agents.training.sources.presets import run_collection

FADING = RegenerationConfig(policy="final", noise="annealed", annealed_until=0.75, wrong_experts=0.5)
DATASETS = {
    "others": RegenerationConfig(wrong_experts=0.5),  # half of the time the source of another task acts, as old
    "fading-others": FADING,  # final policies likewise, under random actions that fade out, as in AD-eps
}
SOURCE_MEAN, FINAL_POLICY = {"target": "source_mean"}, {"target": "final_policy"}
GAUSSIAN, ON_POLICY = {"head": "gaussian"}, {"method": "on-policy"}
NEVER_THE_STUDENT = {"teacher": (1.0,), "wrong_teacher": 0.5}
OPTIONS = {  # name: (other histories, changes of the training)
    "paper": ("", {}),
    "source-mean": ("", SOURCE_MEAN),
    "final-policy": ("", FINAL_POLICY),
    "gaussian": ("", GAUSSIAN),
    "transformer": ("", {"backbone": "transformer"}),
    "others-source-mean": ("others", SOURCE_MEAN),
    "others-gaussian-source-mean": ("others", GAUSSIAN | SOURCE_MEAN),
    "fading-others-final-policy": ("fading-others", FINAL_POLICY),
    "fading-others-gaussian-final-policy": ("fading-others", GAUSSIAN | FINAL_POLICY),
    "on-policy": ("", ON_POLICY),  # the student acts, the final policies teach
    "teachers-act": ("", ON_POLICY | {"on_policy": NEVER_THE_STUDENT}),
}
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--env", type=resolve_env_id, default="reacher-goal")
parser.add_argument("--out", type=Path, help="default: runs/options/ENV")
parser.add_argument("--data", type=Path, help="histories that were collected before; default: collect them into --out")
parser.add_argument("--steps-per-task", type=int, help="of the histories; default: the preset's")
parser.add_argument("--only", nargs="+", choices=OPTIONS, default=list(OPTIONS), metavar="OPTION", help="%(choices)s")
parser.add_argument("--updates", type=int, help="of each training; default: the preset's")
parser.add_argument("--seed", type=int, default=0, help="of the trainings")
arguments = parser.parse_args()
out = arguments.out or Path("runs/options") / short_name(arguments.env)
histories = arguments.data or out / "histories"
if arguments.data is None:
    run_collection(arguments.env, histories, steps_per_task=arguments.steps_per_task)
paper = distillation_preset(arguments.env, "laptop")
table = Table("option", "episode 1", "last episodes", "normalized", "best update")
for option in arguments.only:
    made, changes = OPTIONS[option]
    if made:
        regenerate(histories, out / made, DATASETS[made])
    preset = distillation_preset(arguments.env, "laptop", method=changes.get("method", "ad"))
    if "on_policy" in changes:
        changes = changes | {"on_policy": replace(preset.on_policy, **changes["on_policy"])}
    same = {"updates": arguments.updates or paper.updates, "seed": arguments.seed}
    same["batch_size"] = paper.batch_size * paper.episodes // preset.episodes
    data = out / made if made else histories
    trained = run_training(arguments.env, data, out / option, name=option, **same, **changes)
    result = evaluate(InContextAgent.from_pretrained(out / option), subset="val")
    result.save(out / f"{option}.json")
    shown = (result.summary[key] for key in ("first_return", "final_return", "final_normalized"))
    table.add_row(option, *map(quoted, shown), str(trained.best_update))
    Console(width=140).print(table)

"""What each option of Algorithm Distillation does: one change at a time from the paper's recipe, on the val tasks.

Other histories are made from the policy snapshots of --data; every training has as many updates, of as many tokens. A
table, and returns as JSON. The same command goes on where it was interrupted; --updates 20 shows the way.
"""

import argparse
import re
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

FADING = {"policy": "final", "noise": "annealed", "annealed_until": 0.75}
DATASETS = {
    "calm": {"noise": "none"},  # the source's own means, as if it had not explored
    "others": {"wrong_experts": 0.5},  # half of the time the source of another task acts, at the same age
    "fading": FADING,  # the final policy under random actions that fade out, as in AD-eps
    "fading-others": {**FADING, "wrong_experts": 0.5},
}
TRAININGS = {
    "paper": {},
    "source-mean": {"target": "source_mean"},
    "final-policy": {"target": "final_policy"},
    "gaussian": {"head": "gaussian"},
    "transformer": {"backbone": "transformer"},
    "on-policy": {"method": "on-policy", "episodes": 0.25},  # the student acts, the sources' final policies teach
    "short-context": {"episodes": 0.25},  # times the preset's, the batch accordingly
    # As on-policy's, for a comparison in nothing but whose experience it is.
    "same-settings": {"head_hidden": 256, "head_layers": 2, "learning_rate": 2e-3, "input_noise": 0.0},
}


def known(option: str) -> str:
    dataset, _, trainings = option.rpartition(":")
    if dataset not in ("", *DATASETS) or not set(trainings.split("+")) <= set(TRAININGS):
        raise argparse.ArgumentTypeError(f"datasets: {', '.join(DATASETS)}; trainings: {', '.join(TRAININGS)}")
    return option


default = [*TRAININGS, *(f"{dataset}:source-mean" for dataset in DATASETS)]
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--env", type=resolve_env_id, default="reacher-goal")
parser.add_argument("--out", type=Path, help="default: runs/options/ENV")
parser.add_argument("--data", type=Path, help="histories that were collected before; default: collect them into --out")
parser.add_argument("--steps-per-task", type=int, help="of the histories; default: the preset's")
parser.add_argument("--only", type=known, nargs="+", default=default, help="each [DATASET:]TRAINING[+TRAINING]")
parser.add_argument("--updates", type=int, help="of each training; default: the preset's")
parser.add_argument("--seed", type=int, default=0, help="of the trainings")
arguments = parser.parse_args()
out = arguments.out or Path("runs/options") / short_name(arguments.env)
histories = arguments.data or out / "histories"
if arguments.data is None:
    run_collection(arguments.env, histories, steps_per_task=arguments.steps_per_task)
table = Table("option", "episode 1", "last episodes", "normalized", "best update")
for option in arguments.only:
    dataset, _, trainings = option.rpartition(":")
    changes = {name: value for training in trainings.split("+") for name, value in TRAININGS[training].items()}
    if dataset:
        regenerate(histories, out / dataset, RegenerationConfig(**DATASETS[dataset]))
    preset = distillation_preset(arguments.env, "laptop")
    changes["episodes"] = max(1, round(changes.get("episodes", 1) * preset.episodes))
    changes["batch_size"] = preset.batch_size * preset.episodes // changes["episodes"]
    changes |= {"updates": arguments.updates, "seed": arguments.seed, "name": re.sub("[:+]", "-", option)}
    folder, data = out / changes["name"], out / dataset if dataset else histories
    trained = run_training(arguments.env, data, folder, **changes)
    result = evaluate(InContextAgent.from_pretrained(folder), subset="val")
    result.save(out / f"{folder.name}.json")
    shown = (result.summary[key] for key in ("first_return", "final_return", "final_normalized"))
    table.add_row(option, *map(quoted, shown), str(trained.best_update))
    Console(width=140).print(table)

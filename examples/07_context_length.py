"""How much context does learning take? Trains small agents of several context lengths and lets each meet unseen goals.

A transformer sees no further back than its context; a Mamba is trained on sequences of that length and remembers as
long as it likes. All get the same number of updates and of tokens an update, from one teacher. Some hours on two cores
with the defaults; the same command goes on where it was interrupted. --updates 20 --steps-per-task 5000 shows the way.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from icrl_agents import InContextAgent, task_split
from icrl_agents.evaluation import LAST_EPISODES, rollout
from icrl_agents.training.on_policy import OnPolicyConfig
from icrl_agents.training.pipeline import run_training
from icrl_agents.training.sources.presets import run_collection

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("runs/context"))
parser.add_argument(
    "--contexts", type=int, nargs="+", default=[50, 150, 500, 2_000], help="in steps; an episode has 50"
)
parser.add_argument("--backbones", nargs="+", default=["mamba", "transformer"], choices=["mamba", "transformer"])
parser.add_argument("--steps-per-task", type=int, help="of the teacher; default: the preset's")
parser.add_argument("--updates", type=int, default=400)
parser.add_argument("--tokens", type=int, default=16_000, help="an update")
parser.add_argument("--episodes", type=int, default=40, help="of the evaluation")
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()

ENV_ID, HORIZON = "icrl/ReacherGoal-v0", 50
OPTIONS = {
    "mamba": {"d_model": 64, "n_layers": 2},
    "transformer": {"d_model": 64, "n_layers": 2, "n_heads": 4, "d_ff": 128},
}
teacher = arguments.out / "teacher"
run_collection(ENV_ID, teacher, source="task-informed", steps_per_task=arguments.steps_per_task, seed=arguments.seed)

table = Table("backbone", "context", "episode 1", f"last {LAST_EPISODES} of {arguments.episodes}")
for backbone in arguments.backbones:
    for context in arguments.contexts:
        folder = arguments.out / f"{backbone}-{context}"
        episodes = max(1, context // HORIZON)
        run_training(
            ENV_ID,
            teacher,
            folder,
            name=folder.name,
            backbone=backbone,
            method="on-policy",
            backbone_options={
                **OPTIONS[backbone],
                **({"context_length": context} if backbone == "transformer" else {}),
            },
            episodes=episodes,
            batch_size=max(1, arguments.tokens // (episodes * HORIZON)),
            on_policy=OnPolicyConfig(short_episodes=min(10, episodes)),
            updates=arguments.updates,
            seed=arguments.seed,
        )
        agent = InContextAgent.from_pretrained(folder)
        returns = rollout(agent, task_split(ENV_ID).val, arguments.episodes, seed=0).returns.mean(0)
        first, last = f"{returns[0]:.2f}", f"{returns[-LAST_EPISODES:].mean():.2f}"
        table.add_row(backbone, str(context), first, last)
        print(f"{backbone} of context {context}: episode 1 returns {first}, the last {LAST_EPISODES} {last}")
Console().print(table)

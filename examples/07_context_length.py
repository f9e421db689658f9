"""How much context does learning take? Trains small agents of several context lengths and lets each meet unseen tasks.

A transformer sees no further back than its context; a Mamba is trained on sequences of that length and forgets
gradually. All get the same number of updates and, unless one sequence has more, of tokens an update, from one teacher.
The returns go into --out as JSON and as a figure, beside those of earlier calls. Some hours on two cores with the
defaults; the same command goes on where it was interrupted. --updates 20 --steps-per-task 5000 shows the way.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from icrl_agents import InContextAgent, task_split
from icrl_agents.atomic import write_text_atomically
from icrl_agents.envs import env_definition, resolve_env_id, short_name
from icrl_agents.evaluation import LAST_EPISODES, rollout
from icrl_agents.training.on_policy import OnPolicyConfig
from icrl_agents.training.pipeline import run_training
from icrl_agents.training.sources.presets import run_collection

STYLES = {"mamba": "-", "transformer": "--"}
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--env", default="reacher-goal")
parser.add_argument("--out", type=Path, help="default: runs/context/ENV")
parser.add_argument("--data", type=Path, help="a teacher that was collected before; default: collect one into --out")
parser.add_argument("--contexts", type=int, nargs="+", default=[1, 3, 10, 40], help="in episodes")
parser.add_argument("--backbones", nargs="+", default=list(STYLES), choices=list(STYLES))
parser.add_argument("--steps-per-task", type=int, help="of the teacher; default: the preset's")
parser.add_argument("--updates", type=int, default=400)
parser.add_argument("--tokens", type=int, default=16_000, help="an update")
parser.add_argument("--episodes", type=int, default=40, help="of the evaluation")
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()
seed, env_id = arguments.seed, resolve_env_id(arguments.env)
horizon, out = env_definition(env_id).horizon, arguments.out or Path("runs/context") / short_name(env_id)
record, own = out / "context.json", ("out", "contexts", "backbones")
settings = {name: str(value) for name, value in vars(arguments).items() if name not in own}  # of all curves
earlier = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {"settings": settings, "returns": {}}
if earlier["settings"] != settings:
    raise SystemExit(f"{record} is of {earlier['settings']}, not of {settings}; choose another --out")
found = {backbone: {int(k): curve for k, curve in curves.items()} for backbone, curves in earlier["returns"].items()}
teacher = arguments.data or out / "teacher"
if arguments.data is None:
    run_collection(env_id, teacher, source="task-informed", steps_per_task=arguments.steps_per_task, seed=seed)
for backbone in arguments.backbones:
    for episodes in arguments.contexts:
        folder = out / f"{backbone}-{episodes}"
        options = {"d_model": 64, "n_layers": 2}
        if backbone == "transformer":
            options |= {"n_heads": 4, "d_ff": 128, "context_length": episodes * horizon}
        changes = {"backbone_options": options, "episodes": episodes, "updates": arguments.updates, "seed": seed}
        changes |= {"batch_size": max(1, arguments.tokens // (episodes * horizon)), "name": folder.name}
        changes |= {"on_policy": OnPolicyConfig(short_episodes=min(10, episodes))}
        run_training(env_id, teacher, folder, backbone=backbone, method="on-policy", **changes)
        agent = InContextAgent.from_pretrained(folder)
        returns = rollout(agent, task_split(env_id).val, arguments.episodes, seed=0).returns.mean(0)  # [E]
        found.setdefault(backbone, {})[episodes] = returns.tolist()
        last = f"the last {LAST_EPISODES} {returns[-LAST_EPISODES:].mean():.2f}"
        print(f"{backbone} of context {episodes}: episode 1 returns {returns[0]:.2f}, {last}")

by_context, by_episode = (figure := Figure(figsize=(11, 4), layout="constrained")).subplots(1, 2)
contexts = sorted({context for curves in found.values() for context in curves})
for backbone, curves in found.items():
    curves = dict(sorted(curves.items()))
    lasts = [sum(curve[-LAST_EPISODES:]) / len(curve[-LAST_EPISODES:]) for curve in curves.values()]
    by_context.plot([contexts.index(context) for context in curves], lasts, "o-", label=backbone)
    for episodes, curve in curves.items():
        by_episode.plot(range(1, len(curve) + 1), curve, STYLES[backbone], label=f"{backbone}, context {episodes}")
by_context.set_xticks(range(len(contexts)), contexts)
by_context.set(xlabel="context in episodes", ylabel=f"return, last {LAST_EPISODES} episodes")
by_context.legend()
by_episode.set(xlabel="episode of an unseen task", ylabel="return")
by_episode.legend(loc="center left", bbox_to_anchor=(1, 0.5))
figure.suptitle(f"{arguments.env}: {len(task_split(env_id).val)} val tasks, {arguments.updates} updates, seed {seed}")
figure.savefig(out / "context.png", dpi=150)
write_text_atomically(record, json.dumps({"settings": settings, "returns": found}))
print(f"picture: {out / 'context.png'}")

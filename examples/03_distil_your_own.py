"""Collect learning histories, distil an agent from them and evaluate it: the whole path in three calls."""

import argparse
from dataclasses import replace
from pathlib import Path

from icrl_agents import InContextAgent
from icrl_agents.envs import task_split
from icrl_agents.evaluation import rollout
from icrl_agents.training.collection import CollectionConfig, collect
from icrl_agents.training.distillation import train
from icrl_agents.training.presets import distillation_preset

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("runs/own"))
parser.add_argument("--steps-per-task", type=int, default=100_000)
parser.add_argument("--updates", type=int, default=600)
parser.add_argument("--keep-every", type=int, default=10)
parser.add_argument("--episodes", type=int, default=40)
arguments = parser.parse_args()

env_id = "icrl/ReacherGoal-v0"
histories = collect(CollectionConfig(env_id, steps_per_task=arguments.steps_per_task), arguments.out / "histories")
print(f"{len(histories)} histories; the best source returns {max(histories.manifest.progress.final_returns):.2f}")

config = replace(
    distillation_preset(env_id, "laptop", "mamba"),
    name="own-agent",
    target="source_mean",  # what the source meant to do, without its exploration noise
    updates=arguments.updates,
    keep_every=arguments.keep_every,
    episodes=arguments.episodes,
)
train(config, arguments.out / "histories", arguments.out / "agent")

agent = InContextAgent.from_pretrained(arguments.out / "agent")
returns = rollout(agent, task_split(env_id).val, arguments.episodes, seed=0).returns.mean(0)
print(f"unseen goals: episode 1 returns {returns[0]:.2f}, the last {returns[-1]:.2f}")

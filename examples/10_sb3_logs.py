"""Distil your own stable-baselines3 runs: a recorder around the VecEnv, one run a task, one dataset of them all.

The recorder sees every step as the environment does, so any SB3 algorithm can be recorded. Some minutes with the
defaults, which show the way; the agent of so few updates does not learn in context yet.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from icrl_agents import InContextAgent, task_split
from icrl_agents.evaluation import rollout
from icrl_agents.training.collection import CollectionConfig, collection_manifest
from icrl_agents.training.distillation import DistillationConfig, train
from icrl_agents.training.histories import HistoryWriter
from icrl_agents.training.sources.sb3 import HistoryRecorder

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("runs/sb3-logs"))
parser.add_argument("--tasks", type=int, default=4, help="runs, one on each of the first training tasks")
parser.add_argument("--steps", type=int, default=20_000, help="of each run")
parser.add_argument("--streams", type=int, default=4, help="environments of a run")
parser.add_argument("--updates", type=int, default=20, help="of the distillation")
parser.add_argument("--episodes", type=int, default=10, help="of the evaluation")
arguments = parser.parse_args()

ENV_ID, HORIZON = "icrl/ReacherGoal-v0", 50
ROLLOUT = 10 * HORIZON  # steps of an environment between two updates of PPO; whole episodes
tasks = task_split(ENV_ID).train[: arguments.tasks]


def record(task: dict) -> tuple[list[dict[str, np.ndarray]], float]:
    """One PPO run: the steps of its streams, roll-out by roll-out, and what its final policy returns."""
    shards: list[dict[str, np.ndarray]] = []
    envs = DummyVecEnv([lambda: gymnasium.make(ENV_ID, task=task) for _ in range(arguments.streams)])
    recorder = HistoryRecorder(envs, ROLLOUT, lambda arrays, state: shards.append(arrays))
    recorder.model = model = PPO(
        "MlpPolicy", recorder, n_steps=ROLLOUT, batch_size=100, gamma=0.95, seed=0, device="cpu"
    )
    model.learn(arguments.steps)
    returned, _ = evaluate_policy(model, gymnasium.make(ENV_ID, task=task), 10, warn=False)
    return shards, float(returned)


manifest = replace(
    collection_manifest(CollectionConfig(ENV_ID, streams=arguments.streams)),
    tasks=tuple(tasks),
    subset=f"train[:{len(tasks)}]",
    source="my PPO",
    hyperparameters={"n_steps": ROLLOUT, "batch_size": 100, "gamma": 0.95, "steps": arguments.steps},
)
with HistoryWriter.create_or_resume(arguments.out / "data", manifest) as writer:
    if not writer.complete:
        runs, final_returns = zip(*(record(task) for task in tasks), strict=True)
        for parts in list(zip(*runs, strict=True))[writer.steps // ROLLOUT :]:  # of every run, history after history
            writer.append({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, {})
        writer.finish(final_returns)
print(f"{len(tasks)} runs recorded; their final policies return {np.mean(writer.manifest.progress.final_returns):.2f}")

small = {"backbone_options": {"d_model": 64, "n_layers": 2}, "batch_size": 4, "episodes": 20, "keep_every": 5}
config = DistillationConfig("my-agent", ENV_ID, target="source_mean", updates=arguments.updates, warmup=5, **small)
agent = InContextAgent.from_pretrained(train(config, arguments.out / "data", arguments.out / "agent").directory)
returns = rollout(agent, task_split(ENV_ID).val, arguments.episodes, seed=0).returns.mean(0)
print(f"the agent on unseen goals: episode 1 returns {returns[0]:.2f}, the last {returns[-1]:.2f}")

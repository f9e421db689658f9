"""Environment steps per second of task-parallel PPO (laptop preset, store included) beside stable-baselines3's PPO."""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import gymnasium
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from icrl_agents.training.collection import collect
from icrl_agents.training.sources.presets import PAPER_SB3, collection_preset

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--env-id", default="icrl/ReacherGoal-v0")
parser.add_argument("--steps-per-task", type=int, default=20_000)
parser.add_argument("--sb3-steps", type=int, default=25_000)
arguments = parser.parse_args()

config = replace(collection_preset(arguments.env_id, "laptop"), steps_per_task=arguments.steps_per_task)
with tempfile.TemporaryDirectory() as folder:
    started = time.perf_counter()
    dataset = collect(config, Path(folder), quiet=True)
    ours = len(dataset) * dataset.manifest.progress.steps / (time.perf_counter() - started)

envs = DummyVecEnv([lambda: gymnasium.make(arguments.env_id) for _ in range(config.streams)])
started = time.perf_counter()
PPO("MlpPolicy", envs, device="cpu", **PAPER_SB3["sb3-ppo"]).learn(arguments.sb3_steps)
theirs = arguments.sb3_steps / (time.perf_counter() - started)
print(f"threads: {torch.get_num_threads()}")
print(f"task-parallel PPO, {len(dataset.manifest.tasks)} tasks, store included: {ours:9,.0f} env steps/s")
print(f"stable-baselines3 PPO (the paper's table 1), one task:   {theirs:9,.0f} env steps/s")
print(f"ratio: {ours / theirs:.1f}")

"""How good could any policy be in Reacher-Goal? A planner that knows goal and physics, in episodes of an evaluation.

It is told the goal, plans each episode from where it begins, and its torques are played in the environment: nobody who
learns can be expected to do better. Agents live through the same episodes. Ten seconds an agent.
"""

import argparse

import gymnasium
import numpy as np
from rich.console import Console
from rich.table import Table

from icrl_agents import InContextAgent, task_split
from icrl_agents.envs import load_anchors
from icrl_agents.evaluation import LAST_EPISODES, rollout
from icrl_agents.training.sources.reach_planner import STEPS, plan

ENV_ID = "icrl/ReacherGoal-v0"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--agents", nargs="*", default=["reacher-goal-mamba", "reacher-goal-transformer"])
parser.add_argument("--subset", choices=("val", "test"), default="val", help="of split paper")
parser.add_argument("--episodes", type=int, default=40, help="lived in each task, of which the last five count")
parser.add_argument("--seed", type=int, nargs="+", default=[0], help="of the initial states, one life each")
arguments = parser.parse_args()
if arguments.episodes < LAST_EPISODES:
    parser.error(f"the last {LAST_EPISODES} episodes count: at least so many")

tasks = task_split(ENV_ID).subset(arguments.subset)
goals = np.array([task["goal"] for task in tasks])
env = gymnasium.make_vec(ENV_ID, num_envs=len(tasks), tasks=tasks)
planned = np.zeros((len(arguments.seed), arguments.episodes, len(tasks)))
for returns, seed in zip(planned, arguments.seed, strict=True):
    observations, _ = env.reset(seed=seed)
    for episode in range(arguments.episodes):
        torques = np.zeros((len(tasks), STEPS, 2), np.float32)
        if episode >= arguments.episodes - LAST_EPISODES:
            angles = np.arctan2(observations[:, 2:4], observations[:, :2])
            torques = plan(angles, observations[:, 4:6], goals).torques.clip(-1, 1).astype(np.float32)
        for step in range(STEPS):
            observations, rewards, *_ = env.step(torques[:, step])
            returns[episode] += rewards
env.close()

lived = {"the planner": planned[:, -LAST_EPISODES:].mean((0, 1))}
for name in arguments.agents:
    agent = InContextAgent.from_pretrained(name)
    lives = [rollout(agent, tasks, arguments.episodes, seed).returns[:, -LAST_EPISODES:] for seed in arguments.seed]
    lived[name] = np.mean(lives, (0, 2))
anchors = load_anchors(ENV_ID, "paper").of(arguments.subset)
blind, oracle = np.array(anchors["blind"]), np.array(anchors["oracle"])
table = Table(f"last {LAST_EPISODES} episodes, mean over tasks", "return", "mean of ratios", "worst and best task")
for name, finals in lived.items():
    ratios = (finals - blind) / (oracle - blind)
    table.add_row(name, f"{finals.mean():.3f}", f"{ratios.mean():.3f}", f"{ratios.min():.2f} to {ratios.max():.2f}")
table.add_row("oracle, in other episodes", f"{oracle.mean():.3f}", "1.000", "")
Console().print(table)

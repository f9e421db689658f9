"""stable-baselines3's evaluate_policy on an in-context agent: the observation tells it what SB3 does not pass on.

SB3 hands its policies no rewards, and says at every episode that memory should go. ExperienceObservation puts the last
transition into the observation, in the layout that the agents read, and predict keeps its memory over episodes.
A few seconds.
"""

import argparse

import numpy as np
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor

from icrl_agents import ExperienceObservation, InContextAgent, VectorExperienceObservation, sample_tasks
from icrl_agents.sb3 import MetaVecEnv

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--agent", default="reacher-goal-mamba", help="bundled name, directory or Hub id")
parser.add_argument("--tasks", type=int, default=10)
parser.add_argument("--episodes", type=int, default=5, help="of each task")
parser.add_argument("--seed", type=int, default=0, help="of the tasks")
arguments = parser.parse_args()

agent = InContextAgent.from_pretrained(arguments.agent)
tasks = sample_tasks(agent.config.env_id, arguments.tasks, arguments.seed)

# One task after the other: every call of evaluate_policy begins with an empty memory.
returns = []
for task in tasks:
    env = Monitor(ExperienceObservation(agent.make_env(task=task)))
    episode_returns, _ = evaluate_policy(agent, env, arguments.episodes, return_episode_rewards=True)
    returns.append(episode_returns)
for episode, mean in enumerate(np.mean(returns, axis=0)):
    print(f"episode {episode + 1}: mean return over {len(tasks)} tasks {mean:6.2f}")

# All tasks at once, one row each.
rows = VectorExperienceObservation(agent.make_vec_env(len(tasks), tasks=tasks))
mean, deviation = evaluate_policy(agent, VecMonitor(MetaVecEnv(rows)), len(tasks) * arguments.episodes)
print(f"all rows at once, over all episodes: {mean:.2f} +- {deviation:.2f}")

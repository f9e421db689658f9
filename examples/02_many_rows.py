"""Sixty-four tasks at once: one vector environment, one agent, one memory a row."""

import argparse
import time

import numpy as np

from icrl_agents import InContextAgent, sample_tasks

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--agent", default="reacher-goal-mamba", help="bundled name, directory or Hub id")
parser.add_argument("--rows", type=int, default=64)
parser.add_argument("--episodes", type=int, default=5)
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()

agent = InContextAgent.from_pretrained(arguments.agent)
tasks = sample_tasks(agent.config.env_id, arguments.rows, arguments.seed)
env = agent.make_vec_env(arguments.rows, tasks=tasks)
agent.reset(env=env)
observations, _ = env.reset(seed=arguments.seed)
started, steps = time.perf_counter(), arguments.episodes * agent.config.episode_steps
returns = np.zeros(arguments.rows)
for step in range(1, steps + 1):
    actions = agent.act(observations)
    observations, rewards, terminated, truncated, _ = env.step(actions)
    agent.observe(rewards, terminated, truncated)
    returns += rewards
    if truncated.all():
        print(f"episode {step // agent.config.episode_steps}: mean return over rows {returns.mean():6.2f}")
        returns[:] = 0.0
print(f"{arguments.rows * steps / (time.perf_counter() - started):,.0f} steps/s, environment and agent together")

"""Sixty-four tasks at once: one vector environment, one agent, one memory a row."""

import argparse
import time

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
started = time.perf_counter()
lived = agent.run_episodes(env, arguments.episodes, seed=arguments.seed)  # returns and lengths [rows, episodes]
seconds = time.perf_counter() - started
for episode, returns in enumerate(lived.returns.T, 1):
    print(f"episode {episode}: mean return over rows {returns.mean():6.2f}")
print(f"{lived.lengths.sum() / seconds:,.0f} steps/s, environment and agent together")

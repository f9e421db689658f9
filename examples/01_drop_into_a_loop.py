"""A pretrained agent in the Gymnasium loop you already have: it finds a hidden goal by itself."""

import argparse

from icrl_agents import InContextAgent

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--agent", default="reacher-goal-mamba", help="bundled name, directory or Hub id")
parser.add_argument("--episodes", type=int, default=10)
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()

agent = InContextAgent.from_pretrained(arguments.agent)
env = agent.make_env()
agent.reset()  # a new task: forget everything
observation, _ = env.reset(seed=arguments.seed)  # the seed draws a goal; the agent is not told
for episode in range(arguments.episodes):
    episode_return, done = 0.0, False
    while not done:
        action = agent.act(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        agent.observe(reward, terminated, truncated)
        episode_return += float(reward)
        done = terminated or truncated
    observation, _ = env.reset()  # next episode, same task: the agent keeps what it learned
    print(f"episode {episode + 1:2d}: return {episode_return:6.2f}")

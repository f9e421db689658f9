"""What do five demonstrated episodes buy? prefill lets an agent live through an expert's experience before its own.

The expert is the same agent after it has found the task out by itself, in --expert-episodes of its own; of those the
last five are shown to a twin that knows nothing. A few seconds.
"""

import argparse
from types import SimpleNamespace

import numpy as np

from icrl_agents import InContextAgent, sample_tasks

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--agent", default="reacher-goal-mamba", help="bundled name, directory or Hub id")
parser.add_argument("--tasks", type=int, default=30)
parser.add_argument("--demonstrations", type=int, default=5, help="episodes shown")
parser.add_argument(
    "--expert-episodes", type=int, default=40, help="that the expert learned in, the shown ones included"
)
parser.add_argument("--episodes", type=int, default=10, help="that the agents then live themselves")
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()
if not 0 < arguments.demonstrations < arguments.expert_episodes:
    parser.error("the expert shows at least one of its episodes, and not its first")

agent = InContextAgent.from_pretrained(arguments.agent)
tasks = sample_tasks(agent.config.env_id, arguments.tasks, arguments.seed)
env = agent.make_vec_env(len(tasks), tasks=tasks)
FIELDS = ("observations", "actions", "rewards", "terminated", "truncated")


def record(steps: int, seed: int) -> SimpleNamespace:
    """What the agent experiences from its next episode on, arrays [rows, steps, ...]."""
    recorded = {name: [] for name in FIELDS}
    observations, _ = env.reset(seed=seed)
    agent.begin_episode()
    for _ in range(steps):
        actions = agent.act(observations)
        following, rewards, terminated, truncated, _ = env.step(actions)
        agent.observe(rewards, terminated, truncated)
        for name, now in zip(FIELDS, (observations, actions, rewards, terminated, truncated), strict=True):
            recorded[name].append(now)
        observations = following
    return SimpleNamespace(**{name: np.stack(steps, 1) for name, steps in recorded.items()})


learned = agent.run_episodes(env, arguments.expert_episodes - arguments.demonstrations, seed=arguments.seed)
demonstrations = record(arguments.demonstrations * agent.config.episode_steps, arguments.seed + 1)
shown = demonstrations.rewards.sum(1).mean() / arguments.demonstrations
first = learned.returns[:, 0].mean()
print(f"the expert: episode 1 {first:.2f}; the {arguments.demonstrations} episodes it shows {shown:.2f}")

alone = agent.run_episodes(env, arguments.episodes, seed=arguments.seed + 2).returns.mean(0)
agent.reset(env=env)
agent.prefill(demonstrations)
helped = agent.run_episodes(env, arguments.episodes, seed=arguments.seed + 2, remember=True).returns.mean(0)
for episode, (without, with_them) in enumerate(zip(alone, helped, strict=True)):
    print(f"episode {episode + 1:2d}: alone {without:6.2f}, after them {with_them:6.2f}")

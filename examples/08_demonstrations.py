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

agent = InContextAgent.from_pretrained(arguments.agent)
tasks = sample_tasks(agent.config.env_id, arguments.tasks, arguments.seed)
env = agent.make_vec_env(len(tasks), tasks=tasks)
FIELDS = ("observations", "actions", "rewards", "terminated", "truncated")


def live(episodes: int, seed: int, record: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Mean return per episode, and the experience [B, T, ...] of the last so many."""
    horizon = agent.config.episode_steps
    returns, recorded = np.zeros(episodes), {name: [] for name in FIELDS}
    observations, _ = env.reset(seed=seed)
    for step in range(episodes * horizon):
        actions = agent.act(observations)
        following, rewards, terminated, truncated, _ = env.step(actions)
        agent.observe(rewards, terminated, truncated)
        if step >= (episodes - record) * horizon:
            for name, now in zip(FIELDS, (observations, actions, rewards, terminated, truncated), strict=True):
                recorded[name].append(now)
        returns[step // horizon] += rewards.mean()
        observations = following
    return returns, {name: np.stack(steps, 1) for name, steps in recorded.items() if steps}


agent.reset(env=env)
expert, demonstrations = live(arguments.expert_episodes, arguments.seed, arguments.demonstrations)
shown = demonstrations["rewards"].sum(1).mean() / arguments.demonstrations
print(f"the expert: episode 1 {expert[0]:.2f}; the {arguments.demonstrations} episodes it shows {shown:.2f}")

agent.reset(env=env)
alone, _ = live(arguments.episodes, arguments.seed + 1)
agent.reset(env=env)
agent.prefill(SimpleNamespace(**demonstrations))
helped, _ = live(arguments.episodes, arguments.seed + 1)
for episode, (without, with_them) in enumerate(zip(alone, helped, strict=True)):
    print(f"episode {episode + 1:2d}: alone {without:6.2f}, after them {with_them:6.2f}")

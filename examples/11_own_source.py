"""A source of your own: a learning algorithm written by hand whose histories are distilled, task by task, step by step.

An evolution strategy on linear policies: in every episode each stream of a task tries its own variation, and the mean
moves towards those that did well. HistoryWriter.append takes whole episodes of every history. 40 s of CPU with the
defaults, which show the way; the agent of so few updates does not learn in context yet.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np

from icrl_agents import InContextAgent, task_split
from icrl_agents.evaluation import rollout
from icrl_agents.training.collection import CollectionConfig, collection_manifest
from icrl_agents.training.distillation import DistillationConfig, train
from icrl_agents.training.histories import HistoryWriter

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("runs/own-source"))
parser.add_argument("--tasks", type=int, default=10, help="the first so many training tasks")
parser.add_argument("--streams", type=int, default=16, help="variations of an episode; even")
parser.add_argument("--source-episodes", type=int, default=100)
parser.add_argument("--updates", type=int, default=20, help="of the distillation")
parser.add_argument("--episodes", type=int, default=10, help="of the evaluation")
arguments = parser.parse_args()

ENV_ID, HORIZON = "icrl/ReacherGoal-v0", 50
FIELDS = ("observations", "actions", "mean_actions", "rewards", "terminated", "truncated")
SPREAD, RATE = 0.1, 0.2  # of the variations; how far the mean follows them
K, S = arguments.tasks, arguments.streams
tasks = task_split(ENV_ID).train[:K]
manifest = replace(
    collection_manifest(CollectionConfig(ENV_ID, streams=S)),
    tasks=tuple(tasks),
    source="evolution strategy",
    hyperparameters={"spread": SPREAD, "rate": RATE, "episodes": arguments.source_episodes},
)


def learn(writer: HistoryWriter) -> None:
    """Run the algorithm on all tasks at once, one row a stream, and write every episode."""
    env = gymnasium.make_vec(ENV_ID, num_envs=K * S, tasks=[task for task in tasks for _ in range(S)])
    inputs, outputs = manifest.observation_dim + 1, manifest.action_dim
    mean, rng = np.zeros((K, 1, inputs, outputs)), np.random.default_rng(0)
    observations, _ = env.reset(seed=0)
    for _ in range(arguments.source_episodes):
        noise = rng.standard_normal((K, S // 2, inputs, outputs))
        noise = np.concatenate([noise, -noise], axis=1)  # mirrored: half the variance
        varied = (mean + SPREAD * noise).reshape(-1, inputs, outputs)
        unvaried = np.repeat(mean[:, 0], S, axis=0)
        steps = []
        for _ in range(HORIZON):
            features = np.concatenate([observations, np.ones((K * S, 1))], axis=1)[:, None]
            actions, means = (np.clip(features @ of, -1, 1)[:, 0].astype(np.float32) for of in (varied, unvaried))
            following, rewards, terminated, truncated, info = env.step(actions)
            steps.append((observations, actions, means, rewards, terminated, truncated))
            observations = following
        arrays = {name: np.stack(part, axis=1) for name, part in zip(FIELDS, zip(*steps, strict=True), strict=True)}
        writer.append({**arrays, "final_observations": np.stack(info["final_obs"])[:, None]}, {})
        returns = arrays["rewards"].sum(1).reshape(K, S)
        advantage = (returns - returns.mean(1, keepdims=True)) / (returns.std(1, keepdims=True) + 1e-6)
        mean += RATE * np.einsum("ks,ksio->kio", advantage, noise)[:, None] / S
    writer.finish(returns.mean(1))


with HistoryWriter.create_or_resume(arguments.out / "data", manifest) as writer:
    if writer.steps and not writer.complete:
        raise SystemExit(f"{arguments.out} holds an interrupted run, which cannot go on: choose another --out")
    if not writer.complete:
        learn(writer)
print(f"{K} tasks; in its last episodes the source returns {np.mean(writer.manifest.progress.final_returns):.2f}")
small = {"backbone_options": {"d_model": 64, "n_layers": 2}, "batch_size": 4, "episodes": 20, "keep_every": 5}
config = DistillationConfig("own-agent", ENV_ID, target="source_mean", updates=arguments.updates, warmup=5, **small)
agent = InContextAgent.from_pretrained(train(config, arguments.out / "data", arguments.out / "agent").directory)
by_episode = rollout(agent, task_split(ENV_ID).val, arguments.episodes, seed=0).returns.mean(0)
print(f"the agent on unseen goals: episode 1 returns {by_episode[0]:.2f}, the last {by_episode[-1]:.2f}")

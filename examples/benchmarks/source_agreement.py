"""Learning curves of task-parallel sources beside those of stable-baselines3, on one task with equal hyper-parameters.

Bands are the spread over seeds. The seeds of a task-parallel source learn as one batched program. SAC and DroQ are the
same algorithms on both sides; task-parallel PPO normalises observations and rewards, which VecNormalize does for SB3's.
"""

import argparse
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import gymnasium
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from icrl_agents.envs import env_definition, resolve_env_id, task_split
from icrl_agents.training.collection import CollectionConfig, OnPolicySource, Source, make_rows
from icrl_agents.training.sources.off_policy import OffPolicySource
from icrl_agents.training.sources.paper import sb3_options
from icrl_agents.training.sources.presets import collection_preset
from icrl_agents.training.sources.sb3 import ALGORITHMS

COMPARED = ("ppo", "sac", "droq")
POINTS = 25
"""Of a curve, at most."""


Episodes = tuple[np.ndarray, np.ndarray]
"""Environment steps of a learner by which each episode had ended, and its return."""


def task_parallel(config: CollectionConfig, task_index: int, seeds: int) -> list[Episodes]:
    """All seeds as one batched program."""
    tasks = [task_split(config.env_id).train[task_index]] * seeds
    env = make_rows(config.env_id, tasks, config.streams)
    vectors = np.stack([env.definition.task_vector(task) for task in tasks])
    observations, _ = env.reset(seed=0)
    source: Source
    if config.sac is None:
        iterations = config.shared_steps // config.ppo.n_steps
        source = OnPolicySource(config.ppo, env, observations, vectors, range(seeds), iterations)
    else:
        source = OffPolicySource(config.sac, env, observations, vectors, range(seeds), config.steps)
    recordings = [source.advance(config.interval) for _ in range(config.steps // config.interval)]
    rewards, terminated, truncated = (
        np.concatenate([recording.arrays[name] for recording in recordings], 1)
        for name in ("rewards", "terminated", "truncated")
    )
    sums = rewards.cumsum(1, np.float64)
    results = []
    for first in range(0, len(rewards), config.streams):
        parts = []
        for row in range(first, first + config.streams):
            ends = np.flatnonzero(terminated[row] | truncated[row])
            parts.append((ends + 1, np.diff(sums[row, ends], prepend=0.0)))
        results.append(_joined(parts))
    return results


def stable_baselines3(algorithm: str, config: CollectionConfig, task_index: int, seeds: int) -> list[Episodes]:
    """The same of SB3, one run a seed, as many at a time as there are cores."""
    runs = [(algorithm, replace(config, seed=seed), task_index) for seed in range(seeds)]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(torch.get_num_threads(), spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(_run_of_sb3, *zip(*runs, strict=True)))


def _run_of_sb3(algorithm: str, config: CollectionConfig, task_index: int) -> Episodes:
    task = task_split(config.env_id).train[task_index]
    monitors = [Monitor(gymnasium.make(config.env_id, task=task)) for _ in range(config.streams)]
    envs: VecEnv = DummyVecEnv([lambda m=m: m for m in monitors])  # type: ignore[misc]
    if config.sac is None:
        ppo = config.ppo
        envs = VecNormalize(envs, gamma=ppo.gamma)  # task-parallel PPO normalises observations and rewards, too
        options = {
            name: getattr(ppo, name)
            for name in ("n_steps", "n_epochs", "learning_rate", "gamma", "gae_lambda", "clip_range", "ent_coef")
        }
        options["batch_size"] = ppo.n_steps * config.streams // ppo.n_minibatches
        options["policy_kwargs"] = {"net_arch": list(ppo.hidden), "log_std_init": ppo.log_std_init}
    else:
        options = {**sb3_options(config.sac), "policy_kwargs": {"net_arch": list(config.sac.hidden)}}
        if algorithm == "droq":
            options["policy_delay"] = config.sac.policy_delay
    model = ALGORITHMS[f"sb3-{algorithm}"]("MlpPolicy", envs, seed=config.seed, device="cpu", **options)
    model.learn(config.steps * config.streams)
    return _joined([(np.cumsum(m.get_episode_lengths()), np.array(m.get_episode_rewards())) for m in monitors])


def _joined(streams: Sequence[Episodes]) -> Episodes:
    """Those of one learner's streams."""
    ends, returns = (np.concatenate(parts) for parts in zip(*streams, strict=True))
    return ends * len(streams), returns


def curve(episodes: Episodes, edges: np.ndarray) -> np.ndarray:
    """Mean return of the episodes that end between each two edges; NaN where none does."""
    ends, returns = episodes
    number, _ = np.histogram(ends - 1, edges)
    total, _ = np.histogram(ends - 1, edges, weights=returns)
    with np.errstate(invalid="ignore"):
        return total / number


def main() -> None:
    """Learn, print and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("env", nargs="?", default="reacher-goal", help="environment")
    parser.add_argument("--task", type=int, default=0, help="training task of the split paper")
    parser.add_argument("--algorithms", nargs="+", choices=COMPARED, default=COMPARED)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="environment steps of a learner; default: the laptop preset's")
    parser.add_argument("--quick", action="store_true", help="2 seeds, 3,000 steps: does it run?")
    parser.add_argument("--out", type=Path, default=Path("out/source_agreement.png"))
    arguments = parser.parse_args()
    env_id = resolve_env_id(arguments.env)
    seeds = 2 if arguments.quick else arguments.seeds
    figure, axes = plt.subplots(1, len(arguments.algorithms), figsize=(5 * len(arguments.algorithms), 4), squeeze=False)
    for axis, algorithm in zip(axes[0], arguments.algorithms, strict=True):
        config = collection_preset(env_id, "laptop", f"task-parallel-{algorithm}")
        steps = 3_000 if arguments.quick else arguments.steps or config.steps_per_task
        ppo = replace(config.ppo, anneal=False)  # as stable-baselines3 where it is given a number
        config = replace(config, steps_per_task=steps, shard_steps=100, ppo=ppo)
        full = env_definition(env_id).horizon * config.streams  # steps in which every stream ends an episode
        edges = np.linspace(0, steps, max(1, min(POINTS, steps // full)) + 1)
        for name, learned in (
            ("task-parallel", task_parallel(config, arguments.task, seeds)),
            ("stable-baselines3", stable_baselines3(algorithm, config, arguments.task, seeds)),
        ):
            curves = np.stack([curve(episodes, edges) for episodes in learned])
            middles = (edges[1:] + edges[:-1]) / 2
            (line,) = axis.plot(middles, np.nanmean(curves, 0), label=name)
            band = np.nanmin(curves, 0), np.nanmax(curves, 0)
            axis.fill_between(middles, *band, color=line.get_color(), alpha=0.2, linewidth=0)
            last = np.array([returns[ends > 0.9 * steps].mean() for ends, returns in learned])
            spread = f"[{last.min():.2f}, {last.max():.2f}]"
            print(f"{algorithm:5} {name:18} last tenth of episodes {last.mean():8.2f} {spread}", flush=True)
        axis.set(title=algorithm, xlabel="environment steps", ylabel="return per episode")
        axis.legend()
    figure.suptitle(f"{env_id}, training task {arguments.task}\n{seeds} seeds, mean and range")
    figure.tight_layout()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=120)
    print(f"picture: {arguments.out}")


if __name__ == "__main__":
    main()

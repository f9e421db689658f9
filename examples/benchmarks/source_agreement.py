"""Learning curves of task-parallel sources beside those of stable-baselines3, on one task with equal hyper-parameters.

Bands are the spread over seeds. The seeds of a task-parallel source learn as one batched program. SAC and DroQ are the
same algorithms on both sides; task-parallel PPO also normalises observations and rewards and clips learner by learner.
"""

import argparse
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from icrl_agents.envs import resolve_env_id, task_split
from icrl_agents.training.collection import CollectionConfig, OnPolicySource, Source, make_rows
from icrl_agents.training.sources.off_policy import OffPolicySource
from icrl_agents.training.sources.paper import sb3_options
from icrl_agents.training.sources.presets import collection_preset
from icrl_agents.training.sources.sb3 import collect_sb3

ALGORITHMS = ("ppo", "sac", "droq")


def task_parallel(config: CollectionConfig, task_index: int, seeds: int) -> np.ndarray:
    """Returns of every episode ``[seeds, episodes]``, averaged over the streams of a learner."""
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
    rewards = np.concatenate([recording.arrays["rewards"] for recording in recordings], 1)
    return returns(rewards, env.definition.horizon).reshape(seeds, config.streams, -1).mean(1)


def stable_baselines3(algorithm: str, config: CollectionConfig, task_index: int, seeds: int) -> np.ndarray:
    """The same of SB3, one run a seed, as many at a time as there are cores."""
    if config.sac is not None:
        options = {**sb3_options(config.sac), "policy_kwargs": {"net_arch": list(config.sac.hidden)}}
        if algorithm == "droq":
            options["policy_delay"] = config.sac.policy_delay
    else:
        ppo = config.ppo
        options = {
            name: getattr(ppo, name)
            for name in ("n_steps", "n_epochs", "learning_rate", "gamma", "gae_lambda", "clip_range", "ent_coef")
        }
        options["batch_size"] = ppo.n_steps * config.streams // ppo.n_minibatches
        options["policy_kwargs"] = {"net_arch": list(ppo.hidden), "log_std_init": ppo.log_std_init}
    runs = [(f"sb3-{algorithm}", replace(config, seed=seed), task_index, options) for seed in range(seeds)]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(torch.get_num_threads(), spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return np.stack(list(pool.map(_run_of_sb3, *zip(*runs, strict=True))))


def _run_of_sb3(source: str, config: CollectionConfig, task_index: int, options: dict[str, Any]) -> np.ndarray:
    """Returns of one run ``[episodes]``, averaged over its streams."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = collect_sb3(source, config, folder, task_index, options, quiet=True)
        return np.mean([dataset.history(h).returns for h in range(len(dataset))], 0)


def returns(rewards: np.ndarray, horizon: int) -> np.ndarray:
    """Sums of rewards ``[H, T]`` over episodes of one length, ``[H, E]``."""
    episodes = rewards.shape[1] // horizon
    return rewards[:, : episodes * horizon].reshape(len(rewards), episodes, horizon).sum(2)


def main() -> None:
    """Learn, print and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("env", nargs="?", default="reacher-goal", help="one whose episodes never end early")
    parser.add_argument("--task", type=int, default=0, help="training task of the split paper")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=ALGORITHMS)
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
        for name, curves in (
            ("task-parallel", task_parallel(config, arguments.task, seeds)),
            ("stable-baselines3", stable_baselines3(algorithm, config, arguments.task, seeds)),
        ):
            x = np.linspace(0, steps, curves.shape[1])
            (line,) = axis.plot(x, curves.mean(0), label=name)
            axis.fill_between(x, curves.min(0), curves.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
            last = curves[:, -max(1, curves.shape[1] // 10) :].mean(1)
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

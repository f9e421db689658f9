"""Source algorithms beside stable-baselines3: task-parallel PPO in environment steps, task-parallel SAC in updates.

All cores are used on both sides: one program of task-parallel learners on all threads, as many processes of
stable-baselines3 as there are threads. ``--threads 1 --cpu-time`` compares CPU seconds of one thread with those of one
process, which says as much and does not depend on what else a machine does.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv

from icrl_agents.training.collection import CollectionConfig, collect
from icrl_agents.training.sources.presets import collection_preset
from icrl_agents.training.sources.replay import ReplayBuffer
from icrl_agents.training.sources.sac import SACConfig, TaskParallelSAC

ENV_ID = "icrl/ReacherGoal-v0"


def task_parallel_ppo(steps_per_task: int, clock: Callable[[], float]) -> float:
    """Environment steps a second of the laptop preset, store included."""
    config = replace(collection_preset(ENV_ID, "laptop"), steps_per_task=steps_per_task, shard_steps=500)
    with tempfile.TemporaryDirectory() as folder:
        started = clock()
        dataset = collect(config, Path(folder), quiet=True)
        return len(dataset) * dataset.manifest.progress.steps / (clock() - started)


def sb3_ppo(seconds: float, clock: Callable[[], float]) -> float:
    """Environment steps a second of SB3's PPO with the networks, batches and update counts of the laptop preset."""
    config: CollectionConfig = collection_preset(ENV_ID, "laptop")
    ppo = config.ppo
    envs = DummyVecEnv([lambda: gymnasium.make(ENV_ID) for _ in range(config.streams)])
    batch = ppo.n_steps * config.streams // ppo.n_minibatches
    networks = {"net_arch": list(ppo.hidden)}
    model = PPO(
        "MlpPolicy",
        envs,
        n_steps=ppo.n_steps,
        n_epochs=ppo.n_epochs,
        batch_size=batch,
        policy_kwargs=networks,
        device="cpu",
    )
    rollout = ppo.n_steps * config.streams
    model.learn(rollout)
    done, started = 0, clock()
    while clock() - started < seconds:
        model.learn(rollout, reset_num_timesteps=False)
        done += rollout
    return done / (clock() - started)


def task_parallel_sac(learners: int, width: int, seconds: float, clock: Callable[[], float]) -> float:
    """Updates a second, summed over learners: drawing a batch, critics, actor, temperature, targets."""
    config = SACConfig(learning_starts=0, hidden=(width, width))
    learner = TaskParallelSAC(config, 8, 2, range(learners), 1)
    replay = ReplayBuffer(learners, 1, 2_000, 8, 2)
    observations, following = (torch.randn(learners, 1, 2_000, 8) for _ in range(2))
    actions = torch.rand(learners, 1, 2_000, 2) * 2 - 1
    replay.extend(
        observations, actions, following, torch.randn(learners, 1, 2_000), torch.zeros(learners, 1, 2_000) > 0
    )
    learner.learn(replay)
    done, started = 0, clock()
    while clock() - started < seconds:
        learner.learn(replay)
        done += learners
    return done / (clock() - started)


def sb3_sac(width: int, seconds: float, clock: Callable[[], float]) -> float:
    """Updates a second of SB3's SAC, the same ones."""
    networks = {"net_arch": [width, width]}
    model = SAC("MlpPolicy", gymnasium.make(ENV_ID), policy_kwargs=networks, learning_starts=100, device="cpu")
    model.learn(300)
    done, started = 0, clock()
    while clock() - started < seconds:
        model.train(10, 256)
        done += 10
    return done / (clock() - started)


def _process(work: Callable[..., float], arguments: tuple[Any, ...], together: Any, rates: Any) -> None:
    torch.set_num_threads(1)
    together.wait()
    rates.put(work(*arguments))


def in_processes(count: int, work: Callable[..., float], *arguments: Any) -> float:
    """The sum of what so many processes do beside each other."""
    context = multiprocessing.get_context("spawn")
    together, rates = context.Barrier(count), context.Queue()
    processes = [context.Process(target=_process, args=(work, arguments, together, rates)) for _ in range(count)]
    for process in processes:
        process.start()
    total = sum(rates.get() for _ in processes)
    for process in processes:
        process.join()
    return total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of ours, and processes of stable-baselines3")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU seconds instead of those on the wall")
    parser.add_argument("--learners", type=int, default=70, help="of task-parallel SAC")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--steps-per-task", type=int, default=10_000, help="of task-parallel PPO's 70 tasks")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    torch.set_num_threads(arguments.threads)
    per = "CPU second" if arguments.cpu_time else "second"
    print(f"{arguments.threads} threads, numbers per {per}, numpy {np.__version__}, torch {torch.__version__}")

    def measured(what: str, ours: float, theirs: float) -> None:
        print(f"{what:50} {ours:9,.0f} {theirs:9,.0f}   {ours / theirs:.2f}x", flush=True)

    print(f"{'':50} {'ours':>9} {arguments.threads}x SB3")
    measured(
        "PPO, 64 wide, env steps, ours with store",
        task_parallel_ppo(arguments.steps_per_task, clock),
        in_processes(arguments.threads, sb3_ppo, arguments.seconds, clock),
    )
    for width in (64, 256):
        measured(
            f"SAC, {width} wide, batch 256, updates",
            task_parallel_sac(arguments.learners, width, arguments.seconds, clock),
            in_processes(arguments.threads, sb3_sac, width, arguments.seconds, clock),
        )


if __name__ == "__main__":
    main()

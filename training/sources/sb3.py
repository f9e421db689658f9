"""Runs of stable-baselines3 and sb3-contrib, one a task, into the same store as the task-parallel sources.

The recorder wraps the vector environment, so it sees what the environment sees: every step once, in order, with the
terminal observation where SB3's own autoreset hides it. It does not depend on how an algorithm is written inside.
"""

import copy
import dataclasses
import inspect
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import sb3_contrib
import stable_baselines3
import torch
from rich.progress import Progress
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from icrl_agents.errors import ConfigError, DatasetError, TaskError
from icrl_agents.training.collection import (
    EVALUATION_EPISODES,
    CollectionConfig,
    check_amount,
    collection_manifest,
    collection_progress,
    learner_seed,
)
from icrl_agents.training.histories import HistoryDataset, HistoryWriter, Manifest
from icrl_agents.training.lock import LOCK_FILE, DirectoryLock
from icrl_agents.training.sources.sb3_droq import DroQ

ALGORITHMS: Mapping[str, type[BaseAlgorithm]] = {
    "sb3-ppo": PPO,
    "sb3-sac": SAC,
    "sb3-droq": DroQ,
    "sb3-tqc": TQC,
    "sb3-crossq": CrossQ,
}

TASKS_FOLDER = "tasks"
"""Where the runs of :func:`collect_sb3_tasks` are until all of them are one dataset."""


class HistoryRecorder(VecEnvWrapper):
    """Records every step of a VecEnv and hands whole shards on.

    Args:
        venv: S environments of one task and one horizon.
        shard_steps: steps per shard.
        write: called with the arrays of each full shard and an empty state.
    """

    def __init__(
        self, venv: DummyVecEnv, shard_steps: int, write: Callable[[dict[str, np.ndarray], dict[str, np.ndarray]], None]
    ) -> None:
        super().__init__(venv)
        self.model: BaseAlgorithm | None = None
        self._shard_steps, self._write = shard_steps, write
        self._steps = 0
        self._clear()

    def reset(self) -> np.ndarray:
        """Begin episodes; a recording cannot be reset on the way."""
        self._observations = np.asarray(self.venv.reset())
        return self._observations

    def step_async(self, actions: np.ndarray) -> None:
        """Note the action and what the policy would have done without noise."""
        assert self.model is not None, "set recorder.model before learning"
        mean, _ = self.model.predict(self._observations, deterministic=True)
        self._rows["observations"].append(self._observations)
        self._rows["actions"].append(np.array(actions))
        self._rows["mean_actions"].append(np.asarray(mean))
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Note what came of it."""
        observations, rewards, dones, infos = self.venv.step_wait()
        truncated = np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        self._rows["rewards"].append(np.array(rewards))  # PPO adds the value of cut episodes to the array it gets
        self._rows["terminated"].append(dones & ~truncated)
        self._rows["truncated"].append(dones & truncated)
        for row in np.flatnonzero(dones):
            self._finals[row].append(infos[row]["terminal_observation"])
        self._observations = np.asarray(observations)
        self._steps += 1
        if self._steps % self._shard_steps == 0:
            arrays: dict[str, np.ndarray] = {
                name: np.stack(rows, 1).astype(_dtype(name)) for name, rows in self._rows.items()
            }
            ended = [final for own in self._finals for final in own]
            arrays["final_observations"] = np.array(ended, np.float32).reshape(-1, self._observations.shape[1])
            self._clear()
            self._write(arrays, {})
        return observations, rewards, dones, infos

    def _clear(self) -> None:
        names = ("observations", "actions", "mean_actions", "rewards", "terminated", "truncated")
        self._rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
        self._finals: list[list[np.ndarray]] = [[] for _ in range(self.num_envs)]


def collect_sb3(
    algorithm: str,
    config: CollectionConfig,
    directory: str | Path,
    task_index: int,
    options: Mapping[str, Any],
    *,
    seed: int | None = None,
    quiet: bool = False,
) -> HistoryDataset:
    """Train one SB3 algorithm on one task and record every step.

    SB3 cannot save a run half way without pickle, so a run that was interrupted has to begin again in a new folder.

    Args:
        algorithm: one of :data:`ALGORITHMS`.
        config: environment, split, subset, steps, streams and seed; its own algorithm is not looked at.
        directory: of the dataset, new.
        task_index: which task of the subset.
        options: keyword arguments of the algorithm's class.
        seed: of the learner; default: ``config.seed``, which sampled tasks are drawn by, too.
        quiet: no progress bar.

    Returns:
        The complete dataset: ``config.streams`` histories of one task.

    Raises:
        ConfigError: steps that are less than one shard, or a seed below 0.
        TaskError: the subset has no such task.
        DatasetError: the directory holds another collection, or an interrupted run.
    """
    check_amount(config)
    manifest = _manifest(algorithm, config, options)
    if not 0 <= task_index < len(manifest.tasks):
        raise TaskError(f"{config.subset} has the tasks 0 to {len(manifest.tasks) - 1}, got {task_index}")
    task = manifest.tasks[task_index]
    seed = config.seed if seed is None else seed
    manifest = dataclasses.replace(manifest, tasks=(task,), subset=f"{config.subset}[{task_index}]", seed=seed)
    with HistoryWriter.create_or_resume(directory, manifest) as writer:
        if not writer.complete:
            if writer.steps:
                raise DatasetError(f"{directory} holds an interrupted SB3 run, which cannot go on: choose a new folder")
            envs = DummyVecEnv([lambda: gymnasium.make(config.env_id, task=task) for _ in range(config.streams)])
            recorder = HistoryRecorder(envs, config.shard_steps, writer.append)
            own = copy.deepcopy(dict(options))  # SB3 writes into policy_kwargs
            model = ALGORITHMS[algorithm]("MlpPolicy", recorder, seed=seed, device="cpu", **own)
            recorder.model = model
            with collection_progress(quiet) as bar:
                callback = StepLimit(config.steps, config.streams, bar)
                model.learn(config.steps * config.streams, callback=callback)
            writer.finish([_final_return(model, config.env_id, task, seed)])
    return HistoryDataset(directory)


def collect_sb3_tasks(
    algorithm: str,
    config: CollectionConfig,
    directory: str | Path,
    options: Mapping[str, Any],
    *,
    jobs: int,
    quiet: bool = False,
) -> HistoryDataset:
    """Train one SB3 algorithm on every task of a subset, each with a seed of its own, into one dataset.

    Interrupted, the same call goes on: runs that were complete are kept, those under way begin again.

    Args:
        algorithm: one of :data:`ALGORITHMS`.
        config: as of :func:`collect_sb3`.
        directory: of the dataset; the single runs are in its folder ``tasks`` until all are there.
        options: keyword arguments of the algorithm's class.
        jobs: runs at a time, each in a process of its own if more than 1; they share the cores.
        quiet: no progress bar.

    Returns:
        The complete dataset: ``config.streams`` histories of each task.

    Raises:
        ConfigError: no jobs, steps that are less than one shard, or a seed below 0.
        DatasetError: the directory holds another collection, or another process writes there.
    """
    if jobs < 1:
        raise ConfigError(f"jobs is at least 1, got {jobs}")
    check_amount(config)
    manifest = _manifest(algorithm, config, options)
    folder = Path(directory) / TASKS_FOLDER
    with HistoryWriter.create_or_resume(directory, manifest) as writer:
        if not writer.complete:
            runs = [
                partial(_run_task, algorithm, config, folder / f"{task:05d}", task, options)
                for task in range(len(manifest.tasks))
            ]
            with collection_progress(quiet) as bar:
                shown = bar.add_task("tasks learned", total=len(runs), note="")
                for done, _ in enumerate(_in_processes(runs, jobs), 1):
                    bar.update(shown, completed=done)
                    if not bar.console.is_terminal and not quiet:
                        print(f"{done} of {len(runs)} tasks learned", flush=True)
            parts = [HistoryDataset(run.args[2]) for run in runs]
            _merge(parts, writer)
        for task in range(len(manifest.tasks)):
            shutil.rmtree(folder / f"{task:05d}", ignore_errors=True)
        with suppress(OSError):  # not there, or it holds what is not ours
            folder.rmdir()
    return HistoryDataset(directory)


def _in_processes(runs: Sequence[Callable[[], None]], jobs: int) -> Iterator[None]:
    """Do all, so many at a time; yields as often as one is done."""
    if jobs == 1:
        yield from (run() for run in runs)
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(jobs, context, _begin_worker, (threads,)) as pool:
        try:
            for future in as_completed([pool.submit(run) for run in runs]):
                yield future.result()
        except BrokenProcessPool:
            raise DatasetError("a process that learned a task was killed; the same command goes on") from None
        except Exception as error:
            pool.shutdown(wait=False, cancel_futures=True)  # what is under way is kept, and waited for
            print(f"a task failed, those under way are finished first: {error}", file=sys.stderr, flush=True)
            raise
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()  # its run would begin again anyway, and leaving waits for it
            raise


def _begin_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """A worker whose parent was killed would go on, and meet the one that the same command starts next."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_task(algorithm: str, config: CollectionConfig, directory: Path, task: int, options: Mapping[str, Any]) -> None:
    """One run of many, by a seed of its own; what was interrupted begins again."""
    if directory.exists():
        try:
            HistoryDataset(directory)
        except DatasetError:
            _delete_run(directory)
    seed = learner_seed(config.seed, task)
    collect_sb3(algorithm, config, directory, task, options, seed=seed, quiet=True)


def _delete_run(directory: Path) -> None:
    """What a run of ours left there; nothing that is not locked by us, or never was.

    Raises:
        DatasetError: another process writes there.
    """
    if not (directory / LOCK_FILE).exists():
        return
    with DirectoryLock(directory):
        for path in directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK_FILE:
                path.unlink()


def _merge(parts: list[HistoryDataset], writer: HistoryWriter) -> None:
    """Datasets of one task each, recorded in equal intervals, as one.

    Raises:
        DatasetError: one is of another task.
    """
    for part, task in zip(parts, writer.manifest.tasks, strict=True):
        if part.manifest.tasks != (task,):
            raise DatasetError(f"a run of the task {task} recorded {part.manifest.tasks}: choose another directory")
    for index in range(len(writer.manifest.progress.shards), len(parts[0].manifest.progress.shards)):
        shards = [part.shard(index) for part in parts]
        names = set(shards[0]) - {"episode_counts"}
        writer.append({name: np.concatenate([shard[name] for shard in shards]) for name in names}, {})
    writer.finish([part.manifest.progress.final_returns[0] for part in parts])


class StepLimit(BaseCallback):
    """Ends learning at a step, where SB3 itself would finish its last roll-out, and shows how far it is.

    Args:
        steps: of each environment.
        streams: environments.
        bar: shows them.
    """

    def __init__(self, steps: int, streams: int, bar: Progress) -> None:
        super().__init__()
        self._steps, self._streams, self._bar = steps, streams, bar
        self._shown = bar.add_task("collecting", total=steps * streams, note="")

    def _on_step(self) -> bool:
        self._bar.update(self._shown, completed=self.n_calls * self._streams)
        return self.n_calls < self._steps


def _final_return(model: BaseAlgorithm, env_id: str, task: Mapping[str, Any], seed: int) -> float:
    env = DummyVecEnv([lambda: gymnasium.make(env_id, task=task)])
    env.seed(seed + 1_000_000)  # apart from the seeds that it trained with
    mean, _ = evaluate_policy(model, env, EVALUATION_EPISODES, warn=False)
    return float(mean)  # type: ignore[arg-type]


def _manifest(algorithm: str, config: CollectionConfig, options: Mapping[str, Any]) -> Manifest:
    """What a dataset of runs on all tasks says about itself."""
    hyperparameters = {
        **_defaults(ALGORITHMS[algorithm]),
        **options,
        "steps_per_task": config.steps_per_task,
        "sb3": stable_baselines3.__version__,
        "sb3_contrib": sb3_contrib.__version__,
    }
    return dataclasses.replace(collection_manifest(config), source=algorithm, hyperparameters=hyperparameters)


def _defaults(algorithm: type[BaseAlgorithm]) -> dict[str, Any]:
    """The hyper-parameters that an algorithm takes where none are given, as far as JSON can hold them."""
    parameters: dict[str, inspect.Parameter] = {}
    for ancestor in algorithm.__mro__:
        own = inspect.signature(ancestor.__init__).parameters  # type: ignore[misc]
        parameters = {**own, **parameters}
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in own.values()):
            break  # it passes nothing on that it does not name
    return {name: p.default for name, p in parameters.items() if isinstance(p.default, bool | int | float | str)}


def _dtype(name: str) -> type:
    return bool if name in ("terminated", "truncated") else np.float32

"""One stable-baselines3 run on one task, through the same recorder as the task-parallel sources.

The recorder wraps the vector environment, so it sees what the environment sees: every step once, in order, with the
terminal observation where SB3's own autoreset hides it. It does not depend on how an algorithm is written inside.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3
from rich.progress import Progress
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from icrl_agents.errors import DatasetError, TaskError
from icrl_agents.training.collection import (
    EVALUATION_EPISODES,
    CollectionConfig,
    collection_manifest,
    collection_progress,
)
from icrl_agents.training.histories import HistoryDataset, HistoryWriter

ALGORITHMS: Mapping[str, type[BaseAlgorithm]] = {"sb3-ppo": PPO, "sb3-sac": SAC}


class HistoryRecorder(VecEnvWrapper):
    """Records every step of a VecEnv and hands whole shards on.

    Args:
        venv: S environments of one task and one horizon.
        shard_steps: steps per shard, a multiple of the horizon.
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
        self._rows["rewards"].append(rewards)
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
            arrays["final_observations"] = np.concatenate([np.stack(f) for f in self._finals]).astype(np.float32)
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
    quiet: bool = False,
) -> HistoryDataset:
    """Train one SB3 algorithm on one task and record every step.

    SB3 cannot save a run half way without pickle, so a run that was interrupted has to begin again in a new folder.

    Args:
        algorithm: ``"sb3-ppo"`` or ``"sb3-sac"``.
        config: environment, split, subset, steps, streams and seed; its PPO part is not looked at.
        directory: of the dataset, new.
        task_index: which task of the subset.
        options: keyword arguments of the algorithm's class.
        quiet: no progress bar.

    Returns:
        The complete dataset: ``config.streams`` histories of one task.

    Raises:
        DatasetError: the directory holds another collection, or an interrupted run.
    """
    manifest = collection_manifest(config)
    if not 0 <= task_index < len(manifest.tasks):
        raise TaskError(f"{config.subset} has the tasks 0 to {len(manifest.tasks) - 1}, got {task_index}")
    task = manifest.tasks[task_index]
    hyperparameters = {
        **_defaults(ALGORITHMS[algorithm]),
        **options,
        "steps_per_task": config.steps_per_task,
        "sb3": stable_baselines3.__version__,
    }
    manifest = dataclasses.replace(
        manifest,
        tasks=(task,),
        source=algorithm,
        hyperparameters=hyperparameters,
        subset=f"{config.subset}[{task_index}]",
    )
    with HistoryWriter.create_or_resume(directory, manifest) as writer:
        if not writer.complete:
            if writer.steps:
                raise DatasetError(f"{directory} holds an interrupted SB3 run, which cannot go on: choose a new folder")
            envs = DummyVecEnv([lambda: gymnasium.make(config.env_id, task=task) for _ in range(config.streams)])
            recorder = HistoryRecorder(envs, config.shard_steps, writer.append)
            model = ALGORITHMS[algorithm]("MlpPolicy", recorder, seed=config.seed, device="cpu", **options)
            recorder.model = model
            with collection_progress(quiet) as bar:
                callback = StepLimit(config.steps, config.streams, bar)
                model.learn(config.steps * config.streams, callback=callback)
            writer.finish([_final_return(model, config.env_id, task)])
    return HistoryDataset(directory)


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


def _final_return(model: BaseAlgorithm, env_id: str, task: Mapping[str, Any]) -> float:
    mean, _ = evaluate_policy(model, gymnasium.make(env_id, task=task), EVALUATION_EPISODES, warn=False)
    return float(mean)  # type: ignore[arg-type]


def _defaults(algorithm: type[BaseAlgorithm]) -> dict[str, Any]:
    """The hyper-parameters that an algorithm takes where none are given, as far as JSON can hold them."""
    parameters = inspect.signature(algorithm.__init__).parameters
    return {name: p.default for name, p in parameters.items() if isinstance(p.default, bool | int | float | str)}


def _dtype(name: str) -> type:
    return bool if name in ("terminated", "truncated") else np.float32

"""Synthetic learning histories: small, fast, and with values that say where they belong."""

import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import mujoco
import numpy as np
import pytest

from icrl_agents.envs import task_split
from icrl_agents.training.histories import HistoryDataset, HistoryWriter, Manifest


def invented_tasks(count: int) -> tuple[dict, ...]:
    return tuple({"goal": [float(task), 0.0]} for task in range(count))


def manifest(tasks: int | tuple[dict, ...] = 2, streams: int = 2, **changes) -> Manifest:
    """By default it fits icrl/ReacherGoal-v0, with episodes of 5 steps."""
    default = Manifest(
        env_id="icrl/ReacherGoal-v0",
        mujoco_version=mujoco.__version__,
        split="paper",
        split_hash=task_split("icrl/ReacherGoal-v0").content_hash,
        subset="train",
        tasks=tasks if isinstance(tasks, tuple) else invented_tasks(tasks),
        streams_per_task=streams,
        episode_steps=5,
        observation_dim=8,
        action_dim=2,
        source="invented",
        hyperparameters={"learning_rate": 1e-3, "sizes": (64, 64)},
        seed=0,
    )
    return dataclasses.replace(default, **changes)


def arrays(of: Manifest, ends: Sequence[Sequence[int]], steps: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A shard of random numbers; ``ends[h]`` are the steps after which an episode of history h is over."""
    random = np.random.default_rng(seed)
    shape = (of.histories, steps)
    terminated, truncated = np.zeros(shape, bool), np.zeros(shape, bool)
    for h, own in enumerate(ends):
        for e, end in enumerate(own):
            (terminated if (h + e) % 2 else truncated)[h, end - 1] = True
    return {
        "observations": random.normal(size=(*shape, of.observation_dim)).astype(np.float32),
        "actions": random.uniform(-1, 1, size=(*shape, of.action_dim)).astype(np.float32),
        "mean_actions": random.uniform(-2, 2, size=(*shape, of.action_dim)).astype(np.float32),
        "rewards": random.normal(size=shape).astype(np.float32),
        "terminated": terminated,
        "truncated": truncated,
        "final_observations": random.normal(size=(sum(map(len, ends)), of.observation_dim)).astype(np.float32),
    }


def regular(of: Manifest, episodes: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A shard in which every history has so many episodes of full length."""
    steps = episodes * of.episode_steps
    ends = [range(of.episode_steps, steps + 1, of.episode_steps)] * of.histories
    return arrays(of, ends, steps, seed)


def dataset(directory: Path, episodes: int = 8, **changes) -> HistoryDataset:
    """A complete dataset, in two shards."""
    of = manifest(**changes)
    with HistoryWriter.create_or_resume(directory, of) as writer:
        writer.append(regular(of, episodes // 2, seed=1), {})
        writer.append(regular(of, episodes - episodes // 2, seed=2), {})
        writer.finish(np.zeros(len(of.tasks)))
    return HistoryDataset(directory)


@pytest.fixture(scope="session")
def make_manifest() -> Callable[..., Manifest]:
    return manifest


@pytest.fixture(scope="session")
def make_arrays() -> Callable[..., dict[str, np.ndarray]]:
    return arrays


@pytest.fixture(scope="session")
def make_regular() -> Callable[..., dict[str, np.ndarray]]:
    return regular


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., HistoryDataset]:
    return dataset


@pytest.fixture
def whole_and_killed() -> Callable[[str, list[str], Path, Iterable[int]], None]:
    """Runs a script into ``folder/whole``, and into ``folder/killed`` with kill -9 where its log has so many rows.

    The script gets the arguments and its folder, in which it writes ``metrics.jsonl``.
    """

    def run(script: str, arguments: list[str], folder: Path, rows: Iterable[int]) -> None:
        command = [sys.executable, "-c", script, *arguments]
        subprocess.run([*command, str(folder / "whole")], check=True)
        for row in rows:
            with subprocess.Popen([*command, str(folder / "killed")]) as process:
                log, limit = folder / "killed/metrics.jsonl", time.monotonic() + 120
                while not log.exists() or len(log.read_text().splitlines()) < row:
                    assert process.poll() is None
                    assert time.monotonic() < limit
                    time.sleep(0.005)
                process.send_signal(signal.SIGKILL)
        subprocess.run([*command, str(folder / "killed")], check=True)

    return run

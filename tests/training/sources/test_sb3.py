"""Sources of stable-baselines3: DroQ is DroQ, every algorithm is recorded, runs on all tasks become one dataset."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from icrl_agents.errors import ConfigError, DatasetError
from icrl_agents.training.collection import CollectionConfig, learner_seed
from icrl_agents.training.histories import HistoryDataset
from icrl_agents.training.lock import DirectoryLock
from icrl_agents.training.sources import sb3
from icrl_agents.training.sources.sb3 import HistoryRecorder, collect_sb3, collect_sb3_tasks
from icrl_agents.training.sources.sb3_droq import DroQ

ENV_ID = "icrl/ReacherGoal-v0"
SMALL = CollectionConfig(ENV_ID, subset="val", steps_per_task=200, streams=2, shard_steps=50, seed=4)
OFF_POLICY = {"learning_starts": 150, "batch_size": 8, "policy_kwargs": {"net_arch": [8]}}
PPO = {"n_steps": 50, "batch_size": 50, "n_epochs": 1, "policy_kwargs": {"net_arch": [4]}}


@pytest.mark.parametrize("algorithm", ["sb3-droq", "sb3-tqc", "sb3-crossq"])
def test_off_policy_algorithms_are_recorded(algorithm: str, tmp_path: Path) -> None:
    config = replace(SMALL, env_id="icrl/PusherGoal-v0", steps_per_task=400)
    options = {**OFF_POLICY, "gradient_steps": 1}
    dataset = collect_sb3(algorithm, config, tmp_path, 3, options, quiet=True)
    assert (len(dataset), dataset.manifest.progress.steps) == (2, 200)
    assert dataset.manifest.source == algorithm
    assert dataset.manifest.hyperparameters["policy_kwargs"] == {"net_arch": [8]}  # as given: it names the run
    assert dataset.manifest.hyperparameters["gradient_steps"] == 1
    history = dataset.history(1)
    np.testing.assert_array_equal(np.flatnonzero(history.truncated), [99, 199])
    env = gymnasium.make(config.env_id, task=dataset.task(1))
    first: Any = dataset.history(0)
    env.reset(seed=config.seed)  # SB3 seeds its first environment so
    for t in range(100):
        observation, reward, *_ = env.step(first.actions[t])
        assert first.rewards[t] == np.float32(reward)
        after = first.observations[t + 1] if t < 99 else first.final_observations[0]
        np.testing.assert_array_equal(after, observation.astype(np.float32))


def test_ppo_is_recorded_with_the_environments_own_rewards(tmp_path: Path) -> None:
    """It adds the value of what a cut episode would still have brought to the rewards that it was given."""
    config = replace(SMALL, shard_steps=100)
    history: Any = collect_sb3("sb3-ppo", config, tmp_path, 3, {**PPO, "n_steps": 100}, quiet=True).history(0)
    np.testing.assert_array_equal(np.flatnonzero(history.truncated), [49, 99])
    env = gymnasium.make(ENV_ID, task=HistoryDataset(tmp_path).task(0))
    env.reset(seed=config.seed)  # SB3 seeds its first environment so
    for t in range(50):
        assert history.rewards[t] == np.float32(env.step(np.clip(history.actions[t], -1, 1))[1])


def test_a_shard_in_which_no_episode_ends(tmp_path: Path) -> None:
    written: list[dict[str, np.ndarray]] = []
    envs = DummyVecEnv([lambda: gymnasium.make(ENV_ID) for _ in range(2)])
    recorder = HistoryRecorder(envs, 30, lambda arrays, state: written.append(arrays))
    recorder.model = type("Still", (), {"predict": lambda self, obs, deterministic: (np.zeros((2, 2)), None)})()  # type: ignore[assignment]
    recorder.reset()
    for _ in range(60):
        recorder.step(np.zeros((2, 2), np.float32))
    assert [arrays["final_observations"].shape for arrays in written] == [(0, 8), (2, 8)]


def test_droq_drops_units_in_targets_too_and_its_actor_follows_the_mean() -> None:
    model = DroQ("MlpPolicy", gymnasium.make(ENV_ID), policy_kwargs={"net_arch": [16, 16]}, device="cpu", seed=0)
    kinds = [type(layer) for layer in model.critic.q_networks[0]]  # type: ignore[attr-defined]
    assert kinds == [nn.Linear, nn.Dropout, nn.LayerNorm, nn.ReLU] * 2 + [nn.Linear]
    assert [name for name, _ in model.critic.named_parameters()] == [
        name for name, _ in model.critic_target.named_parameters()
    ]
    observations, actions = torch.zeros(64, 8), torch.zeros(64, 2)
    model.policy.set_training_mode(False)  # as predict does while histories are collected
    assert torch.unique(model.critic_target(observations, actions)[0]).numel() > 1
    assert torch.unique(model.critic(observations, actions)[0]).numel() == 1
    with torch.no_grad():
        for network, value in zip(model.critic.q_networks, (1.0, 3.0), strict=True):
            network[-1].weight.zero_()  # type: ignore[index, operator, union-attr]
            network[-1].bias.fill_(value)  # type: ignore[index, operator, union-attr]
    data = type("Data", (), {"observations": observations})
    loss, _ = model.actor_loss(data, torch.zeros(1))
    assert loss.item() == pytest.approx(-2.0)
    again = DroQ("MlpPolicy", gymnasium.make(ENV_ID), policy_kwargs={"net_arch": [16], "dropout": 0.5}, device="cpu")
    assert again.policy._get_constructor_parameters()["dropout"] == 0.5


def test_all_tasks_become_one_dataset_whatever_interrupts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def dying(algorithm: str, config: Any, directory: Path, task: int, options: Any, **kwargs: Any) -> HistoryDataset:
        started.append(task)
        made = collect_sb3(algorithm, config, directory, task, options, **kwargs)
        if task == 7 and started.count(7) == 1:
            (directory / "manifest.json").unlink()  # it was not done
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(sb3, "collect_sb3", dying)
    with pytest.raises(KeyboardInterrupt):
        collect_sb3_tasks("sb3-ppo", SMALL, tmp_path / "all", PPO, jobs=1, quiet=True)
    with pytest.raises(DatasetError, match="not complete"):
        HistoryDataset(tmp_path / "all")
    with pytest.raises(DatasetError, match="another collection"):  # although nothing is merged yet
        collect_sb3_tasks("sb3-ppo", replace(SMALL, seed=5), tmp_path / "all", PPO, jobs=1, quiet=True)
    dataset = collect_sb3_tasks("sb3-ppo", SMALL, tmp_path / "all", PPO, jobs=1, quiet=True)
    assert (len(dataset), len(dataset.manifest.tasks), dataset.manifest.progress.steps) == (20, 10, 100)
    assert not (tmp_path / "all" / "tasks").exists()
    dataset.verify()
    single = collect_sb3("sb3-ppo", SMALL, tmp_path / "one", 6, PPO, seed=learner_seed(4, 6), quiet=True)
    assert single.task(0) == dataset.task(13)
    for name in ("observations", "actions", "rewards", "final_observations"):
        np.testing.assert_array_equal(getattr(dataset.history(13), name), getattr(single.history(1), name))
    assert dataset.manifest.progress.final_returns[6] == single.manifest.progress.final_returns[0]


def test_sampled_tasks_are_those_that_the_dataset_names(tmp_path: Path) -> None:
    config = replace(SMALL, subset="sampled:3", steps_per_task=100, streams=1)
    dataset = collect_sb3_tasks("sb3-ppo", config, tmp_path, PPO, jobs=1, quiet=True)
    for h in range(3):
        history: Any = dataset.history(h)
        env = gymnasium.make(ENV_ID, task=dataset.task(h))
        env.reset(seed=learner_seed(config.seed, h))  # SB3 seeds its first environment so
        for t in range(50):
            assert history.rewards[t] == np.float32(env.step(np.clip(history.actions[t], -1, 1))[1])


@pytest.mark.soak
def test_processes_learn_what_one_does(tmp_path: Path) -> None:
    made = [
        collect_sb3_tasks("sb3-ppo", SMALL, tmp_path / str(jobs), PPO, jobs=jobs, quiet=True).manifest
        for jobs in (1, 2)
    ]
    assert made[0] == made[1]


def test_less_than_a_shard_is_refused(tmp_path: Path) -> None:
    for changes, message in (({"steps_per_task": 50}, "less than one shard"), ({"seed": -1}, "seed")):
        config = replace(SMALL, **changes)
        with pytest.raises(ConfigError, match=message):
            collect_sb3("sb3-ppo", config, tmp_path / "one", 0, PPO, quiet=True)
        with pytest.raises(ConfigError, match=message):
            collect_sb3_tasks("sb3-ppo", config, tmp_path / "all", PPO, jobs=1, quiet=True)
    assert not list(tmp_path.iterdir())


def test_what_lies_beside_the_runs_stays(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/mine.txt").write_text("not a run")
    collect_sb3_tasks("sb3-ppo", replace(SMALL, steps_per_task=100, streams=1), tmp_path, PPO, jobs=1, quiet=True)
    assert [path.name for path in (tmp_path / "tasks").iterdir()] == ["mine.txt"]


@pytest.mark.soak
def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """They would write where the same command, started again, writes."""
    code = f"""
from dataclasses import replace
from icrl_agents.training.collection import CollectionConfig
from icrl_agents.training.sources.sb3 import collect_sb3_tasks
if __name__ == "__main__":
    config = CollectionConfig({ENV_ID!r}, subset="val", steps_per_task=1_000_000, streams=1, shard_steps=50)
    collect_sb3_tasks("sb3-ppo", config, {str(tmp_path / "all")!r}, {{"n_steps": 50}}, jobs=2, quiet=True)
"""
    (tmp_path / "parent.py").write_text(code)
    with subprocess.Popen([sys.executable, tmp_path / "parent.py"]) as parent:
        runs = tmp_path / "all/tasks"
        deadline = time.monotonic() + 120
        while len(list(runs.glob("*/shards/*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        held = [path.parent for path in runs.glob("*/.lock")]
        parent.kill()
    assert len(held) == 2
    for directory in held:
        while True:
            try:
                with DirectoryLock(directory):  # nobody has it
                    break
            except DatasetError:
                assert time.monotonic() < deadline
                time.sleep(0.2)

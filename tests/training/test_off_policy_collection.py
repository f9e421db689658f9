"""Histories of SAC and DroQ: what is recorded happened, and an interrupted collection ends as an uninterrupted one."""

from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from icrl_agents.envs import env_definition
from icrl_agents.errors import ConfigError
from icrl_agents.training.collection import CollectionConfig, LocalEngine, collect
from icrl_agents.training.histories import HistoryDataset
from icrl_agents.training.regeneration import RegenerationConfig, regenerate
from icrl_agents.training.sources.policies import SnapshotPolicies
from icrl_agents.training.sources.sac import DroQConfig, SACConfig

SAC = CollectionConfig(
    "icrl/PusherGoal-v0",
    subset="val",
    steps_per_task=300,
    streams=2,
    shard_steps=50,
    snapshots=3,
    sac=SACConfig(buffer_size=120, learning_starts=60, batch_size=8, hidden=(8,)),
)
"""The replay holds 60 of 150 steps: it overflows, and begins within a shard."""
DROQ = replace(SAC, sac=DroQConfig(learning_starts=60, batch_size=8, hidden=(8,), gradient_steps=2, policy_delay=2))
INFORMED = replace(SAC, env_id="icrl/ReacherGoal-v0", task_informed=True)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> HistoryDataset:
    return collect(SAC, tmp_path_factory.mktemp("histories"), quiet=True)


def test_recorded_actions_replayed_give_the_recorded_experience(dataset: HistoryDataset) -> None:
    h = 3
    history = dataset.history(h)
    assert history.actions.shape == (100, 7)
    assert 1 < np.abs(history.actions).max() <= 2  # the bounds of Pusher
    assert np.abs(history.mean_actions).max() <= 2
    env = gymnasium.make(SAC.env_id, task=dataset.task(h))
    seed = int(np.random.SeedSequence([0, h // 2, h % 2]).generate_state(1)[0])
    observation, _ = env.reset(seed=seed)
    for t in range(100):
        np.testing.assert_array_equal(history.observations[t], observation.astype(np.float32))
        observation, reward, terminated, truncated, _ = env.step(history.actions[t])
        assert history.rewards[t] == np.float32(reward)
        assert (history.terminated[t], history.truncated[t]) == (terminated, truncated)
    np.testing.assert_array_equal(history.final_observations[0], observation.astype(np.float32))


@pytest.mark.parametrize("config", [SAC, DROQ, INFORMED], ids=["SAC", "DroQ", "informed"])
def test_interrupted_collection_ends_as_an_uninterrupted_one(config: CollectionConfig, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(steps: int) -> None:
        raise Killed

    whole = collect(config, tmp_path / "whole", quiet=True)
    for _ in range(2):  # two intervals of one shard each, then the rest
        with pytest.raises(Killed):
            collect(config, tmp_path / "cut", on_shard=kill, quiet=True)
    saved = sum(path.stat().st_size for path in (tmp_path / "cut").glob("state-*"))
    resumed = collect(config, tmp_path / "cut", quiet=True)
    assert resumed.manifest == whole.manifest  # it holds the hash of every file
    assert saved < 200_000  # no replay in it
    assert resumed.manifest.source.endswith("DroQ" if config is DROQ else "SAC")


def test_snapshots_are_policies_of_the_tasks(dataset: HistoryDataset) -> None:
    assert dataset.snapshot_steps == (50, 100, 150)
    high = np.full(7, 2, np.float32)
    policies = SnapshotPolicies(dataset.snapshot(0), -high, high)
    shards = [dataset.shard(index) for index in range(2)]
    following = shards[1]["observations"][:, 0]  # the first step after the snapshot
    mean = policies.act(following.reshape(10, 2, -1)).reshape(20, 7)
    np.testing.assert_allclose(mean, shards[1]["mean_actions"][:, 0], atol=5e-3)  # fp16


def test_a_task_informed_learner_does_the_tasks_of_its_rows(tmp_path: Path) -> None:
    made = collect(replace(INFORMED, steps_per_task=200), tmp_path, quiet=True)
    assert made.manifest.source == "task-informed SAC"
    assert len(made.snapshot()["bias_0"]) == len(made.manifest.tasks) == 10
    definition = env_definition(INFORMED.env_id)
    vectors = np.stack([definition.task_vector(task) for task in made.manifest.tasks])
    bias = made.snapshot()["bias_0"][:, 0]
    solution, *_ = np.linalg.lstsq(np.concatenate([np.ones((10, 1)), vectors], 1), bias, rcond=None)
    np.testing.assert_allclose(np.concatenate([np.ones((10, 1)), vectors], 1) @ solution, bias, atol=4e-3)


def test_histories_are_regenerated_from_squashed_policies(dataset: HistoryDataset, tmp_path: Path) -> None:
    config = RegenerationConfig(steps=100, streams=1, shard_steps=50)
    loud = regenerate(dataset._directory, tmp_path / "loud", config, quiet=True).history(0)
    assert np.abs(loud.actions - loud.mean_actions).std() > 0.1
    assert np.abs(loud.actions).max() <= 2
    quiet = regenerate(dataset._directory, tmp_path / "quiet", replace(config, noise="none"), quiet=True).history(0)
    np.testing.assert_array_equal(quiet.actions, quiet.mean_actions)


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="PPO learns on the CPU"):
        collect(replace(SAC, sac=None, shard_steps=100), tmp_path, engine=LocalEngine("cuda"), quiet=True)
    with pytest.raises(ConfigError, match="device 'foo': nothing can be computed there"):
        collect(SAC, tmp_path, engine=LocalEngine("foo"), quiet=True)
    with pytest.raises(ConfigError, match="less than one shard"):
        collect(replace(SAC, steps_per_task=60), tmp_path, quiet=True)

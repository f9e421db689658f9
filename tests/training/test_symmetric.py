"""Task-informed sources that see and act through the symmetry of their tasks."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from icrl_agents.envs import env_definition, task_split
from icrl_agents.errors import ConfigError
from icrl_agents.training.anchors import _oracle
from icrl_agents.training.collection import CollectionConfig, Source, collect, collection_manifest
from icrl_agents.training.histories import HistoryDataset
from icrl_agents.training.regeneration import RegenerationConfig, regenerate
from icrl_agents.training.sources.consolidation import ConsolidationConfig
from icrl_agents.training.sources.policies import SnapshotPolicies, snapshot_by_task, symmetries_of, turned_back
from icrl_agents.training.sources.ppo import PPOConfig, TaskParallelPPO
from icrl_agents.training.sources.presets import oracle_collection
from icrl_agents.training.sources.sac import SACConfig

ENV_ID = "icrl/AntDir-v0"
DEFINITION = env_definition(ENV_ID)
LOW, HIGH = -np.ones(8, np.float32), np.ones(8, np.float32)
TINY = CollectionConfig(
    ENV_ID,
    subset="val",
    steps_per_task=400,
    streams=2,
    shard_steps=100,
    snapshots=2,
    task_informed=True,
    symmetric=True,
    ppo=PPOConfig(n_steps=50, hidden=(8, 8), log_std_init=-0.5, learning_rate=0.1),
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("symmetric")


@pytest.fixture(scope="module")
def dataset(directory: Path) -> HistoryDataset:
    return collect(TINY, directory, quiet=True)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def policies(dataset: HistoryDataset) -> SnapshotPolicies:
    return SnapshotPolicies(dataset.snapshot(), LOW, HIGH)


def test_turned_back_a_policy_does_what_it_did_through_its_symmetry(rng: np.random.Generator) -> None:
    """Four directions that turns take into each other: one policy, seen and acted through each one's symmetry."""
    vectors = np.stack([DEFINITION.task_vector({"direction": 0.3 + k * math.pi / 2}) for k in range(4)])
    symmetries, same = symmetries_of(DEFINITION, vectors)
    np.testing.assert_allclose(same, same[:1].repeat(4, 0), atol=1e-12)
    for hidden in ((), (8,), (8, 8)):
        learner = TaskParallelPPO(PPOConfig(hidden=hidden), 27 + 2, 8, [0], 4, 1)
        learner.actor.weights[-1].data.normal_(generator=torch.Generator().manual_seed(0))
        learner.observation_moments.update(torch.from_numpy(rng.standard_normal((1, 50, 29)) * 3 + 1))
        through = snapshot_by_task(learner.snapshot(), same)
        seen = rng.standard_normal((4, 5, 27)).astype(np.float32)
        turned = np.stack([own.observation(x) for own, x in zip(symmetries, seen, strict=True)])
        acted = SnapshotPolicies(through, LOW, HIGH).act(turned)
        expected = np.stack([own.action.inverse(x) for own, x in zip(symmetries, acted, strict=True)])
        found = SnapshotPolicies(turned_back(through, symmetries), LOW, HIGH).act(seen)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_is_recorded_is_what_the_snapshot_does() -> None:
    """Rows are acted in through symmetries, snapshots are not: on the recorded observations they agree."""
    source = Source(TINY, collection_manifest(TINY))
    learners = source._learners
    for _ in range(2):  # the second has learned
        snapshot = {name: tensor.clone() for name, tensor in learners.snapshot().items()}
        recording = learners.advance(50)
        observations = recording.arrays["observations"].reshape(10, 2 * 50, 27)
        found = SnapshotPolicies(snapshot, LOW, HIGH).act(observations)
        np.testing.assert_allclose(found, recording.arrays["mean_actions"].reshape(found.shape), atol=2e-5)
    assert np.abs(found).max() > 0.1


def test_a_killed_collection_goes_on(dataset: HistoryDataset, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(steps: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        collect(TINY, tmp_path, on_shard=stop, quiet=True)
    again = collect(TINY, tmp_path, quiet=True)
    for name, tensor in dataset.snapshot().items():
        np.testing.assert_array_equal(again.snapshot()[name], tensor)


def test_the_oracle_of_an_unseen_task_is_the_same_learner_turned(
    dataset: HistoryDataset, directory: Path, tmp_path: Path
) -> None:
    config = oracle_collection(ENV_ID, "paper", 0, directory, seed=0)
    assert config.symmetric
    config = replace(config, ppo=TINY.ppo)
    tasks = [*task_split(ENV_ID, "paper").val]
    assert list(dataset.manifest.tasks) == tasks
    oracle = _oracle(config, tmp_path, tasks, LOW, HIGH, quiet=True)
    seen = np.random.default_rng(0).standard_normal((10, 5, 27)).astype(np.float32)
    np.testing.assert_allclose(oracle(seen), policies(dataset).act(seen), atol=0.02)  # the one is stored in half


def test_it_acts_in_other_tasks_as_its_learner_would(dataset: HistoryDataset, directory: Path, tmp_path: Path) -> None:
    """From the policies of the val directions those of the test directions, and of them the val directions' again."""
    there = regenerate(directory, tmp_path / "there", RegenerationConfig(subset="test", steps=50), quiet=True)
    back = regenerate(tmp_path / "there", tmp_path / "back", RegenerationConfig(subset="val", steps=50), quiet=True)
    assert len(there.snapshot()["bias_0"]) == 30
    seen = np.random.default_rng(0).standard_normal((10, 5, 27)).astype(np.float32)
    np.testing.assert_allclose(policies(back).act(seen), policies(dataset).act(seen), atol=0.02)


def test_learners_that_specialise_stay_turned() -> None:
    """The first roll-out after it is acted by what the one learner of all tasks had learned."""
    special = replace(TINY, snapshots=100, specialise_steps_per_task=200, specialise=TINY.ppo)
    source = Source(special, collection_manifest(special))
    while source.steps < special.shared_steps:
        last = source.advance().snapshots[source.steps]
    arrays = source.advance().arrays
    observations, means = (arrays[name][:, :50].reshape(10, 2 * 50, -1) for name in ("observations", "mean_actions"))
    np.testing.assert_allclose(SnapshotPolicies(last, LOW, HIGH).act(observations), means, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env_id": "icrl/HalfCheetahVel-v0"}, "HalfCheetahVel-v0 knows no symmetry"),
        ({"task_informed": False}, "of a task-informed PPO"),
        ({"sac": SACConfig()}, "of a task-informed PPO"),
        ({"privileged": True, "env_id": "icrl/PusherGoal-v0"}, "symmetric or privileged"),
        (
            {"consolidate": ConsolidationConfig(rounds=1), "specialise_steps_per_task": 200, "specialise": TINY.ppo},
            "not consolidated",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        collect(replace(TINY, **change), tmp_path, quiet=True)


@pytest.mark.usefixtures("dataset")
def test_another_learner_is_not_begun_from(directory: Path, tmp_path: Path) -> None:
    config = replace(TINY, symmetric=False, informed=str(directory), steps_per_task=0)
    config = replace(config, specialise_steps_per_task=200, specialise=TINY.ppo)
    with pytest.raises(ConfigError, match="'symmetric': True"):
        collect(config, tmp_path, quiet=True)

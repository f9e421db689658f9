"""Histories from snapshots: who acts, how noisily, on which tasks; and that all of it is resumable."""

from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from icrl_agents.envs import env_definition, sample_tasks, task_split
from icrl_agents.errors import ConfigError, DatasetError
from icrl_agents.training.collection import CollectionConfig, collect
from icrl_agents.training.histories import HistoryDataset, HistoryWriter
from icrl_agents.training.regeneration import RegenerationConfig, regenerate
from icrl_agents.training.sources.policies import SnapshotPolicies, snapshot_by_task, snapshot_of_tasks
from icrl_agents.training.sources.ppo import PPOConfig, TaskParallelPPO

ENV_ID = "icrl/ReacherGoal-v0"
TINY = CollectionConfig(
    ENV_ID, subset="val", steps_per_task=600, streams=2, shard_steps=100, snapshots=3, ppo=PPOConfig(50, hidden=(8,))
)
SMALL = RegenerationConfig(steps=200, streams=2, shard_steps=100, seed=3)


@pytest.fixture(scope="module")
def independent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A learner for each of 10 tasks."""
    directory = tmp_path_factory.mktemp("independent")
    collect(TINY, directory, quiet=True)
    return directory


@pytest.fixture(scope="module")
def informed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One learner that sees which of 10 tasks it is doing."""
    directory = tmp_path_factory.mktemp("informed")
    collect(replace(TINY, task_informed=True), directory, quiet=True)
    return directory


def policies_of(dataset: HistoryDataset, index: int) -> SnapshotPolicies:
    return SnapshotPolicies(dataset.snapshot(index), -np.ones(2, np.float32), np.ones(2, np.float32))


def test_without_noise_the_snapshots_act_in_order(independent: Path, tmp_path: Path) -> None:
    parent = HistoryDataset(independent)
    made = regenerate(independent, tmp_path, replace(SMALL, noise="none", steps=300), quiet=True)
    assert made.manifest.tasks == parent.manifest.tasks
    for h in (0, 7, 19):
        history = made.history(h)
        np.testing.assert_array_equal(history.actions, history.mean_actions)
        for snapshot in range(3):
            part = slice(100 * snapshot, 100 * (snapshot + 1))
            expected = policies_of(parent, snapshot).act_as(made.task_index(h), history.observations[part])
            np.testing.assert_allclose(history.actions[part], expected, atol=1e-5)


def test_recorded_actions_replayed_give_the_recorded_experience(independent: Path, tmp_path: Path) -> None:
    made = regenerate(independent, tmp_path, SMALL, quiet=True)
    for h in (0, 5):
        history = made.history(h)
        env = gymnasium.make(ENV_ID, task=made.task(h))
        seed = int(np.random.SeedSequence([3, 0, h // 2, h % 2]).generate_state(1)[0])
        observation, _ = env.reset(seed=seed)
        for t in range(200):
            np.testing.assert_array_equal(history.observations[t], observation.astype(np.float32))
            observation, reward, _, truncated, _ = env.step(history.actions[t])
            assert history.rewards[t] == np.float32(reward)
            assert history.truncated[t] == truncated
            if truncated:
                np.testing.assert_array_equal(history.final_observations[t // 50], observation.astype(np.float32))
                observation, _ = env.reset()


def test_noise_is_as_wide_as_asked_for(independent: Path, tmp_path: Path) -> None:
    def spread(name: str, **changes) -> np.ndarray:
        """Width of the noise in each fifth of the histories, where nothing was clipped."""
        dataset = regenerate(independent, tmp_path / name, replace(SMALL, **changes), quiet=True)
        parts: list[list[np.ndarray]] = [[] for _ in range(5)]
        for h in range(len(dataset)):
            history = dataset.history(h)
            noise = np.where(np.abs(history.actions) < 1, history.actions - history.mean_actions, np.nan)
            for part, piece in zip(parts, np.array_split(noise, 5), strict=True):
                part.append(piece)
        return np.array([np.nanstd(np.concatenate(part)) for part in parts])

    source = np.exp(HistoryDataset(independent).snapshot(0)["log_std"]).mean()  # 0.5; clipping takes little away
    np.testing.assert_allclose(spread("as the source"), source, rtol=0.2)
    np.testing.assert_allclose(spread("half", noise_scale=0.5), source / 2, rtol=0.1)
    fading = spread("annealed", noise="annealed", policy="final")
    # u is uniform on [-1, 1], its standard deviation 1/sqrt(3); the mean policy is near 0 after so short a training,
    # and within a fifth of a history ε falls by 0.2.
    epsilon = np.sqrt(np.array([0.9, 0.7, 0.5, 0.3, 0.1]) ** 2 + 0.2**2 / 12)
    np.testing.assert_allclose(fading, epsilon / np.sqrt(3), rtol=0.1)
    early = spread("annealed early", noise="annealed", policy="final", annealed_until=0.5)
    assert early[-1] == 0


def test_wrong_experts_are_experts_of_other_tasks(independent: Path, tmp_path: Path) -> None:
    parent = HistoryDataset(independent)
    config = replace(SMALL, noise="none", policy="final", wrong_experts=0.5, steps=400)
    made = regenerate(independent, tmp_path, config, quiet=True)
    final = policies_of(parent, -1)
    wrong = []
    for h in range(len(made)):
        history = made.history(h)
        everyones = final.act(np.repeat(history.observations[None], 10, 0))  # [10, T, A]
        own = made.task_index(h)
        np.testing.assert_allclose(history.mean_actions, everyones[own], atol=1e-5)  # the label stays right
        for segment in range(0, 400, 50):
            part = slice(segment, segment + 50)
            gaps = np.abs(everyones[:, part] - history.actions[part]).max((1, 2))  # [10]
            assert gaps.min() < 1e-5  # one and the same expert for the whole segment
            wrong.append(gaps.argmin() != own)
    assert 0.3 < np.mean(wrong) < 0.7


def test_an_interrupted_regeneration_ends_as_an_uninterrupted_one(
    informed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, shard_steps=70, wrong_experts=0.3, streams=3)
    whole = regenerate(informed, tmp_path / "whole", config, quiet=True)
    append = HistoryWriter.append

    def dying(writer, arrays, state):
        append(writer, arrays, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(HistoryWriter, "append", dying)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                regenerate(informed, tmp_path / "cut", config, quiet=True)
    assert regenerate(informed, tmp_path / "cut", config, quiet=True).manifest == whole.manifest


def test_one_learner_that_sees_the_task_does_other_tasks(informed: Path, tmp_path: Path) -> None:
    made = regenerate(informed, tmp_path / "test", replace(SMALL, subset="val+test", steps=100), quiet=True)
    split = task_split(ENV_ID)
    assert list(made.manifest.tasks) == [*split.val, *split.test]
    drawn = regenerate(informed, tmp_path / "drawn", replace(SMALL, sampled_tasks=4), quiet=True)
    assert drawn.manifest.subset == "sampled"
    assert len(drawn) == 8
    assert drawn.snapshot()["bias_0"].shape[0] == 4
    assert len(drawn.manifest.progress.final_returns) == 4


def test_other_tasks_are_done_as_the_learner_itself_would() -> None:
    rng = np.random.default_rng(0)
    definition = env_definition("icrl/PusherGoal-v0")
    known, others = (
        np.stack([definition.task_vector(task) for task in definition.sample_tasks(n, seed)])
        for n, seed in ((12, 0), (5, 1))
    )
    learner = TaskParallelPPO(PPOConfig(hidden=(16, 16)), 17 + 4, 7, [0], 3, 1)
    half = {n: t.numpy().astype(np.float16) for n, t in snapshot_by_task(learner.snapshot(), known).items()}
    found = snapshot_of_tasks({name: tensor.astype(np.float32) for name, tensor in half.items()}, known, others)
    expected = {name: tensor.numpy() for name, tensor in snapshot_by_task(learner.snapshot(), others).items()}
    assert set(found) == set(expected)
    observations = rng.normal(size=(5, 8, 17)).astype(np.float32)
    low, high = -np.ones(7, np.float32), np.ones(7, np.float32)
    actions = [SnapshotPolicies(tensors, low, high).act(observations) for tensors in (found, expected)]
    np.testing.assert_allclose(*actions, atol=1e-3 * np.abs(actions[1]).max() + 1e-4)
    with pytest.raises(DatasetError, match="3 tasks are too few"):
        snapshot_of_tasks({name: tensor[:3] for name, tensor in found.items()}, others[:3], others)


def test_where_it_comes_from_is_part_of_what_it_is(independent: Path, informed: Path, tmp_path: Path) -> None:
    made = regenerate(independent, tmp_path / "made", SMALL, quiet=True)
    assert made.manifest.source == "regenerated"
    assert made.manifest.hyperparameters["parent"]["digest"] == HistoryDataset(independent).manifest.digest()
    assert made.manifest.hyperparameters["parent"]["source"] == "task-parallel PPO"
    again = regenerate(independent, tmp_path / "made", SMALL, quiet=True)
    assert again.manifest == made.manifest
    with pytest.raises(DatasetError, match=r"parent\.digest"):
        regenerate(informed, tmp_path / "made", SMALL, quiet=True)
    with pytest.raises(DatasetError, match=r"noise_scale \(there 1\.0, here 0\.5\)"):
        regenerate(independent, tmp_path / "made", replace(SMALL, noise_scale=0.5), quiet=True)
    # a regenerated dataset has the last policies, so that it can teach and be the parent of others
    assert len(regenerate(tmp_path / "made", tmp_path / "grandchild", SMALL, quiet=True)) == 20


def test_what_cannot_be_made_is_refused(independent: Path, tmp_path: Path, make_dataset) -> None:
    make_dataset(tmp_path / "none")
    with pytest.raises(DatasetError, match=r"no policy snapshots \(source: invented\)"):
        regenerate(tmp_path / "none", tmp_path / "new", SMALL, quiet=True)
    with pytest.raises(DatasetError, match="learned task by task: they can do no other tasks"):
        regenerate(independent, tmp_path / "new", replace(SMALL, subset="test"), quiet=True)
    for changes, message in (
        ({"wrong_experts": 1.5}, "probability"),
        ({"noise": "annealed", "noise_scale": 2.0}, "at most 1 if annealed"),
        ({"annealed_until": 0.0}, "annealed_until"),
        ({"steps": 0}, "steps is at least 1"),
        ({"policy": "best"}, "expected one of 'learning', 'final'"),
        ({"subset": "val", "sampled_tasks": 3}, "not both"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(SMALL, **changes)


def test_a_source_that_specialised_does_no_other_tasks(tmp_path: Path) -> None:
    special = replace(TINY, task_informed=True, specialise_steps_per_task=600, specialise=PPOConfig(50, hidden=(8,)))
    collect(special, tmp_path / "special", quiet=True)
    with pytest.raises(DatasetError, match="learned task by task"):
        regenerate(tmp_path / "special", tmp_path / "new", replace(SMALL, sampled_tasks=4), quiet=True)
    assert not (tmp_path / "new").exists()  # before anything begins


def test_sampled_tasks_are_not_those_that_evaluations_sample(informed: Path, tmp_path: Path) -> None:
    made = regenerate(informed, tmp_path, replace(SMALL, sampled_tasks=4, streams=1, steps=100), quiet=True)
    evaluated = sample_tasks(ENV_ID, 4, SMALL.seed)
    assert not [task for task in made.manifest.tasks if task in evaluated]

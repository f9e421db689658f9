"""Minari: what we export is right for others, and comes back the same; what others recorded comes in right."""

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from icrl_agents.envs import sample_tasks
from icrl_agents.errors import DatasetError, MissingExtraError
from icrl_agents.training.histories import HistoryDataset, HistoryWriter
from icrl_agents.training.minari_exchange import export_minari, import_minari

PER_STEP = ("observations", "actions", "mean_actions", "rewards", "terminated", "truncated", "final_observations")


@pytest.fixture
def minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Minari with an empty folder of its own."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return pytest.importorskip("minari", reason="the extra minari is not installed")


@pytest.fixture
def ours(tmp_path: Path, make_manifest, make_arrays) -> HistoryDataset:
    """Two tasks, two streams of each, episodes of all lengths, and steps after the last one."""
    manifest = make_manifest(tasks=tuple(sample_tasks("icrl/ReacherGoal-v0", 2, 0)))
    with HistoryWriter.create_or_resume(tmp_path / "ours", manifest) as writer:
        writer.append(make_arrays(manifest, [[3, 5], [7], [1, 2, 3], [8]], 8, seed=1), {})
        writer.append(make_arrays(manifest, [[2, 8], [4, 6], [7], [8]], 8, seed=2), {})
        writer.finish([-3.0, -4.0])
    return HistoryDataset(tmp_path / "ours")


def assert_same_histories(one: HistoryDataset, other: HistoryDataset) -> None:
    assert len(one) == len(other)
    for h in range(len(one)):
        assert one.task(h) == other.task(h)
        np.testing.assert_array_equal(one.episode_ends(h), other.episode_ends(h))
        for name in PER_STEP:
            np.testing.assert_array_equal(getattr(one.history(h), name), getattr(other.history(h), name))


def test_what_is_exported_comes_back_the_same(ours: HistoryDataset, tmp_path: Path, minari, monkeypatch) -> None:
    path = export_minari(tmp_path / "ours", "icrl/reacher-goal/invented-v0")
    monkeypatch.setattr("icrl_agents.training.minari_exchange.SHARD_STEPS", 5)  # shards that cut episodes
    for place in ("icrl/reacher-goal/invented-v0", path):
        back = import_minari(place, tmp_path / Path(place).name)
        back.verify()
        assert_same_histories(ours, back)
        assert back.manifest.progress.final_returns == (-3.0, -4.0)
        changed = {"hyperparameters": back.manifest.identity()["hyperparameters"]}
        assert back.manifest.identity() == {**ours.manifest.identity(), **changed}
        assert changed["hyperparameters"]["imported_from"] == "minari icrl/reacher-goal/invented-v0"


def test_others_read_it_with_minari_alone(ours: HistoryDataset, tmp_path: Path, minari) -> None:
    export_minari(tmp_path / "ours", "icrl/reacher-goal/invented-v0")
    theirs = minari.load_dataset("icrl/reacher-goal/invented-v0")
    assert theirs.total_episodes == sum(len(ours.episode_ends(h)) for h in range(4))
    metadata = list(theirs.storage.get_episode_metadata(range(theirs.total_episodes)))
    episode = iter(range(theirs.total_episodes))
    for h in range(4):
        history = ours.history(h)
        for e, (start, end) in enumerate(zip(history.episode_starts, history.episode_ends, strict=True)):
            index = next(episode)
            data = theirs[index]
            assert len(data.observations) == end - start + 1
            np.testing.assert_array_equal(data.observations[:-1], history.observations[start:end])
            np.testing.assert_array_equal(data.observations[-1], history.final_observations[e])
            np.testing.assert_array_equal(data.terminations, history.terminated[start:end])
            np.testing.assert_array_equal(metadata[index]["options"]["task"]["goal"], ours.task(h)["goal"])
    env = theirs.recover_environment()
    options = {"task": {"goal": metadata[0]["options"]["task"]["goal"]}}
    env.reset(options=options)  # the episode's options are the environment's own
    assert env.unwrapped.task == ours.task(0)


def test_an_export_replaces_nothing_and_leaves_nothing_half_made(ours, tmp_path: Path, minari, monkeypatch) -> None:
    path = export_minari(tmp_path / "ours", "icrl/some-v0")
    with pytest.raises(DatasetError, match="exists: choose another id"):
        export_minari(tmp_path / "ours", "icrl/some-v0")
    assert minari.load_dataset("icrl/some-v0").total_episodes > 0

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_minari(tmp_path / "ours", "icrl/some-v1", on_history=stop)
    assert not path.with_name("some-v1").exists()
    with pytest.raises(DatasetError, match="could not be made"):
        export_minari(tmp_path / "ours", "no good id!")


def recorded(minari, dataset_id: str, episodes: int = 3, *, ended: bool = True, **space):
    """What somebody else may have recorded: lengths 4, 5, 6, ..., and no task."""
    rng = np.random.default_rng(0)
    box = spaces.Box(-1, 1, (3,), np.float64)
    buffers = [
        minari.data_collector.EpisodeBuffer(
            observations=rng.normal(size=(length + 1, 3)),
            actions=rng.uniform(-1, 1, (length, 2)),
            rewards=np.arange(length, dtype=float),
            terminations=np.zeros(length, bool),
            truncations=(np.arange(length) == length - 1) & ended,
        )
        for length in range(4, 4 + episodes)
    ]
    options = {"observation_space": box, "action_space": spaces.Box(-1, 1, (2,), np.float32), **space}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # others tell no author either
        return minari.create_dataset_from_buffers(dataset_id, buffers, **options)


@pytest.mark.parametrize("ended", [True, False])
def test_a_dataset_without_tasks_is_of_the_task_the_caller_gives(tmp_path: Path, minari, ended: bool) -> None:
    theirs = recorded(minari, "others/data-v0", ended=ended)
    with pytest.raises(DatasetError, match="which task its episodes are of: give the task"):
        import_minari("others/data-v0", tmp_path / "new")
    with pytest.raises(DatasetError, match="which environment it is of: give its id"):
        import_minari("others/data-v0", tmp_path / "new", task={"speed": 1.0})
    made = import_minari("others/data-v0", tmp_path / "new", task={"speed": 1.0}, env_id="Somebody/Env-v0")
    assert len(made) == 1
    assert made.task(0) == {"speed": 1.0}
    history = made.history(0)
    assert history.episode_ends.tolist() == [4, 9, 15]
    assert history.truncated.sum() == 3  # a recorded episode has ended, whoever forgot to say so
    np.testing.assert_allclose(history.final_observations, [theirs[e].observations[-1] for e in range(3)], rtol=1e-6)
    np.testing.assert_array_equal(history.mean_actions, history.actions)
    assert made.manifest.progress.final_returns == pytest.approx([np.mean([6, 10, 15])])
    assert made.manifest.source == "minari others/data-v0"
    assert made.manifest.episode_steps == 6


def test_unequal_histories_are_kept_whole(tmp_path: Path, minari, make_manifest, make_arrays) -> None:
    manifest = make_manifest(tasks=tuple(sample_tasks("icrl/ReacherGoal-v0", 3, 0)), streams=1)
    with HistoryWriter.create_or_resume(tmp_path / "ours", manifest) as writer:
        writer.append(make_arrays(manifest, [[2, 9], [5], []], 10), {})
        writer.finish([0.0] * 3)
    export_minari(tmp_path / "ours", "icrl/unequal-v0")
    back = import_minari("icrl/unequal-v0", tmp_path / "back")
    assert [back.episode_ends(h).tolist() for h in range(len(back))] == [[2, 9], [5]]
    assert [back.task(h) for h in range(2)] == list(manifest.tasks[:2])


def test_what_is_no_learning_history_is_refused(ours, tmp_path: Path, minari, monkeypatch) -> None:
    with pytest.raises(DatasetError, match=r"others/none-v0 is no Minari dataset on this machine \(`minari download"):
        import_minari("others/none-v0", tmp_path / "new")
    recorded(minari, "others/discrete-v0", action_space=spaces.Discrete(3))
    with pytest.raises(DatasetError, match=r"actions have to be vectors of real numbers, not of Discrete\(3\)"):
        import_minari("others/discrete-v0", tmp_path / "new", task={"x": 1})
    export_minari(tmp_path / "ours", "icrl/some-v0")
    minari.load_dataset("icrl/some-v0").storage.update_metadata({"total_episodes": 5})
    with pytest.raises(DatasetError, match="is not whole: expected 13 episodes, got 5"):
        import_minari("icrl/some-v0", tmp_path / "new")


@pytest.mark.parametrize("missing", ["minari", "h5py"])
def test_without_the_extra_its_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=rf"{missing} is needed for this: pip install 'icrl-agents\[minari\]'"):
        import_minari("icrl/some-v0", tmp_path)
    with pytest.raises(MissingExtraError, match="minari"):
        export_minari(tmp_path, "icrl/some-v0")


def test_a_shorter_horizon_goes_along(tmp_path: Path, minari) -> None:
    recorded(minari, "others/short-v0", env=replace(gymnasium.spec("icrl/ReacherGoal-v0"), max_episode_steps=20))
    made = import_minari("others/short-v0", tmp_path / "made", task={"goal": [0.1, 0.1]})
    assert (made.manifest.episode_steps, made.manifest.env_options) == (20, {"max_episode_steps": 20})
    export_minari(tmp_path / "made", "icrl/short-v0")
    again = minari.load_dataset("icrl/short-v0").recover_environment()
    assert again.spec.max_episode_steps == 20
    assert import_minari("icrl/short-v0", tmp_path / "back").manifest.env_options == {"max_episode_steps": 20}

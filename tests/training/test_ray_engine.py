"""Collecting in parts on a cluster: one dataset, that of one process, whoever is lost on the way.

Most tests run the parts in this process, behind as much of Ray's interface as the engine uses; the last ones start Ray.
"""

import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl_agents.errors import ClusterError, ConfigError, MissingExtraError
from icrl_agents.training import ray_engine
from icrl_agents.training.collection import CollectionConfig, Source, collect, collection_manifest
from icrl_agents.training.histories import HistoryDataset
from icrl_agents.training.ray_engine import RayEngine, open_engine, state_of
from icrl_agents.training.sources.on_policy import OnPolicySource
from icrl_agents.training.sources.ppo import PPOConfig
from icrl_agents.training.sources.presets import run_collection

TINY = CollectionConfig(
    "icrl/ReacherGoal-v0",
    subset="val",
    steps_per_task=600,
    streams=2,
    shard_steps=100,
    snapshots=3,
    ppo=PPOConfig(n_steps=50, n_epochs=2, hidden=(8,)),
)
TASKS = 10
FIELDS = ("observations", "actions", "mean_actions", "rewards", "final_observations")


class _RayError(Exception):
    pass


class _RayTaskError(_RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class InlineRay:
    """What the engine needs of Ray, in this process; all that would travel is pickled."""

    exceptions = SimpleNamespace(RayError=_RayError, RayTaskError=_RayTaskError)

    def __init__(self) -> None:
        self.lose_after = 1_000_000  # tasks

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 3.0, "memory": 1e9}

    def put(self, value: object) -> bytes:
        return pickle.dumps(value)

    def get(self, refs: list[bytes]) -> list:
        return [pickle.loads(ref) for ref in refs]

    def remote(self, **options: object):
        assert options["num_returns"] == 2

        def submit(function):
            def call(*arguments: object) -> list[bytes]:
                self.lose_after -= 1
                if self.lose_after < 0:
                    raise _RayError("the node is gone")
                try:
                    made = function(*(pickle.loads(a) if isinstance(a, bytes) else a for a in arguments))
                except Exception as error:
                    raise _RayTaskError(error) from error
                return [pickle.dumps(value) for value in made]

            return SimpleNamespace(remote=call)

        return submit


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> InlineRay:
    ray = InlineRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> HistoryDataset:
    return collect(TINY, tmp_path_factory.mktemp("local"), quiet=True)


def assert_same_within_rounding(one: HistoryDataset, other: HistoryDataset) -> None:
    assert one.manifest.identity() == other.manifest.identity()
    other.verify()
    ours, theirs = one.manifest.progress, other.manifest.progress
    assert (ours.steps, theirs.complete, one.snapshot_steps) == (theirs.steps, True, other.snapshot_steps)
    np.testing.assert_allclose(theirs.final_returns, ours.final_returns, rtol=1e-3)
    assert len(one) == len(other)
    for h in range(len(one)):
        a, b = one.history(h), other.history(h)
        np.testing.assert_array_equal(a.observations[0], b.observations[0])  # the same initial state
        np.testing.assert_array_equal(a.episode_ends, b.episode_ends)
        for name in FIELDS:
            np.testing.assert_allclose(getattr(b, name), getattr(a, name), atol=2e-3, err_msg=f"{h} {name}")
    for name, array in one.snapshot().items():
        np.testing.assert_allclose(other.snapshot()[name], array, atol=5e-3, err_msg=name)


def files(dataset: HistoryDataset) -> list[str]:
    return [stored.sha256 for stored in dataset.manifest.progress.files]


@pytest.mark.parametrize("shards", [None, 10])
def test_the_parts_are_the_dataset_of_one_process(
    inline: InlineRay, local: HistoryDataset, tmp_path: Path, shards: int | None
) -> None:
    """By default a part for each of three cores, of 4, 3 and 3 tasks."""
    with RayEngine(shards=shards) as engine:
        dataset = collect(TINY, tmp_path, engine=engine, quiet=True)
    assert_same_within_rounding(local, dataset)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "manifest.json", "shards", "snapshots"]


def test_learners_begin_with_the_same_bits_in_any_part() -> None:
    manifest = collection_manifest(TINY)
    whole = Source(TINY, manifest)._learners
    assert isinstance(whole, OnPolicySource)
    for part in (range(4), range(6, 7)):
        own = Source(TINY, manifest, part=part, num_threads=1)._learners
        assert isinstance(own, OnPolicySource)
        for name, array in state_of({n: np.asarray(a) for n, a in whole.state().items()}, part, TASKS).items():
            np.testing.assert_array_equal(np.asarray(own.state()[name]), array, err_msg=name)
        noise = own.learner.exploration_noise().numpy()
        np.testing.assert_array_equal(noise, whole.learner.exploration_noise()[:, part].numpy())


@given(st.integers(1, 12), st.integers(1, 3), st.data())
@settings(max_examples=50, deadline=None)
def test_a_state_divided_and_put_together_is_the_same(tasks: int, rows: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, tasks))
    state = {
        "rows": np.arange(tasks * rows * 2).reshape(tasks * rows, 2),
        "learners": np.arange(tasks),
        "number": np.array(7),
    }
    bounds = [int(own[0]) for own in np.array_split(np.arange(tasks), count)] + [tasks]
    parts = [state_of(state, range(a, b), tasks) for a, b in pairwise(bounds)]
    together = ray_engine._side_by_side(parts)
    for name, array in state.items():
        np.testing.assert_array_equal(together[name], array)


class Killed(Exception):
    pass


def killed_after(config: CollectionConfig, directory: Path, intervals: int, **options) -> None:
    seen: list[int] = []

    def kill(steps: int) -> None:
        seen.append(steps)
        if len(seen) == intervals:
            raise Killed

    with pytest.raises(Killed):
        collect(config, directory, on_shard=kill, quiet=True, **options)


def test_a_killed_driver_goes_on_with_the_same_bits(inline: InlineRay, tmp_path: Path) -> None:
    whole = collect(TINY, tmp_path / "whole", engine=RayEngine(shards=3), quiet=True)
    killed_after(TINY, tmp_path / "killed", 1, engine=RayEngine(shards=3))
    killed = collect(TINY, tmp_path / "killed", engine=RayEngine(shards=3), quiet=True)
    assert killed.manifest == whole.manifest
    assert files(killed) == files(whole)


def test_any_engine_goes_on_with_what_another_began(inline: InlineRay, local: HistoryDataset, tmp_path: Path) -> None:
    killed_after(TINY, tmp_path, 1, engine=RayEngine(shards=4))
    killed_after(TINY, tmp_path, 1)  # this process
    dataset = collect(TINY, tmp_path, engine=RayEngine(shards=7), quiet=True)
    assert_same_within_rounding(local, dataset)


def test_a_lost_cluster_is_an_error_of_ours_and_what_was_committed_stays(inline: InlineRay, tmp_path: Path) -> None:
    inline.lose_after = 7  # two intervals of three parts, and one task
    with pytest.raises(
        ClusterError, match=r"the node is gone; what was committed is whole, and the same command goes on"
    ):
        collect(TINY, tmp_path, engine=RayEngine(shards=3), quiet=True)
    assert HistoryDataset(tmp_path, require_complete=False).manifest.progress.steps == 100
    inline.lose_after = 1_000
    collect(TINY, tmp_path, engine=RayEngine(shards=3), quiet=True).verify()


def test_what_cannot_be_divided_is_refused_before_anything_is_written(inline: InlineRay, tmp_path: Path) -> None:
    informed = replace(TINY, task_informed=True)
    with pytest.raises(ConfigError, match=r"one learner of all tasks, which cannot be divided.*--engine local"):
        collect(informed, tmp_path / "out", engine=RayEngine(), quiet=True)
    with pytest.raises(ConfigError, match="at most one a task, 10, got 11"):
        collect(TINY, tmp_path / "out", engine=RayEngine(shards=11), quiet=True)
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        RayEngine(shards=0)
    for source in ("sb3-ppo", "planned"):
        with pytest.raises(ConfigError, match=f"{source} learns on one machine"):
            run_collection("icrl/ReacherGoal-v0", tmp_path / "out", source=source, engine=RayEngine(), quiet=True)
    with (
        pytest.raises(ConfigError, match=r"--address and --shards say .* add --engine ray"),
        open_engine("local", "auto", 2),
    ):
        pass
    assert not (tmp_path / "out").exists()


def test_a_worker_of_other_versions_is_refused(
    inline: InlineRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "mujoco", SimpleNamespace(__version__="2.1.0"))
    with pytest.raises(ConfigError, match=r"the worker on .+ has .*2\.1\.0.*, the dataset is of"):
        collect(TINY, tmp_path, engine=RayEngine(), quiet=True)


def test_a_missing_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"icrl-agents\[ray\]"), open_engine("ray"):
        pass


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_is_named_at_once(
    inline: InlineRay, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr(inline, "is_initialized", lambda: False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ClusterError, match=rf"no Ray could be reached at {address}: .*ray start --head"):
            RayEngine(address)


# ------------------------------------------------------------------ a real one


@pytest.fixture
def cluster() -> Iterator[None]:
    """Ray on this machine, with two cores."""
    ray = pytest.importorskip("ray", reason="pip install 'icrl-agents[ray]'")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.mark.soak
def test_a_worker_that_is_killed_is_replaced(
    cluster: None, local: HistoryDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
    real, marker = ray_engine._work, str(tmp_path / "killed")

    def dying(fixed, part, steps, saved):
        import os
        from pathlib import Path

        if part.start and steps == 100 and not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(fixed, part, steps, saved)

    monkeypatch.setattr(ray_engine, "_work", dying)
    dataset = collect(TINY, tmp_path / "data", engine=RayEngine(), quiet=True)
    assert Path(marker).exists()
    assert_same_within_rounding(local, dataset)


@pytest.mark.soak
def test_a_killed_command_is_completed_by_the_same(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="pip install 'icrl-agents[ray]'")
    command = [sys.executable, "-m", "icrl_agents.cli", "collect", "reacher-goal", "--subset", "val", "--engine", "ray"]
    command += ["--shards", "2", "--steps-per-task", "50000", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        while not list(tmp_path.glob("shards/*")):
            assert driver.poll() is None
            time.sleep(0.05)
        driver.send_signal(signal.SIGKILL)
    assert not HistoryDataset(tmp_path, require_complete=False).manifest.progress.complete
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "50 histories of 10000 steps" in done.stdout
    HistoryDataset(tmp_path).verify()

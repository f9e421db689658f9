import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl_agents.errors import DatasetError
from icrl_agents.hub import CONFIG_FILE
from icrl_agents.training.histories import HistoryDataset, HistoryWriter
from icrl_agents.training.lock import DirectoryLock
from icrl_agents.training.manifest import load_manifest
from icrl_agents.training.run_state import IDENTITY_FILE

PER_STEP = ("observations", "actions", "mean_actions", "rewards", "terminated", "truncated")


@st.composite
def shards_of_episodes(draw):
    """Steps of each shard and, for every history, where its episodes end, counted from step 0."""
    histories = draw(st.sampled_from([1, 2, 4]))
    steps = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    ends = st.sets(st.integers(1, sum(steps))).map(sorted)
    return steps, draw(st.lists(ends, min_size=histories, max_size=histories))


@settings(max_examples=40, deadline=None)
@given(shards_of_episodes(), st.data())
def test_reads_what_was_appended(tmp_path_factory, make_manifest, make_arrays, case, data):
    steps, ends = case
    manifest = make_manifest(tasks=len(ends), streams=1, observation_dim=3, action_dim=1)
    directory, start, written = tmp_path_factory.mktemp("data"), 0, []
    with HistoryWriter.create_or_resume(directory, manifest) as writer:
        for number, count in enumerate(steps):
            here = [[e - start for e in own if start < e <= start + count] for own in ends]
            written.append(make_arrays(manifest, here, count, seed=number))
            writer.append(written[-1], {})
            start += count
        assert writer.steps == sum(steps)
        writer.finish(np.zeros(len(ends)))

    read = HistoryDataset(directory)
    read.verify()
    assert len(read) == len(ends)
    for h, own in enumerate(ends):
        assert read.episode_ends(h).tolist() == own
        whole = {name: np.concatenate([a[name][h] for a in written]) for name in PER_STEP}
        everything = read.history(h)
        assert everything.episode_ends.tolist() == own
        for name in PER_STEP:  # steps after the last whole episode are not part of the history
            np.testing.assert_array_equal(getattr(everything, name), whole[name][: (own or [0])[-1]])
            assert getattr(everything, name).dtype == whole[name].dtype
        assert everything.final_observations.shape == (len(own), 3)

        if own:
            chosen = data.draw(st.lists(st.integers(0, len(own) - 1), max_size=4))
            bounds = [0, *own]
            index = [t for e in chosen for t in range(bounds[e], bounds[e + 1])]
            some = read.history(h, chosen)
            for name in PER_STEP:
                np.testing.assert_array_equal(getattr(some, name), whole[name][index])
            np.testing.assert_array_equal(some.final_observations, everything.final_observations[np.array(chosen, int)])
            expected = [whole["rewards"][bounds[e] : bounds[e + 1]].sum() for e in chosen]
            np.testing.assert_allclose(some.returns, expected, atol=1e-5)


def test_final_observations_stand_with_their_episode(tmp_path, make_manifest, make_arrays):
    manifest = make_manifest(tasks=2, streams=1, observation_dim=1, action_dim=1)
    first, second = make_arrays(manifest, [[2, 4], [3]], 4), make_arrays(manifest, [[1], [2, 3]], 3)
    first["final_observations"] = np.array([[1.0], [2.0], [10.0]])
    second["final_observations"] = np.array([[3.0], [11.0], [12.0]])
    with HistoryWriter.create_or_resume(tmp_path, manifest) as writer:
        writer.append(first, {})
        writer.append(second, {})
    read = HistoryDataset(tmp_path, require_complete=False)
    assert read.history(0).final_observations.ravel().tolist() == [1, 2, 3]
    assert read.history(1).final_observations.ravel().tolist() == [10, 11, 12]
    assert read.history(1).episode_ends.tolist() == [3, 6, 7]
    assert read.history(1, slice(1, 2)).final_observations.ravel().tolist() == [11]
    assert read.history(1).episode_starts.tolist() == [0, 3, 6]


def test_history_index_is_task_then_stream(tmp_path, make_dataset):
    read = make_dataset(tmp_path, tasks=3, streams=2)
    assert [read.task_index(h) for h in range(len(read))] == [0, 0, 1, 1, 2, 2]
    assert read.task(4) == {"goal": [2.0, 0.0]}
    with pytest.raises(DatasetError, match="no history 6"):
        read.history(6)
    with pytest.raises(DatasetError, match="8 whole episodes"):
        read.history(0, [8])


def test_rectangular_final_observations_are_the_same_as_flat_ones(tmp_path, make_manifest, make_regular):
    manifest = make_manifest()
    flat = make_regular(manifest, 3)
    boxed = flat | {"final_observations": flat["final_observations"].reshape(4, 3, 8)}
    for name, given_arrays in {"flat": flat, "boxed": boxed}.items():
        with HistoryWriter.create_or_resume(tmp_path / name, manifest) as writer:
            writer.append(given_arrays, {})
    shard = "shards/00000.safetensors"
    assert (tmp_path / "flat" / shard).read_bytes() == (tmp_path / "boxed" / shard).read_bytes()


class Killed(BaseException):
    """Stands for kill -9: no handler of ours may see to anything."""


def collect(directory, manifest, make_regular, shards=3):
    """A collector: its state is how many shards it has made, and each shard depends on that alone."""
    with HistoryWriter.create_or_resume(directory, manifest) as writer:
        state = writer.resume_state()
        made = 0 if state is None else int(state["made"])
        if writer.complete:
            return
        assert writer.steps == made * 10
        while made < shards:
            made += 1
            writer.save_snapshot(made * 10, {"weight": np.full((len(manifest.tasks), 3), made / 4)})
            writer.append(make_regular(manifest, 2, seed=made), {"made": np.array(made)})
        writer.finish(np.arange(len(manifest.tasks)))


def contents(directory):
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_at_any_file_loses_nothing_committed(tmp_path, make_manifest, make_regular, monkeypatch, moment):
    manifest = make_manifest()
    collect(tmp_path / "whole", manifest, make_regular)
    expected = contents(tmp_path / "whole")
    rename = os.replace
    for fatal in range(1, 30):
        directory, calls = tmp_path / f"{moment}{fatal}", 0

        def dying(operation, limit=fatal):
            def run(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == limit and moment == "before":
                    raise Killed
                result = operation(*args, **kwargs)
                if calls == limit:
                    raise Killed
                return result

            return run

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying(rename))
            try:
                collect(directory, manifest, make_regular)
            except Killed:
                pass
            else:
                break  # the collector renames less often than that: every moment was tried
        if (directory / "manifest.json").exists():
            HistoryDataset(directory, require_complete=False).verify()
        collect(directory, manifest, make_regular)
        assert contents(directory) == expected
    assert fatal > 10  # manifest, then 3 x (snapshot, shard, state, manifest), then the last manifest


def test_survives_kill_9(tmp_path, make_manifest, make_regular):
    manifest = make_manifest(tasks=1, streams=1)
    script = """
import sys, time, numpy as np
from icrl_agents.training.histories import HistoryWriter, load_manifest
from pathlib import Path
directory = Path(sys.argv[1])
with HistoryWriter.create_or_resume(directory, load_manifest(directory)) as writer:
    state = writer.resume_state()
    steps = 0 if state is None else int(state["steps"])
    assert steps == writer.steps, (steps, writer.steps)
    print("ready", flush=True)
    while True:
        steps += 5
        values = np.arange(steps - 5, steps, dtype=np.float32)
        ends = np.arange(5)[None] == 4
        actions = np.zeros((1, 5, 2))
        arrays = {"observations": np.zeros((1, 5, 8)), "actions": actions, "mean_actions": actions,
                  "rewards": values[None], "terminated": ends, "truncated": ends,
                  "final_observations": np.zeros((1, 8))}
        writer.append(arrays, {"steps": np.array(steps)})
"""
    HistoryWriter.create_or_resume(tmp_path, manifest).close()
    for delay in (0.02, 0.07, 0.15):
        command = [sys.executable, "-c", script, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        read = HistoryDataset(tmp_path, require_complete=False)
        read.verify()
        steps = read.manifest.progress.steps
        np.testing.assert_array_equal(read.history(0).rewards, np.arange(steps))
    assert steps > 0


def test_another_collection_is_refused_and_nothing_is_overwritten(tmp_path, make_dataset, make_manifest):
    make_dataset(tmp_path)
    before = contents(tmp_path)
    other = make_manifest(seed=7, hyperparameters={"learning_rate": 1.0, "sizes": [64, 64]})
    differences = r"hyperparameters\.learning_rate \(there 0\.001, here 1\.0\); seed \(there 0, here 7\)$"
    with pytest.raises(DatasetError, match=f"differs in: {differences}"):
        HistoryWriter.create_or_resume(tmp_path, other)
    assert contents(tmp_path) == before
    HistoryWriter.create_or_resume(tmp_path, make_manifest()).close()  # the failed attempt left no lock


def test_a_collection_that_recorded_nothing_is_replaced(tmp_path, make_manifest):
    HistoryWriter.create_or_resume(tmp_path, make_manifest()).close()
    (tmp_path / "times.json").write_text("{}")  # of a pipeline that was cut off
    (tmp_path / "state-00000.safetensors").write_bytes(b"a kill came before the manifest that names it")
    HistoryWriter.create_or_resume(tmp_path, make_manifest(seed=7)).close()
    assert load_manifest(tmp_path).seed == 7
    assert not (tmp_path / "state-00000.safetensors").exists()


def test_runs_that_are_to_be_merged_are_not_replaced(tmp_path, make_manifest):
    HistoryWriter.create_or_resume(tmp_path, make_manifest()).close()
    (tmp_path / "tasks").mkdir()
    with pytest.raises(DatasetError, match="another collection"):
        HistoryWriter.create_or_resume(tmp_path, make_manifest(seed=7))


def test_states_alone(tmp_path, make_manifest, make_regular):
    """Committed before the first shard and between two; only the newest is kept, and none once complete."""
    with HistoryWriter.create_or_resume(tmp_path, make_manifest()) as writer:
        for value in range(2):
            writer.save_state({"value": np.array([value])})
        writer.append(make_regular(writer.manifest, 2), {"value": np.array([2])})
        writer.save_state({"value": np.array([3])})
    with HistoryWriter.create_or_resume(tmp_path, make_manifest()) as writer:
        assert writer.resume_state()["value"] == 3
        assert [path.name for path in tmp_path.glob("state-*")] == ["state-00003.safetensors"]
        writer.finish(np.zeros(len(writer.manifest.tasks)))
        assert not list(tmp_path.glob("state-*"))
        with pytest.raises(DatasetError, match="complete"):
            writer.save_state({})


def test_shards_without_a_manifest_are_not_deleted(tmp_path, make_dataset, make_manifest):
    make_dataset(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(DatasetError, match=r"no manifest\.json"):
        HistoryWriter.create_or_resume(tmp_path, make_manifest())
    assert (tmp_path / "shards/00000.safetensors").exists()


@pytest.mark.parametrize(
    "file", ["snapshots/best.safetensors", "learner.safetensors", "state-1.safetensors", IDENTITY_FILE, CONFIG_FILE]
)
def test_files_of_another_project_are_not_deleted(tmp_path, make_manifest, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("mine")
    with pytest.raises(DatasetError, match=rf"holds {Path(file).name} but no manifest\.json"):
        HistoryWriter.create_or_resume(tmp_path, make_manifest())
    assert (tmp_path / file).read_text() == "mine"


def test_what_observations_are_normalized_by_is_exact(tmp_path, make_manifest, make_regular):
    mean = np.float32([[0.7001, 1.0], [2.0, 3.0]])
    with HistoryWriter.create_or_resume(tmp_path, make_manifest()) as writer:
        writer.save_snapshot(10, {"observation_mean": mean, "weight": mean})
        writer.append(make_regular(make_manifest(), 2), {})
        writer.finish([0.0, 0.0])
    snapshot = HistoryDataset(tmp_path).snapshot()
    np.testing.assert_array_equal(snapshot["observation_mean"], mean)
    assert 0 < abs(snapshot["weight"] - mean).max() < 1e-3


def test_a_file_system_without_locks_is_told_from_another_process(tmp_path, make_manifest, monkeypatch):
    def flock(handle, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("icrl_agents.training.lock.fcntl.flock", flock)
    with pytest.raises(DatasetError, match=r"on a file system without locks: .* not implemented"):
        HistoryWriter.create_or_resume(tmp_path, make_manifest())


def test_one_writer_at_a_time(tmp_path, make_manifest):
    first = HistoryWriter.create_or_resume(tmp_path, make_manifest())
    with pytest.raises(DatasetError, match="in use by another process"):
        HistoryWriter.create_or_resume(tmp_path, make_manifest())
    first.close()
    HistoryWriter.create_or_resume(tmp_path, make_manifest()).close()


def test_a_lock_cleans_up_after_killed_processes_but_not_below_its_own_folders(tmp_path):
    partial = f".00000.safetensors.{'0a' * 16}"
    own = [tmp_path / folder / partial for folder in (".", "shards", "snapshots", "rounds")]
    others = [tmp_path / "other-run" / partial, tmp_path / "other-run/shards" / partial, tmp_path / ".keep"]
    for file in (*own, *others):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    DirectoryLock(tmp_path).release()
    assert not any(file.exists() for file in own)
    assert all(file.exists() for file in others)


def test_state_is_kept_until_complete(tmp_path, make_manifest, make_regular):
    manifest = make_manifest()
    with HistoryWriter.create_or_resume(tmp_path, manifest) as writer:
        assert writer.resume_state() is None
        big = np.array([2**63 + 1], np.uint64)
        writer.append(make_regular(manifest, 1), {"random": big, "turned": np.arange(6).reshape(2, 3).T})
        state = writer.resume_state()
        assert state["random"] == big
        np.testing.assert_array_equal(state["turned"], [[0, 3], [1, 4], [2, 5]])
        with pytest.raises(DatasetError, match="not complete"):
            HistoryDataset(tmp_path)
        with pytest.raises(DatasetError, match="2 finite numbers"):
            writer.finish([1.0])
        writer.finish([1.0, 2.0])
        assert writer.complete
        assert writer.resume_state() is None
        with pytest.raises(DatasetError, match="is complete"):
            writer.append(make_regular(manifest, 1), {})
    assert HistoryDataset(tmp_path).manifest.progress.final_returns == (1.0, 2.0)
    assert not list(tmp_path.glob("state-*"))


def test_snapshots(tmp_path, make_manifest, make_regular):
    manifest = make_manifest()
    policy = {
        "weight": np.array([[0.1, 2.0], [3.0, 4.0]]),
        "huge": np.array([1e6, 1.0]),
        "count": np.array([3, 4]),
    }
    with HistoryWriter.create_or_resume(tmp_path, manifest) as writer:
        writer.save_snapshot(0, policy)
        writer.save_snapshot(10, policy | {"weight": policy["weight"] + 1})
        assert [s.step for s in writer.manifest.progress.snapshots] == [0]  # 10 is not committed yet
        with pytest.raises(DatasetError, match="step 5 comes after the one of step 10"):
            writer.save_snapshot(5, policy)
        with pytest.raises(DatasetError, match="first axis of 2 tasks"):
            writer.save_snapshot(20, {"weight": np.zeros((3, 2))})
        writer.append(make_regular(manifest, 2), {})
        writer.save_snapshot(10, policy)  # there already
    read = HistoryDataset(tmp_path, require_complete=False)
    assert read.snapshot_steps == (0, 10)
    assert read.snapshot(0)["weight"].dtype == np.float32
    np.testing.assert_array_equal(read.snapshot()["weight"], np.float16(policy["weight"] + 1).astype(np.float32))
    assert read.snapshot()["huge"].tolist() == [1e6, 1.0]  # does not fit into fp16
    assert read.snapshot()["count"].tolist() == [3, 4]
    with pytest.raises(DatasetError, match="2 policy snapshots"):
        read.snapshot(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": np.zeros((4, 9))}, r"observations: expected shape \(4, 9, 8\), got \(4, 10, 8\)"),
        ({"observations": np.zeros((4, 10, 7))}, r"observations: expected shape \(4, 10, 8\)"),
        ({"rewards": np.full((4, 10), np.nan)}, "rewards holds values that are not finite"),
        ({"final_observations": np.zeros((4, 3, 8))}, "final_observations: expected 8 of 8 entries"),
        ({"rewards": np.zeros((4, 0))}, "T > 0"),
        ({"extra": np.zeros(4)}, "expected the arrays"),
    ],
)
def test_bad_arrays_are_refused_before_anything_is_written(tmp_path, make_manifest, make_regular, change, message):
    manifest = make_manifest()
    with HistoryWriter.create_or_resume(tmp_path, manifest) as writer:
        before = contents(tmp_path)
        with pytest.raises(DatasetError, match=message):
            writer.append(make_regular(manifest, 2) | change, {})
        assert contents(tmp_path) == before


def test_damage_is_found(tmp_path, make_dataset):
    make_dataset(tmp_path)
    shard = tmp_path / "shards/00001.safetensors"
    whole = shard.read_bytes()

    flipped = bytearray(whole)
    flipped[-1] ^= 1
    shard.write_bytes(flipped)
    with pytest.raises(DatasetError, match=r"00001\.safetensors is damaged: its sha256"):
        HistoryDataset(tmp_path).verify()

    shard.write_bytes(whole[:-1])
    with pytest.raises(DatasetError, match=f"expected {len(whole)} bytes, it has {len(whole) - 1}"):
        HistoryDataset(tmp_path)

    shard.write_bytes(b"\xff" * len(whole))
    with pytest.raises(DatasetError, match="is damaged"):
        HistoryDataset(tmp_path).history(0)

    shard.unlink()
    with pytest.raises(DatasetError, match="it is missing"):
        HistoryDataset(tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data.update(format_version=2), "format_version 2; this version reads 1"),
        (lambda data: data.update(surprise=1), "unknown key"),
        (lambda data: data.pop("tasks"), "missing key"),
        (lambda data: data["progress"]["shards"][0].update(file="../../other"), "outside the dataset"),
        (lambda data: data["progress"].update(state="/etc/passwd"), "outside the dataset"),
    ],
)
def test_a_foreign_manifest_is_refused(tmp_path, make_dataset, edit, message):
    make_dataset(tmp_path)
    data = json.loads((tmp_path / "manifest.json").read_text())
    edit(data)
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(DatasetError, match=message):
        HistoryDataset(tmp_path)


def test_no_dataset(tmp_path):
    with pytest.raises(DatasetError, match=r"no manifest\.json"):
        HistoryDataset(tmp_path / "nowhere")
    for content in ("{", "[" * 100_000, '{"seed": ' + "1" * 5000 + "}"):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(DatasetError, match=r"manifest\.json is damaged"):
            HistoryDataset(tmp_path)
    (tmp_path / "manifest.json").write_text("[1]")
    with pytest.raises(DatasetError, match=r"manifest\.json: expected an object"):
        HistoryDataset(tmp_path)


def test_digest_changes_with_identity_and_content(tmp_path, make_dataset):
    one = make_dataset(tmp_path / "one").manifest
    assert make_dataset(tmp_path / "again").manifest.digest() == one.digest()
    assert make_dataset(tmp_path / "more", episodes=9).manifest.digest() != one.digest()
    assert dataclasses.replace(one, seed=1).digest() != one.digest()

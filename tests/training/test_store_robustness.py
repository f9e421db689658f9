"""Whatever happens to a collection or its files: never a wrong history read silently, and collecting goes on."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl_agents.errors import DatasetError
from icrl_agents.training.histories import HistoryDataset, HistoryWriter
from icrl_agents.training.manifest import load_manifest, save_manifest

PER_STEP = ("observations", "actions", "mean_actions", "rewards", "terminated", "truncated", "final_observations")

COLLECTOR = """
# One process imports everything; its children collect and are killed. argv: directory, kills, seed, steps per task.
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from icrl_agents.training.collection import CollectionConfig, collect
from icrl_agents.training.sources.ppo import PPOConfig

config = CollectionConfig("icrl/ReacherGoal-v0", subset="val", steps_per_task=int(sys.argv[4]), streams=2,
                          shard_steps=100, snapshots=10, ppo=PPOConfig(n_steps=50, hidden=(16,)))
directory, kills, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))

def child(out):
    pid = os.fork()
    if pid == 0:
        collect(config, out, quiet=True)
        os._exit(0)
    return pid

started = time.monotonic()
assert os.waitstatus_to_exitcode(os.waitpid(child(directory / "whole"), 0)[1]) == 0
seconds = time.monotonic() - started
survived = attempt = 0
while True:
    pid = child(directory / f"killed{attempt}")
    if survived < kills:
        time.sleep(rng.uniform(0, 2.5 * seconds / max(kills, 4)))
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == -signal.SIGKILL:
        survived += 1
    elif code != 0:
        sys.exit(f"the collector failed with {code}")
    elif survived >= kills:
        break
    else:  # it was done before it had been killed often enough: another one
        attempt += 1
print(survived, attempt + 1)
"""


@pytest.mark.parametrize(("kills", "steps"), [(2, 1_600), pytest.param(20, 6_000, marks=pytest.mark.soak)])
def test_kill_9_at_random_moments_leaves_the_dataset_of_an_uninterrupted_run(
    tmp_path: Path, kills: int, steps: int
) -> None:
    seed = str(int.from_bytes(os.urandom(4), "little"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", COLLECTOR, str(tmp_path), str(kills), seed, str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    survived, datasets = map(int, done.stdout.split())
    assert survived >= kills
    whole = HistoryDataset(tmp_path / "whole")
    whole.verify()
    for attempt in range(datasets):
        killed = HistoryDataset(tmp_path / f"killed{attempt}")
        killed.verify()
        assert killed.manifest == whole.manifest, f"seed {seed}"  # it holds the hash of every file
        assert _files(tmp_path / f"killed{attempt}") == _files(tmp_path / "whole")  # and nothing was left behind


def _files(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


# ------------------------------------------------------------------ damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, make_dataset, make_manifest, make_regular) -> Path:
    """``complete`` is a dataset with a snapshot, ``begun`` a collection that can go on."""
    directory = tmp_path_factory.mktemp("whole")
    manifest = make_manifest()
    for name in ("complete", "begun"):
        with HistoryWriter.create_or_resume(directory / name, manifest) as writer:
            writer.save_snapshot(10, {"weight": np.arange(6.0).reshape(2, 3)})
            writer.append(make_regular(manifest, 2, seed=1), {"made": np.array([1])})
            writer.append(make_regular(manifest, 2, seed=2), {"made": np.array([2])})
            if name == "complete":
                writer.finish([1.0, 2.0])
    return directory


def everything(directory: Path) -> list:
    """All that can be read of a dataset."""
    dataset = HistoryDataset(directory, require_complete=False)
    histories = [dataset.history(h) for h in range(len(dataset))]
    arrays = [getattr(history, name).tobytes() for history in histories for name in PER_STEP]
    return [dataset.manifest, arrays, dataset.snapshot()["weight"].tolist()]


def resumed(directory: Path) -> list:
    """What a collector goes on from."""
    with HistoryWriter.create_or_resume(directory, load_manifest(directory)) as writer:
        state = writer.resume_state()
        return [writer.manifest, None if state is None else {name: array.tolist() for name, array in state.items()}]


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_damage_is_an_error_or_changes_nothing(whole: Path, tmp_path_factory: pytest.TempPathFactory, data) -> None:
    name = data.draw(st.sampled_from(["complete", "begun"]))
    expected = [read(whole / name) for read in (everything, resumed)]
    damaged = tmp_path_factory.mktemp("damaged") / name
    shutil.copytree(whole / name, damaged)
    file = damaged / data.draw(st.sampled_from([f for f in _files(damaged) if f != ".lock"]))
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["flip", "truncate", "zero", "longer"]))
    if kind == "flip":
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "truncate":
        del content[at:]
    elif kind == "zero":  # a page that never reached the disk
        content[at : at + 512] = bytes(len(content[at : at + 512]))
    else:
        content += b"0"
    file.write_bytes(content)
    for read, whole_of_it in zip((everything, resumed), expected, strict=True):
        try:
            found = read(damaged)
        except DatasetError:
            continue
        assert found == whole_of_it
    shutil.rmtree(damaged)


def test_all_damaged_files_are_named(whole: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(whole / "complete", damaged)
    for shard in damaged.glob("shards/*"):
        shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(DatasetError, match=r"00000\.safetensors is damaged.*00001\.safetensors is damaged"):
        HistoryDataset(damaged).verify()
    (damaged / "shards/00000.safetensors").unlink()
    with pytest.raises(DatasetError, match=r"00000\.safetensors is damaged: .*it is missing"):
        HistoryWriter.create_or_resume(damaged, load_manifest(damaged))


def test_a_dataset_of_before_checksums_is_read(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "complete", tmp_path / "old")
    path = tmp_path / "old/manifest.json"
    lines = [
        line for line in path.read_text().splitlines() if '"checksum"' not in line and '"state_sha256"' not in line
    ]
    text = "\n".join(lines)
    for dangling in (",\n}", ",\n  }", ",\n }"):
        text = text.replace(dangling, dangling[1:])
    path.write_text(text)
    assert everything(tmp_path / "old")[1:] == everything(whole / "complete")[1:]


# ------------------------------------------------------------------ disk full


def refusal(write: Callable[[], None]) -> str | None:
    """The message of the DatasetError that something raises."""
    try:
        write()
    except DatasetError as error:
        return str(error)
    return None


@pytest.mark.parametrize("operation", ["replace", "fsync"])
def test_a_full_disk_is_an_error_of_ours_and_collecting_goes_on_after_it(
    tmp_path: Path, make_manifest, make_regular, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    manifest = make_manifest()

    def collect(directory: Path) -> None:
        with HistoryWriter.create_or_resume(directory, manifest) as writer:
            for made in range(writer.steps // 10, 3):
                writer.save_snapshot((made + 1) * 10, {"weight": np.full((2, 3), made / 4)})
                writer.append(make_regular(manifest, 2, seed=made), {"made": np.array(made)})
            if not writer.complete:
                writer.finish([0.0, 0.0])

    collect(tmp_path / "whole")
    real, failures = getattr(os, operation), 0
    for first_failure in range(1, 30):
        directory, calls = tmp_path / str(first_failure), 0

        def full(*args, limit: int = first_failure):
            nonlocal calls
            calls += 1
            if calls == limit:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, operation, full)
            error = refusal(lambda directory=directory: collect(directory))
        if error is None:
            break  # it writes less often than that: every moment was tried
        assert "No space left on device; what was committed before is whole" in error
        failures += 1
        collect(directory)
        assert load_manifest(directory) == load_manifest(tmp_path / "whole")
        assert _files(directory) == _files(tmp_path / "whole")
    assert failures > 10


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small file system")
def test_a_really_full_disk(tmp_path: Path, make_manifest, make_regular) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine mounts nothing")
    try:
        with HistoryWriter.create_or_resume(disk / "data", make_manifest()) as writer:
            for made in range(100):
                arrays = make_regular(writer.manifest, 20, seed=made)
                error = refusal(lambda arrays=arrays: writer.append(arrays, {}))
                if error is not None:
                    break
            assert error is not None
            assert "No space left on device" in error
            committed = writer.manifest.progress
        read = HistoryDataset(disk / "data", require_complete=False)
        read.verify()
        assert read.manifest.progress == committed
        assert len(committed.shards) == made > 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ------------------------------------------------------------------ two collectors


def test_the_second_collector_is_told_who_is_the_first(tmp_path: Path, make_manifest) -> None:
    manifest = make_manifest()
    HistoryWriter.create_or_resume(tmp_path, manifest).close()
    script = """
import sys
from pathlib import Path
from icrl_agents.training.lock import DirectoryLock
with DirectoryLock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        with pytest.raises(DatasetError, match=rf"in use by another process \(pid {first.pid} on .+, since 20"):
            HistoryWriter.create_or_resume(tmp_path, manifest)
        first.send_signal(signal.SIGKILL)
    HistoryWriter.create_or_resume(tmp_path, manifest).close()  # the lock died with it


def test_a_manifest_written_again_is_the_same(whole: Path, tmp_path: Path) -> None:
    save_manifest(tmp_path, load_manifest(whole / "complete"))
    assert (tmp_path / "manifest.json").read_bytes() == (whole / "complete/manifest.json").read_bytes()

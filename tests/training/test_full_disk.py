"""A run on a disk that is full or cannot be written: an error of ours, nothing half done, and going on later."""

import errno
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

from icrl_agents.errors import DatasetError
from icrl_agents.training.distillation import DistillationConfig, train
from icrl_agents.training.histories import HistoryDataset, HistoryWriter
from icrl_agents.training.run_log import RunLog

TINY = DistillationConfig(
    name="tiny",
    env_id="icrl/ReacherGoal-v0",
    backbone="transformer",
    backbone_options={"d_model": 8, "n_layers": 1, "n_heads": 2, "d_ff": 16, "context_length": 12},
    head_hidden=8,
    keep_every=2,
    episodes=4,
    updates=2,
    batch_size=3,
    val_episodes=0,
)


def trained(data: Path, out: Path) -> Path:
    train(TINY, data, out, tensorboard=False, quiet=True, device="cpu")
    return out


def refusal(data: Path, out: Path) -> str | None:
    """The message of the DatasetError that a run ends with."""
    try:
        trained(data, out)
    except DatasetError as error:
        return str(error)
    return None


def files(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def test_a_full_disk_ends_a_training_run_in_words_and_the_same_call_goes_on(
    tmp_path: Path, make_dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every moment at which one of its files would become durable."""
    data = tmp_path / "data"
    make_dataset(data, tasks=2)
    whole = trained(data, tmp_path / "whole")
    real = os.fsync
    for failing in range(1, 30):
        calls = 0

        def full(handle: int, limit: int = failing) -> None:
            nonlocal calls
            calls += 1
            if calls == limit:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(handle)

        out = tmp_path / str(failing)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            error = refusal(data, out)
        if error is None:
            break  # it writes less often than that: every moment was tried
        assert "No space left on device; what was committed before is whole" in error
        trained(data, out)
        assert files(out) == files(whole)
        expected, found = (load_file(run / "model.safetensors") for run in (whole, out))
        assert all(found[name].equal(tensor) for name, tensor in expected.items())
    assert failing > 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_log_on_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"update": 1}\n')
    log = RunLog(tmp_path, 2, 1, tensorboard=False, quiet=True)
    with Path("/dev/full").open("a") as full:
        os.dup2(full.fileno(), log._file.fileno())
    with pytest.raises(DatasetError, match=r"could not be written: .*No space left on device"), log:
        log.record(2, {"loss": 1.0})


def test_a_file_where_the_directory_should_be(tmp_path: Path, make_dataset, make_manifest) -> None:
    make_dataset(tmp_path / "data", tasks=2)
    (tmp_path / "file").touch()
    said = r"file could not be written: .*File exists"
    with pytest.raises(DatasetError, match=said):
        HistoryWriter.create_or_resume(tmp_path / "file", make_manifest())
    with pytest.raises(DatasetError, match=said):
        trained(tmp_path / "data", tmp_path / "file")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, make_dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset: HistoryDataset = make_dataset(tmp_path)

    def failing(self: Path, *args: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(DatasetError, match=r"00000\.safetensors cannot be read: .*Input/output error"):
        dataset.verify()

"""A training run on a disk that is full or cannot be written: an error of ours, nothing half done, and going on later."""

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
            try:
                trained(data, out)
                break  # it writes less often than that: every moment was tried
            except DatasetError as error:
                assert "No space left on device; what was committed before is whole" in str(error)
        trained(data, out)
        assert files(out) == files(whole)
        expected, found = (load_file(run / "model.safetensors") for run in (whole, out))
        assert all(found[name].equal(tensor) for name, tensor in expected.items())
    assert failing > 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_log_on_a_full_disk(tmp_path: Path) -> None:
    with RunLog(tmp_path, 2, 0, tensorboard=False, quiet=True) as log:
        log._file.close()
        log._file = open("/dev/full", "a", encoding="utf-8", buffering=1)  # noqa: SIM115  the log closes it
        with pytest.raises(DatasetError, match="could not be written: .*No space left on device"):
            log.record(1, {"loss": 1.0})
        os.dup2(os.open(os.devnull, os.O_WRONLY), log._file.fileno())  # else closing tries once more


@pytest.mark.parametrize("command", ["collect", "train"])
def test_a_file_where_the_directory_should_be(tmp_path: Path, make_dataset, make_manifest, command: str) -> None:
    make_dataset(tmp_path / "data", tasks=2)
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match=r"file could not be written: .*File exists"):
        if command == "collect":
            HistoryWriter.create_or_resume(tmp_path / "file", make_manifest())
        else:
            trained(tmp_path / "data", tmp_path / "file")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, make_dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset: HistoryDataset = make_dataset(tmp_path)

    def failing(self: Path, *args: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(DatasetError, match=r"00000\.safetensors cannot be read: .*Input/output error"):
        dataset.verify()

"""The commands about datasets, as a user types them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from icrl_agents.cli import main
from icrl_agents.training.collection import CollectionConfig, collect
from icrl_agents.training.histories import HistoryDataset
from icrl_agents.training.sources.ppo import PPOConfig

ENV_ID = "icrl/ReacherGoal-v0"


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data") / "informed"
    ppo = PPOConfig(50, n_epochs=1, hidden=(8,))
    config = CollectionConfig(
        ENV_ID, subset="val", steps_per_task=200, streams=2, shard_steps=100, snapshots=2, task_informed=True, ppo=ppo
    )
    collect(config, directory, quiet=True)
    return directory


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command in an empty folder and return what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def command(*arguments: str | Path) -> str:
        main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return command


@pytest.fixture
def refused(run, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that ends with status 2 and return its message."""

    def command(*arguments: str | Path) -> str:
        with pytest.raises(SystemExit) as ended:
            run(*arguments)
        assert ended.value.code == 2
        return capsys.readouterr().err

    return command


def test_histories_prints_plots_and_finds_damage(collected: Path, run, refused, tmp_path: Path) -> None:
    printed = run("histories", collected)
    first = HistoryDataset(collected).task(0)["goal"]
    assert f"goal {first[0]:.3g} {first[1]:.3g}" in printed
    assert "mean over tasks" in printed
    assert "20 histories of 100 steps, 2 a task; 40 episodes; 2 policy snapshots; complete" in printed
    assert "all as written" in printed
    assert Path("out/histories.png").is_file()
    assert "no dataset of learning histories" in refused("histories", tmp_path)
    snapshot = collected / "snapshots/000000050.safetensors"
    whole = snapshot.read_bytes()
    try:
        snapshot.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert "000000050.safetensors is damaged" in refused("histories", collected)
    finally:
        snapshot.write_bytes(whole)


def test_regenerate(collected: Path, run, refused) -> None:
    printed = run("regenerate", collected, "--out", "more", "--noise", "annealed", "--policy", "final", "--steps", "50")
    assert "more: 20 histories of 50 steps, 10 tasks; final source policies return -" in printed
    run("regenerate", collected, "--out", "new", "--sampled-tasks", "3", "--streams", "1", "--wrong-experts", "0.2")
    assert len(HistoryDataset("new")) == 3
    assert "seed (there 0, here 1)" in refused(
        "regenerate",
        collected,
        "--out",
        "new",
        "--sampled-tasks",
        "3",
        "--streams",
        "1",
        "--wrong-experts",
        "0.2",
        "--seed",
        "1",
    )
    assert "at most 1 if annealed" in refused(
        "regenerate", collected, "--out", "x", "--noise", "annealed", "--noise-scale", "2"
    )


def test_to_minari_and_back(collected: Path, run, refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minari", reason="the extra minari is not installed")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    assert "icrl/reacher-goal/ppo-v0" in run("export-minari", collected, "icrl/reacher-goal/ppo-v0")
    printed = run("import-minari", "icrl/reacher-goal/ppo-v0", "--out", "back")
    assert "back: 20 histories of up to 100 steps" in printed
    one, other = HistoryDataset(collected), HistoryDataset("back")
    assert all((one.history(h).actions == other.history(h).actions).all() for h in range(20))
    assert "--task is JSON" in refused("import-minari", "x-v0", "--out", "y", "--task", "fast")
    assert "--task is a JSON object" in refused("import-minari", "x-v0", "--out", "y", "--task", "3")
    assert "is no Minari dataset on this machine" in refused("import-minari", "x-v0", "--out", "y")


def test_what_is_broken_is_not_pushed(collected: Path, refused, tmp_path: Path) -> None:
    shutil.copytree(collected, tmp_path / "broken")
    (tmp_path / "broken/shards/00000.safetensors").write_bytes(b"")
    assert "is damaged" in refused("push-data", tmp_path / "broken", "org/data")

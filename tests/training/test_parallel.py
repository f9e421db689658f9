"""Several processes on one training run: the run of one process, whoever is lost on the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from icrl_agents.envs import task_split
from icrl_agents.errors import ConfigError
from icrl_agents.training.distillation import DistillationConfig, train
from icrl_agents.training.histories import HistoryWriter
from icrl_agents.training.parallel import Processes, processes_of_environment

PROCESSES = """
# One process imports everything; its children train and are killed. argv: directory of the data and runs; which runs.
import os, signal, socket, sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
from icrl_agents.errors import IcrlError
from icrl_agents.training import distillation
from icrl_agents.training.distillation import DistillationConfig, train
from icrl_agents.training.on_policy import OnPolicyConfig

root = Path(sys.argv[1])
distillation.SAVE_SECONDS = 0.0
COMMON = dict(name="tiny", env_id="icrl/ReacherGoal-v0", backbone="transformer",
              backbone_options={"d_model": 8, "n_layers": 1, "n_heads": 2, "d_ff": 16, "context_length": 12},
              head_hidden=8, keep_every=1, updates=6, warmup=2, val_fraction=0.0, validate_every=3)
AD = DistillationConfig(**COMMON, episodes=4, batch_size=4, val_episodes=2, input_noise=0.1, muon_learning_rate=0.01)
ON_POLICY = DistillationConfig(
    **COMMON, episodes=3, batch_size=2, val_episodes=0, target="final_policy",
    on_policy=OnPolicyConfig(round_updates=2, keep_rounds=2, short_episodes=2, teacher=(0.0, 0.5), noise=(0.0, 0.2)))

class Teachers:
    seen_dim = 8
    def __init__(self):
        self.weights = np.random.default_rng(4).normal(size=(3, 8, 2)) / 4
    def __len__(self):
        return 3
    def act(self, observations):
        return np.tanh(observations @ self.weights).astype(np.float32)
    def act_each(self, tasks, observations):
        return np.tanh((observations[:, None] @ self.weights[tasks])[:, 0]).astype(np.float32)

def child(name, config, rank, count, port, at_update):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port))
    do_update = distillation._Run._update
    def update(self, number):
        at_update(rank, number)
        return do_update(self, number)
    distillation._Run._update = update
    teachers = None if config.on_policy is None else Teachers()
    def rollout(agent):
        assert rank == 0, "only the first process validates"
        return np.ones((1, config.val_episodes)) * float(next(agent.model.parameters()).detach().mean())
    data = root / ("data" if teachers is None else "tasks")
    text = "done"
    try:
        result = train(config, data, root / name, teachers=teachers, rollout=rollout, tensorboard=False, quiet=True,
                       device="cpu")
        text = f"done {result.best_update}"
    except (IcrlError, KeyboardInterrupt) as error:
        text = f"{type(error).__name__}: {error}"
    (root / f"{name}.{rank}.txt").write_text(text)

def run(name, config, count, at_update=lambda rank, number: None):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = {}
    for rank in range(count):
        pid = os.fork()
        if pid == 0:
            child(name, config, rank, count, port, at_update)
            os._exit(0)
        children[rank] = pid
    return {rank: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for rank, pid in children.items()}

def signal_second(number, which):
    return lambda rank, update: os.kill(os.getpid(), which) if (rank, update) == (1, number) else None

for name in sys.argv[2:]:
    method, _, kind = name.rpartition("-")
    config = {"ad": AD, "on-policy": ON_POLICY}[method]
    if kind in ("1", "2"):
        assert set(run(name, config, int(kind)).values()) == {0}
    elif kind == "killed":
        assert run(name, config, 2, signal_second(4, signal.SIGKILL)) == {0: 0, 1: -signal.SIGKILL}
        (root / f"{name}.0.txt").rename(root / f"{name}.txt")
        assert run(name, config, 2) == {0: 0, 1: 0}
    elif kind == "stopped":
        assert run(name, config, 2, signal_second(3, signal.SIGINT)) == {0: 0, 1: 0}
        for rank in range(2):
            (root / f"{name}.{rank}.txt").rename(root / f"{name}.first.{rank}.txt")
        assert run(name, config, 1) == {0: 0}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, make_dataset, make_manifest, make_arrays) -> Path:
    """Runs of one process, of two, and of two that were disturbed; each writes ``NAME.RANK.txt`` beside its folder."""
    root = tmp_path_factory.mktemp("runs")
    tasks = task_split("icrl/ReacherGoal-v0").train[:3]
    make_dataset(root / "tasks", episodes=2, tasks=tasks, streams=1, episode_steps=50)
    manifest = make_manifest(tasks=4)
    ends = [range(5, (41, 16, 11, 31)[h % 4], 5) for h in range(manifest.histories)]  # some shorter than a window
    with HistoryWriter.create_or_resume(root / "data", manifest) as writer:
        writer.append(make_arrays(manifest, ends, 40), {})
        writer.finish(np.zeros(4))
    run(root, "ad-1", "ad-2", "ad-killed", "ad-stopped", "on-policy-1", "on-policy-2")
    return root


def run(root: Path, *names: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", PROCESSES, str(root), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr


def metrics(directory: Path) -> list[dict]:
    """What was logged, without what depends on the clock."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]


def assert_close(one: Path, other: Path) -> None:
    """The same log and the same weights, within rounding."""
    for ours, theirs in zip(metrics(one), metrics(other), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            np.testing.assert_allclose(theirs[name], value, rtol=1e-4, atol=1e-6, err_msg=f"{ours['update']} {name}")
    expected, found = (load_file(run / "model.safetensors") for run in (one, other))
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("method", ["ad", "on-policy"])
def test_two_processes_do_the_run_of_one(runs: Path, method: str) -> None:
    assert_close(runs / f"{method}-1", runs / f"{method}-2")
    said = {(runs / f"{method}-{count}.{rank}.txt").read_text() for count, rank in ((1, 0), (2, 0), (2, 1))}
    assert len(said) == 1  # both know which update was the best
    assert said.pop().startswith("done ")
    assert json.loads((runs / f"{method}-2/training.json").read_text())["processes"] == 2


@pytest.mark.parametrize("method", ["ad", pytest.param("on-policy", marks=pytest.mark.soak)])
def test_a_lost_process_ends_the_run_and_the_same_command_goes_on(runs: Path, method: str) -> None:
    if method == "on-policy":
        run(runs, "on-policy-killed")
    said = (runs / f"{method}-killed.txt").read_text()
    assert "ClusterError: another process of this training ended or cannot be reached" in said
    assert "the same command goes on" in said
    assert metrics(runs / f"{method}-killed") == metrics(runs / f"{method}-2")
    ended = [load_file(runs / f"{method}-{name}/model.safetensors") for name in ("2", "killed")]
    assert all(np.array_equal(ended[0][name], ended[1][name]) for name in ended[0])
    assert not (runs / f"{method}-killed/rounds").exists()


def test_an_interrupt_of_one_stops_all_and_one_alone_may_go_on(runs: Path) -> None:
    said = {(runs / f"ad-stopped.first.{rank}.txt").read_text() for rank in range(2)}
    assert said == {"KeyboardInterrupt: saved after update 3 of 6; the same command goes on"}
    assert_close(runs / "ad-1", runs / "ad-stopped")


def test_a_batch_that_cannot_be_divided_is_refused_before_anything_is_written(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    config = DistillationConfig(name="tiny", env_id="icrl/ReacherGoal-v0", batch_size=4)
    with pytest.raises(ConfigError, match="a batch of 4 sequences cannot be divided among 3 processes"):
        train(config, runs / "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"start one of 1, 2, 3, 4, 6, 12$"):
        Processes(0, 5).check_batch(12)


def test_rows_cover_a_batch_once() -> None:
    for batch, count in ((4, 2), (7, 3), (1, 1)):
        covered = [row for rank in range(count) for row in range(batch)[Processes(rank, count).rows(batch)]]
        assert covered == list(range(batch))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Processes()),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Processes(1, 4, 1)),
        ({"WORLD_SIZE": "4"}, Processes()),  # a batch system's, of something else
    ],
)
def test_who_this_is(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: Processes) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes_of_environment() == expected


def test_variables_that_make_no_sense_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(ConfigError, match="whole numbers"):
        processes_of_environment()


@pytest.mark.parametrize("name", ["foo", "", "mps", "meta", "cuda:99"])
def test_devices_that_compute_nothing_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{name}'"):
        Processes().device(name)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ConfigError, match="has 1 GPUs"):
        Processes(1, 2, 1).device("cuda")

"""Every command, in this process, on the smallest setting: what it prints, writes and returns."""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import icrl_agents
from icrl_agents import cli
from icrl_agents.agent import InContextAgent
from icrl_agents.cli import COMMANDS, main
from icrl_agents.config import to_dict
from icrl_agents.envs import env_ids, load_anchors, task_split
from icrl_agents.errors import ConfigError, UnknownNameError
from icrl_agents.evaluation import EvalResult, evaluate
from icrl_agents.hub import agent_names
from icrl_agents.training import anchors, collection, distillation, pipeline, presets, reinforcement
from icrl_agents.training.collection import CollectionConfig
from icrl_agents.training.histories import HistoryDataset
from icrl_agents.training.on_policy import OnPolicyConfig
from icrl_agents.training.reinforcement import ReinforcementConfig
from icrl_agents.training.sources import presets as source_presets
from icrl_agents.training.sources.paper import PAPER_SB3
from icrl_agents.training.sources.planned import PlannedConfig
from icrl_agents.training.sources.ppo import PPOConfig

ENV_ID = "icrl/ReacherGoal-v0"
TINY_SOURCE = CollectionConfig(
    ENV_ID, steps_per_task=200, streams=2, shard_steps=100, snapshots=1, ppo=PPOConfig(n_steps=50, hidden=(8,))
)
TINY_TRAINING: dict[str, Any] = {
    "backbone_options": {"d_model": 8, "n_layers": 1, "d_state": 4},
    "head_hidden": 8,
    "keep_every": 1,
    "batch_size": 2,
    "episodes": 2,
    "val_episodes": 1,
    "updates": 2,
}
TINY_ROUNDS = OnPolicyConfig(rows_per_task=1, round_updates=1, short_episodes=1, keep_rounds=2)

TINY_REINFORCEMENT = ReinforcementConfig(
    "", ENV_ID, subset="sampled:2", rounds=2, episodes=1, critic_rounds=1, critic_hidden=(4,), val_episodes=1
)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "console", Console(width=200))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def checkpoint(make_agent: Callable[..., InContextAgent], tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("checkpoint")
    make_agent().save_pretrained(directory)
    return str(directory)


@pytest.fixture
def tiny_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(source_presets._COLLECTIONS, (ENV_ID, "laptop"), TINY_SOURCE)  # type: ignore[arg-type]
    informed = replace(TINY_SOURCE, task_informed=True, steps_per_task=200, specialise=TINY_SOURCE.ppo)
    monkeypatch.setitem(source_presets._TASK_INFORMED, ENV_ID, informed)  # type: ignore[arg-type]
    monkeypatch.setitem(source_presets._PLANNED, ENV_ID, TINY_SOURCE)  # type: ignore[arg-type]
    few = functools.partial(PlannedConfig, rounds=1, plans=20, updates=2, hidden=(8,))
    monkeypatch.setattr(source_presets, "PlannedConfig", few)
    of = {name: value for name, value in TINY_TRAINING.items() if name != "backbone_options"}
    at = (ENV_ID, "laptop")
    monkeypatch.setitem(presets._DISTILLATION, at, replace(presets._DISTILLATION[at], **of))
    fixed = {name: presets._ON_POLICY[at][name] for name in ("target", "val_fraction")}
    monkeypatch.setitem(presets._ON_POLICY, at, {**fixed, "on_policy": TINY_ROUNDS})
    monkeypatch.setitem(presets._BACKBONES, at, {"mamba": TINY_TRAINING["backbone_options"]})
    monkeypatch.setitem(presets._REINFORCEMENT, ENV_ID, TINY_REINFORCEMENT)


@pytest.fixture
def short_evaluation(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The final evaluation on 2 tasks; gives the agents that were evaluated."""
    evaluated: list[InContextAgent] = []

    def short(agent: InContextAgent, seeds: tuple[int, ...]) -> EvalResult:
        evaluated.append(agent)
        return evaluate(agent, tasks=2, episodes=2, seeds=seeds[:1])

    monkeypatch.setattr(pipeline, "evaluate", short)
    return evaluated


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Little of the training tasks."""
    directory = tmp_path_factory.mktemp("data") / "histories"
    collection.collect(TINY_SOURCE, directory, quiet=True)
    return directory


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that has to fail with exit code 2; what it says on stderr."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments))
        assert stopped.value.code == 2
        out, error = capsys.readouterr()
        assert "error:" not in out
        assert "Traceback" not in error
        return " ".join(error.split())

    return run


# ------------------------------------------------------------------ all commands


@pytest.mark.parametrize(
    "command", [[], *([cli._command_name(c)] for c in COMMANDS)], ids=lambda c: " ".join(c) or "all"
)
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert f"icrl-agents {' '.join(command)}".strip() in out
    if not command:
        assert all(cli._command_name(each) in out for each in COMMANDS)


def test_no_command_is_refused(refused: Callable[..., str]) -> None:
    assert "demo" in refused()
    assert "demo" in refused("dmeo")


@pytest.mark.parametrize(
    ("command", "resumes"),
    [
        ("list", False),
        ("collect reacher-goal", True),
        ("collect reacher-goal --source planned", True),
        ("collect reacher-goal --source sb3-ppo", False),
        ("collect reacher-goal --source sb3-ppo --jobs 2", True),
        ("train reacher-goal", True),
        ("finetune reacher-goal-mamba", True),
        ("reproduce", True),
    ],
)
def test_interrupted(
    command: str, resumes: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(self: Any) -> None:
        raise KeyboardInterrupt

    for each in COMMANDS:
        monkeypatch.setattr(each, "run", interrupt)
    with pytest.raises(SystemExit) as stopped:
        main(command.split())
    assert stopped.value.code == 130
    error = capsys.readouterr().err
    assert error.startswith("interrupted")
    assert ("the same command goes on" in error) == resumes


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli.List, "run", fail)
    with pytest.raises(ZeroDivisionError):
        main(["list"])


@pytest.mark.parametrize(
    ("command", "known"),
    [
        ("demo nowhere", ["reacher-goal"]),
        ("evaluate nobody", agent_names()),
        ("finetune nobody", agent_names()),
        ("compare nobody", agent_names()),
        ("collect nowhere", ["reacher-goal"]),
        ("train nowhere", ["reacher-goal"]),
        ("anchors nowhere", ["reacher-goal"]),
        ("reproduce reacher-gaol", ["reacher-goal", "Did you mean"]),
        ("train reacher-goal --backbone lstm", ["mamba", "transformer"]),
        ("train reacher-goal --preset lapdog", ["laptop", "paper"]),
        ("train reacher-goal --method off-policy", ["ad", "on-policy"]),
        ("collect reacher-goal --split papper", ["paper"]),
        ("collect reacher-goal --subset train+tset", ["train", "val", "test"]),
        ("collect reacher-goal --source ddpg", list(source_presets.SOURCES)),
        ("evaluate {checkpoint} --split papper", ["paper"]),
        ("evaluate {checkpoint} --subset train", ["val", "test"]),
    ],
)
def test_unknown_names_list_what_exists(
    command: str, known: list[str], checkpoint: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    said = refused(*command.format(checkpoint=checkpoint).split())
    assert all(name in said for name in known), said
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("evaluate {checkpoint} --tasks 0", "tasks is at least 1 and"),
        ("evaluate {checkpoint} --episodes 0", "episodes is at least 1, got 0"),
        ("demo --agent {checkpoint} --tasks 0", "tasks is at least 1 and"),
        ("demo half-cheetah-vel --agent {checkpoint}", "is an agent for icrl/ReacherGoal-v0, not for half-cheetah-vel"),
        ("evaluate {checkpoint} --plot curve", "ends in one of"),
        ("evaluate {checkpoint} --json .", "cannot be written"),
        ("evaluate {checkpoint} --json {checkpoint}", "cannot be written: it is a directory"),
        ("evaluate {checkpoint} --json /proc/result.json", "cannot be written"),
        ("evaluate {checkpoint} --json {checkpoint}/config.json/a.json", "cannot be written"),
        ("compare", "at least one agent"),
        ("compare gone.json", "gone.json does not exist"),
        ("train reacher-goal --data nowhere", "no manifest.json"),
        ("finetune {checkpoint} --noise -1", "noise: expected a finite number above 0, got -1.0"),
        ("finetune {checkpoint} --subset train+test", "validation or test tasks"),
        ("push nowhere org/name", "config.json does not exist"),
        ("collect reacher-goal --steps-per-task 10", "less than one shard"),
        ("collect reacher-goal --source task-parallel-sac --jobs 2", "task-parallel-sac learns all tasks in one"),
        ("collect reacher-goal --task 5", "task-parallel learns all of the subset, got task 5"),
        ("collect reacher-goal --source sb3-ppo --jobs 2 --task 5", "jobs learn all tasks of the subset, got task 5"),
        ("collect reacher-goal --source sb3-sac --jobs 0", "jobs is at least 1, got 0"),
        ("collect reacher-goal --source planned --symmetric True", "not for planned"),
        ("collect half-cheetah-vel --source task-informed --symmetric True", "knows no symmetry of its tasks"),
        ("collect reacher-goal --consolidate 2", "policies specialise from a task-informed learner"),
        ("collect ant-dir --source task-informed --consolidate 2", "consolidated that had specialised"),
        ("collect reacher-goal --source sb3-sac --device cuda", "sb3-sac learns on the CPU"),
    ],
)
def test_what_makes_no_sense_is_refused(command: str, says: str, checkpoint: str, refused: Callable[..., str]) -> None:
    assert says in refused(*command.format(checkpoint=checkpoint).split())


# ------------------------------------------------------------------ agents


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    main(["list"])
    out = capsys.readouterr().out
    assert all(name in out for name in (*agent_names(), *env_ids(), "mamba", "transformer", "reacher-goal"))


def test_demo(checkpoint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["demo", "--agent", checkpoint, "--tasks", "2", "--episodes", "3", "--out", "pictures"])
    out = capsys.readouterr().out
    assert "tiny-mamba: mean over 2 unseen tasks" in " ".join(out.split())
    agent = InContextAgent.from_pretrained(checkpoint)
    result = evaluate(agent, subset="val", tasks=2, episodes=3, controls=False)
    for episode, mean in enumerate(zip(*result.returns, strict=True), start=1):
        assert [f"{episode}", f"{sum(mean) / 2:.2f}"] in [
            [cell.strip() for cell in line.split("│")[1:3]] for line in out.splitlines()
        ]
    assert (tmp_path / "pictures/tiny-mamba.png").stat().st_size > 10_000
    assert not list(tmp_path.rglob("*.gif"))


def test_demo_with_a_film(checkpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    filmed: list[tuple[Any, ...]] = []

    def record(agent: InContextAgent, task: Any, path: Path, *more: Any, **options: Any) -> Path:
        filmed.append((agent.config.name, task, path))
        return path

    monkeypatch.setattr("icrl_agents.video.record_learning", record)
    main(["demo", "--agent", checkpoint, "--tasks", "1", "--episodes", "1", "--video"])
    assert filmed == [("tiny-mamba", task_split(ENV_ID).val[0], Path("out/tiny-mamba.gif"))]


def test_demo_of_an_environment_without_a_bundled_agent(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody's on the Hub is taken, whatever its name."""
    monkeypatch.setattr("icrl_agents.envs.resolve_env_id", lambda env: "own/swimmer-dir")
    said = refused("demo", "own/swimmer-dir")
    assert "unknown bundled agent for own/swimmer-dir" in said
    assert "--agent" in said


def test_a_missing_extra_is_named(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    """With its brackets, which the console would take for markup."""
    monkeypatch.setitem(sys.modules, "imageio.v3", None)
    said = refused("demo", "--agent", checkpoint, "--tasks", "1", "--episodes", "1", "--video")
    assert "pip install 'icrl-agents[video]'" in said


def test_markup_in_a_name_is_text(refused: Callable[..., str]) -> None:
    assert "no[/]body" in refused("evaluate", "no[/]body")


def test_evaluate(checkpoint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = "--tasks 2 --episodes 3 --seed 0 1 --json deep/result.json --plot figure.png"
    main(["evaluate", checkpoint, *arguments.split()])
    result = EvalResult.load(tmp_path / "deep/result.json")
    agent = InContextAgent.from_pretrained(checkpoint)
    assert result == evaluate(agent, tasks=2, episodes=3, seeds=(0, 1))
    assert set(result.controls) == {"reset_each_episode", "swapped_rewards"}
    out = capsys.readouterr().out
    mean, low, high = (result.summary["final_normalized"][key] for key in ("mean", "low", "high"))
    assert f"final_normalized: {mean:.2f} [{low:.2f}, {high:.2f}]" in out
    assert "forgetting at every episode" in out
    assert "rewards of another task" in out
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_compare_agents_with_results(
    checkpoint: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    main(["evaluate", checkpoint, *["--tasks", "2", "--episodes", "2", "--no-controls", "--json", "same.json"]])
    same = EvalResult.load("same.json")
    replace(same, agent="better", normalized=[[x + 0.25 for x in row] for row in same.normalized]).save("better.json")
    capsys.readouterr()
    main(["compare", checkpoint, "better.json", "--out", "deep/both.png"])  # of as much as the result
    out = capsys.readouterr().out
    assert "minus tiny-mamba" in out
    row = next(line for line in out.splitlines() if "better" in line)
    assert "0.25 [0.25, 0.25]" in row
    assert (tmp_path / "deep/both.png").stat().st_size > 10_000
    with monkeypatch.context() as patch:
        patch.setattr("icrl_agents.evaluation.rollout", None)  # all of this is known before anything is measured
        assert "has tasks 2, the comparison 1" in refused("compare", "better.json", checkpoint, "--tasks", "1")
        assert "has episodes 2, the comparison 3" in refused("compare", checkpoint, "better.json", "--episodes", "3")
        assert "has subset 'test', the comparison 'val'" in refused(
            "compare", checkpoint, "better.json", "--subset", "val"
        )
        cheetah = "half-cheetah-vel-mamba"
        assert f"{cheetah} is of icrl/HalfCheetahVel-v0, better.json of" in refused("compare", "better.json", cheetah)
        assert "ends in one of" in refused("compare", checkpoint, "--out", "curve")
    replace(same, env_options={"max_episode_steps": 20}).save("short.json")
    said = refused("compare", "same.json", "short.json")
    assert "short.json is of icrl/ReacherGoal-v0 with {'max_episode_steps': 20}, same.json of icrl/Reacher" in said
    replace(same, seeds=[1, 2]).save("others.json")
    main(["compare", "same.json", "others.json"])
    assert "others.json was measured with seeds (1, 2), others with (0,)" in capsys.readouterr().out


# ------------------------------------------------------------------ training


def test_collect(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The laptop preset as it is: 5 streams, shards of 1000 steps."""
    main(["collect", "reacher-goal", "--subset", "val", "--steps-per-task", "5000", "--seed", "3", "--out", "data"])
    dataset = HistoryDataset(tmp_path / "data")
    assert (len(dataset), dataset.manifest.progress.steps) == (50, 1000)
    assert (dataset.manifest.subset, dataset.manifest.seed) == ("val", 3)
    assert "50 histories of 1000 steps, 10 tasks" in capsys.readouterr().out


@pytest.mark.usefixtures("tiny_presets")
def test_collect_goes_to_the_environments_folder_and_is_done_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, refused: Callable[..., str]
) -> None:
    main(["collect", "reacher-goal", "--subset", "val"])
    shard = tmp_path / "data/reacher-goal/task-parallel/shards/00000.safetensors"
    written = shard.stat().st_mtime_ns
    main(["collect", "icrl/ReacherGoal-v0", "--subset", "val"])
    assert shard.stat().st_mtime_ns == written
    assert "another collection" in refused(*["collect", "reacher-goal", "--subset", "val", "--seed", "1"])


@pytest.mark.usefixtures("tiny_presets")
@pytest.mark.parametrize(
    ("options", "folder", "recipe"),
    [
        ("", "reacher-goal-mamba-ad", "algorithm distillation"),
        ("--head gaussian", "reacher-goal-mamba-ad-gaussian", "algorithm distillation"),
        ("--head mixture --method on-policy", "reacher-goal-mamba-mixture", "on-policy distillation"),
        ("--method on-policy --mask-rewards", "reacher-goal-mamba-masked", "on-policy distillation"),
    ],
)
def test_train(
    histories: Path, options: str, folder: str, recipe: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rates = ["--learning-rate", "0.003", "--muon-learning-rate", "0.02"]
    main(["train", "reacher-goal", "--data", str(histories), "--updates", "3", *rates, *options.split()])
    out = tmp_path / "runs" / folder
    assert f"checkpoint: runs/{folder}" in capsys.readouterr().out
    agent = InContextAgent.from_pretrained(out)
    assert agent.config.name == folder
    assert agent.config.model.mask_rewards == ("masked" in folder)
    heads = [head for head in ("gaussian", "mixture") if head in folder] or ["deterministic"]
    assert agent.config.model.head == heads[0]
    training = json.loads((out / "training.json").read_text())
    assert (training["recipe"], training["config"]["updates"]) == (recipe, 3)
    assert (training["config"]["learning_rate"], training["config"]["muon_learning_rate"]) == (0.003, 0.02)


@pytest.mark.usefixtures("tiny_presets")
def test_train_on_a_run_of_stable_baselines3(tmp_path: Path) -> None:
    """Its histories come without policy snapshots, which the paper's recipe does not need."""
    main(["collect", "reacher-goal", "--source", "sb3-ppo", "--task", "1", "--steps-per-task", "400", "--out", "sb3"])
    assert HistoryDataset(tmp_path / "sb3").manifest.tasks == (task_split(ENV_ID).train[1],)
    main(["train", "reacher-goal", "--data", "sb3", "--out", "agent", "--updates", "1"])
    assert InContextAgent.from_pretrained(tmp_path / "agent").config.name == "agent"


def test_collect_with_an_off_policy_source(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = replace(source_presets.collection_preset(ENV_ID, "laptop", "task-parallel-droq"), shard_steps=50)
    assert tiny.sac is not None
    tiny = replace(tiny, sac=replace(tiny.sac, learning_starts=20, batch_size=4, hidden=(4,)))
    monkeypatch.setitem(source_presets._OFF_POLICY, (ENV_ID, "laptop", "droq"), tiny)  # type: ignore[arg-type]
    options = ["--source", "task-parallel-droq", "--subset", "val", "--steps-per-task", "100"]
    main(["collect", "reacher-goal", *options])
    dataset = HistoryDataset(tmp_path / "data/reacher-goal/task-parallel-droq")
    assert (len(dataset), dataset.manifest.source) == (20, "task-parallel DroQ")
    assert "20 histories of 50 steps, 10 tasks" in capsys.readouterr().out


def test_an_sb3_source_names_the_extra_it_needs(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("icrl_agents.training.sources.sb3")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    assert "pip install 'icrl-agents[train]'" in refused("collect", "reacher-goal", "--source", "sb3-tqc")


@pytest.mark.usefixtures("tiny_presets")
def test_a_task_that_is_not_there(refused: Callable[..., str]) -> None:
    assert "0 to 69, got 70" in refused(
        *["collect", "reacher-goal", "--source", "sb3-ppo", "--task", "70", "--out", "sb3"]
    )


def test_anchors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    tiny = functools.partial(CollectionConfig, streams=1, shard_steps=100, ppo=TINY_SOURCE.ppo)
    monkeypatch.setattr(source_presets, "CollectionConfig", tiny)
    monkeypatch.setattr(anchors, "evaluate_policies", functools.partial(collection.evaluate_policies, episodes=1))
    arguments = [
        "anchors",
        "reacher-goal",
        "--steps-per-task",
        "100",
        "--seed",
        "5",
        "--data",
        "oracle",
        "--out",
        "anchors.json",
        "--blind-iterations",
        "1",
    ]
    assert "train it longer" in refused(*arguments)
    assert not Path("anchors.json").exists()
    monkeypatch.setitem(anchors.ORACLE_FLOOR, ENV_ID, -1e9)
    shipped = load_anchors(ENV_ID, "paper")
    main(arguments)
    found = json.loads(Path("anchors.json").read_text())
    assert found["command"] == (
        "icrl-agents anchors reacher-goal --split paper --steps-per-task 100 --seed 5 --blind-iterations 1"
    )
    assert found["split_hash"] == shipped.split_hash == load_anchors(ENV_ID, "paper").split_hash
    assert {s: {n: len(v) for n, v in r.items()} for s, r in found["returns"].items()} == {
        "val": dict.fromkeys(("zero", "random", "blind", "oracle"), 10),
        "test": dict.fromkeys(("zero", "random", "blind", "oracle"), 30),
    }
    assert load_anchors(ENV_ID, "paper") == shipped
    assert "test: zero -" in capsys.readouterr().out
    main(["anchors", "ant-dir", "--split", "macaw", "--only", "zero", "random", "--out", "some.json"])
    some = json.loads(Path("some.json").read_text())
    assert some["command"].endswith("--split macaw --steps-per-task 200000 --seed 0 --only zero random")
    assert {s: {n: len(v) for n, v in r.items()} for s, r in some["returns"].items()} == {
        "val": {"zero": 5, "random": 5},
        "test": {"zero": 5, "random": 5},
    }
    assert "name all three, got ['blind']" in refused("anchors", "ant-dir", "--only", "blind", "--out", "no.json")
    monkeypatch.delitem(anchors.ORACLE_FLOOR, "icrl/AntDir-v0")
    assert "no return is known" in refused("anchors", "ant-dir", "--only", "oracle", "--out", "no.json")


@pytest.mark.usefixtures("tiny_presets")
@pytest.mark.parametrize("steps", ["0", "200"])
def test_oracles_that_begin_from_an_informed_learner(
    steps: str, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setattr(anchors, "evaluate_policies", functools.partial(collection.evaluate_policies, episodes=1))
    monkeypatch.setitem(anchors.ORACLE_FLOOR, ENV_ID, -1e9)
    main(["collect", "reacher-goal", "--source", "task-informed", "--out", "informed"])
    oracle = ["anchors", "reacher-goal", "--only", "oracle", "--steps-per-task", steps, "--data", "oracle"]
    main([*oracle, "--informed", "informed", "--out", "found.json"])
    found = json.loads(Path("found.json").read_text())
    assert len(found["returns"]["test"]["oracle"]) == 30
    assert ("then one learner a task for" in found["details"]["oracle"]) == (steps != "0")
    main(["collect", "reacher-goal", "--out", "alone"])
    main(["collect", "reacher-goal", "--source", "planned", "--out", "planned"])
    for without in ("alone", "planned"):
        assert "holds no learner of all tasks" in refused(*oracle, "--informed", without, "--out", "no.json")


# ------------------------------------------------------------------ from nothing to an evaluated agent


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The updates that were done."""
    done: list[int] = []
    do_update = distillation._Run._update

    def counting(self: Any, update: int) -> dict[str, float]:
        done.append(update)
        return do_update(self, update)

    monkeypatch.setattr(distillation._Run, "_update", counting)
    return done


@pytest.mark.usefixtures("tiny_presets")
def test_reproduce_and_again(
    short_evaluation: list[Any], updates: list[int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main(["reproduce", "reacher-goal"])
    run = tmp_path / "runs/reacher-goal-mamba"
    histories = HistoryDataset(tmp_path / "data/reacher-goal/planned")
    assert (histories.manifest.progress.complete, histories.manifest.source) == (True, "planned policy")
    agent = InContextAgent.from_pretrained(run)
    assert agent.config.name == "reacher-goal-mamba"
    assert updates == [1, 2]
    result = EvalResult.load(run / "evaluation.json")
    assert (result.agent, result.tasks) == ("reacher-goal-mamba", list(task_split(ENV_ID).test[:2]))
    assert (run / "curve.png").stat().st_size > 10_000
    assert "| episode | 1 | 2 |" in (run / "README.md").read_text()
    assert json.loads((run / "training.json").read_text())["recipe"] == "on-policy distillation"
    times = {
        **json.loads((run / "times.json").read_text()),
        **json.loads(Path("data/reacher-goal/planned/times.json").read_text()),
    }
    assert min(times[part] for part in ("collect", "train", "evaluate")) > 0
    assert "minutes" in capsys.readouterr().out
    weights = {name: tensor.clone() for name, tensor in load_file(run / "model.safetensors").items()}

    main(["reproduce", "reacher-goal"])
    assert updates == [1, 2]
    again = load_file(run / "model.safetensors")
    assert all((again[name] == weights[name]).all() for name in weights)
    assert EvalResult.load(run / "evaluation.json") == result
    assert len(short_evaluation) == 1


@pytest.mark.usefixtures("tiny_presets")
def test_the_parts_find_each_other_as_in_the_tutorial(tmp_path: Path) -> None:
    main(["collect", "reacher-goal", "--source", "planned"])
    main(["train", "reacher-goal", "--method", "on-policy", "--out", "runs/mine"])
    assert InContextAgent.from_pretrained(tmp_path / "runs/mine").config.name == "mine"


@pytest.mark.usefixtures("tiny_presets")
def test_finetune(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(reinforcement, "mean_returns", lambda *_: (0.0,))  # so the last round is kept
    options = "--rounds 3 --learning-rate 0.01 --noise 0.2 --noise-decay 0.5 --seed 1"
    arguments = ["finetune", checkpoint, *options.split()]
    main(arguments)
    out = tmp_path / "runs" / f"{Path(checkpoint).name}-finetuned"
    assert f"checkpoint: runs/{out.name}, of round" in capsys.readouterr().out
    training = json.loads((out / "training.json").read_text())
    assert training["recipe"] == "reinforcement fine-tuning"
    asked = {"rounds": 3, "learning_rate": 0.01, "noise": 0.2, "noise_decay": 0.5, "seed": 1}
    asked |= {"name": out.name, "subset": "sampled:2"}
    assert {name: training["config"][name] for name in asked} == asked
    assert InContextAgent.from_pretrained(out).config.name == out.name
    main(arguments)
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 5  # three rounds, two validations


@pytest.mark.usefixtures("tiny_presets", "short_evaluation")
def test_reproduce_with_fine_tuning(
    updates: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Where it is part of how the shipped agents were made, what is distilled has a folder of its own."""
    monkeypatch.setattr(presets, "_FINETUNED", {(ENV_ID, "laptop")})
    monkeypatch.setattr(reinforcement, "mean_returns", lambda *_: (0.0,))  # so the last round is kept
    main(["reproduce", "reacher-goal"])
    said = capsys.readouterr().out
    assert all(part in said for part in ("collect", "train", "finetune", "evaluate"))
    distilled, tuned = (tmp_path / "runs" / f"reacher-goal-mamba{end}" for end in ("-distilled", ""))
    recipes = [json.loads((run / "training.json").read_text())["recipe"] for run in (distilled, tuned)]
    assert recipes == ["on-policy distillation", "on-policy distillation + reinforcement fine-tuning"]
    assert EvalResult.load(tuned / "evaluation.json").agent == "reacher-goal-mamba"
    assert not (distilled / "evaluation.json").exists()
    main(["reproduce", "reacher-goal"])
    assert updates == [1, 2]
    main(["reproduce", "reacher-goal", "--method", "ad"])
    assert not (tmp_path / "runs/reacher-goal-mamba-ad-distilled").exists()


@pytest.mark.usefixtures("tiny_presets", "short_evaluation")
def test_reproduce_refuses_a_run_of_the_former_recipe_at_once(
    updates: list[int], monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str], tmp_path: Path
) -> None:
    """Distilled into the folder where now the fine-tuned agent goes."""
    main(["reproduce", "reacher-goal"])
    shutil.rmtree(tmp_path / "data")
    monkeypatch.setattr(presets, "_FINETUNED", {(ENV_ID, "laptop")})
    assert "reacher-goal-mamba holds a run that is not one of fine-tuning" in refused("reproduce", "reacher-goal")
    assert not (tmp_path / "data").exists()
    assert updates == [1, 2]


@pytest.mark.usefixtures("tiny_presets")
def test_reproduce_refuses_before_it_collects(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "unknown backbone 'mamb'" in refused("reproduce", "reacher-goal", "--backbone", "mamb")
    if not torch.cuda.is_available():
        assert "no GPU" in refused("reproduce", "reacher-goal", "--device", "cuda")
    out = tmp_path / "runs/reacher-goal-mamba"
    out.mkdir(parents=True)
    (out / "config.json").write_text("{}")
    assert "holds a checkpoint" in refused("reproduce", "reacher-goal")
    (out / "run.json").write_text("{}")
    assert "holds a run, and its dataset is not in data/reacher-goal" in refused("reproduce", "reacher-goal")
    assert not (tmp_path / "data").exists()


def test_settings_are_known_before_anything_is_collected(tmp_path: Path) -> None:
    for settings, error in (
        ({"updatse": 1}, UnknownNameError),
        ({"updates": 0}, ConfigError),
        ({"name": "x"}, TypeError),
    ):
        with pytest.raises(error):
            pipeline.reproduce("reacher-goal", data=tmp_path / "data", quiet=True, **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "data").exists()


@pytest.mark.usefixtures("short_evaluation")
def test_training_by_keywords(histories: Path, tmp_path: Path, updates: list[int]) -> None:
    options = {**TINY_TRAINING, "on_policy": TINY_ROUNDS, "name": "small", "quiet": True, "method": "on-policy"}
    first = pipeline.run_training(ENV_ID, histories, tmp_path / "run", **options)
    pipeline.evaluate_checkpoint(tmp_path / "run")
    assert updates == [1, 2]
    assert (tmp_path / "run/curve.png").stat().st_size > 10_000
    assert EvalResult.load(tmp_path / "run/evaluation.json").agent == "small"
    assert pipeline.run_training(ENV_ID, histories, tmp_path / "run", **options) == first
    assert updates == [1, 2]


@pytest.mark.usefixtures("tiny_presets", "short_evaluation")
def test_reproduce_goes_on_where_it_was_interrupted(
    monkeypatch: pytest.MonkeyPatch, updates: list[int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:

        def interrupt(*arguments: Any, **options: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(pipeline, "evaluate", interrupt)
        with pytest.raises(SystemExit) as stopped:
            main(["reproduce", "reacher-goal"])
    assert stopped.value.code == 130
    main(["reproduce", "reacher-goal"])
    assert updates == [1, 2]
    assert (tmp_path / "runs/reacher-goal-mamba/evaluation.json").exists()


def test_presets_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    main(["presets", "half-cheetah-vel", "--backbone", "transformer"])
    told, notes = capsys.readouterr()
    found = json.loads(told)
    expected = presets.distillation_preset("icrl/HalfCheetahVel-v0", "laptop", "transformer", "on-policy")
    assert found["train"] == json.loads(json.dumps(to_dict(expected)))
    assert found["collect"]["task_informed"]
    assert found["finetune"]["noise_decay"] == presets.reinforcement_preset("icrl/HalfCheetahVel-v0").noise_decay
    assert not notes
    main(["presets", "reacher-goal", "--method", "ad"])
    told, notes = capsys.readouterr()
    assert not json.loads(told)["collect"]["task_informed"]
    assert "does not fine-tune" in notes
    main(["presets", "reacher-goal"])
    told, _ = capsys.readouterr()
    assert json.loads(told)["collect"]["options"] == json.loads(json.dumps(to_dict(PlannedConfig())))
    main(["presets", "reacher-goal", "--preset", "paper", "--source", "sb3-tqc"])
    told, _ = capsys.readouterr()
    collect = json.loads(told)["collect"]
    assert collect["options"]["batch_size"] == PAPER_SB3["sb3-tqc"]["batch_size"]
    assert "sac" not in collect


def test_agents_of_ones_own_environments_have_names_without_slashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "short_name", lambda env_id: "own/swimmer-dir")
    assert presets.distillation_preset(ENV_ID, "laptop", "mamba", "on-policy").name == "swimmer-dir-mamba"


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out.startswith(f"icrl-agents {icrl_agents.__version__}, torch 2.")


def test_an_environment_of_ones_own_goes_all_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = (Path(__file__).parents[1] / "examples/04_your_own_meta_env.py").read_text(encoding="utf-8")
    few = 'train=tasks[:2], val=tasks[2:3], test=tasks[3:5], anchors="anchors.json")'
    source = example.replace("train=tasks[:64], val=tasks[64:74], test=tasks[74:])", few)
    assert few in source
    (tmp_path / "swimmer.py").write_text(source, encoding="utf-8")
    env, short = "own/swimmer-dir", ["--tasks", "2", "--episodes", "2"]
    measuring = ["anchors", env, "--informed", f"data/{env}/task-informed", "--steps-per-task", "0"]
    commands = [
        ["collect", env, "--source", "task-informed", "--steps-per-task", "5000"],
        ["train", env, "--method", "on-policy", "--updates", "1", "--out", "mine"],
        ["evaluate", "mine", *short],
        [*measuring, "--blind-iterations", "1"],
        [*measuring, "--blind-iterations", "1", "--floor", "-100"],  # into the file that the split names
        ["evaluate", "mine", *short],
    ]
    script = f"""
from icrl_agents.cli import main
for command in {commands}:
    print("$", flush=True)
    try:
        main(command)
    except SystemExit:
        pass
"""
    said = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "ICRL_IMPORT": "swimmer"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    ).stdout.split("$")[1:]
    expected = (
        f"data/{env}/task-informed: 10 histories of 1000 steps, 2 tasks",
        "checkpoint: mine",
        "split 'mine' of own/SwimmerDir-v0 has no anchors, or not all of them, to normalize by",
        "give a floor",
        "/anchors.json",
        "final_normalized",
    )
    for what, output in zip(expected, said, strict=True):
        assert what in output
    with pytest.raises(SystemExit):
        main(["evaluate", "mine", *short])
    assert "unknown environment 'own/SwimmerDir-v0'" in capsys.readouterr().err

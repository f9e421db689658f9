"""Environments of one's own are as good as the built-in ones."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from icrl_agents import envs
from icrl_agents.backbones import backbone_names
from icrl_agents.envs import (
    anchors,
    default_split,
    env_definition,
    env_ids,
    has_anchors,
    load_anchors,
    own_modules,
    register_meta_env,
    register_split,
    resolve_env_id,
    sample_tasks,
    short_name,
    split_names,
    splits,
    task_split,
)
from icrl_agents.envs.anchors import anchor_file_name
from icrl_agents.envs.reacher_goal import ReacherGoalEnv
from icrl_agents.errors import ConfigError, TaskError, UnknownNameError

PLACES = ("icrl_agents.envs.reacher_goal:ReacherGoalEnv", "icrl_agents.envs.reacher_goal:ReacherGoalVectorEnv")


@pytest.fixture
def env_id() -> Iterator[str]:
    """An id that is forgotten after the test."""
    yield "own/Reacher-v0"
    envs._ENVS.pop("own/Reacher-v0", None)
    gymnasium.registry.pop("own/Reacher-v0", None)


def test_a_registered_id_is_known_everywhere(env_id: str) -> None:
    register_meta_env(env_id, *PLACES, horizon=50)
    assert env_id in env_ids()
    assert resolve_env_id(short_name(env_id)) == env_id
    assert env_definition(env_id) is ReacherGoalEnv.definition
    env = gymnasium.make(env_id, task=sample_tasks(env_id, 1, seed=0)[0])
    assert env.spec is not None
    assert env.spec.max_episode_steps == 50
    many = gymnasium.make_vec(env_id, num_envs=2)
    assert many.unwrapped.horizon == 50  # type: ignore[attr-defined]


def test_an_id_is_registered_once(env_id: str) -> None:
    for _ in range(2):
        register_meta_env(env_id, *PLACES, horizon=50)
    for taken in (env_id, "icrl/ReacherGoal-v0", "CartPole-v1"):
        with pytest.raises(ConfigError, match="registered already"):
            register_meta_env(taken, *PLACES, horizon=60)


@pytest.mark.parametrize(
    ("name", "horizon", "message"),
    [
        ("Reacher-v0", 50, "namespace/Name-v0"),
        ("own/Reacher", 50, "namespace/Name-v0"),
        ("own/Rea cher-v0", 50, "namespace/Name-v0"),
        (None, 50, "namespace/Name-v0"),
        ("icrl/ReacherGoal-v1", 50, "short name 'reacher-goal'"),
        ("own/Reacher-v0", 0, "horizon"),
        ("own/Reacher-v0", 1.5, "horizon"),
    ],
)
def test_what_cannot_be_registered_leaves_no_trace(name: str, horizon: int, message: str) -> None:
    before = env_ids(), set(gymnasium.registry)
    with pytest.raises(ConfigError, match=message):
        register_meta_env(name, *PLACES, horizon=horizon)
    assert (env_ids(), set(gymnasium.registry)) == before


@pytest.mark.parametrize("place", [ReacherGoalEnv, "icrl_agents.envs.reacher_goal"])
def test_entry_points_are_strings(env_id: str, place: object) -> None:
    with pytest.raises(ConfigError, match="module:Class"):
        register_meta_env(env_id, place, PLACES[1], horizon=50)  # type: ignore[arg-type]
    assert env_id not in env_ids()
    assert env_id not in gymnasium.registry


REACHER = "icrl/ReacherGoal-v0"
GOALS = [{"goal": [x / 100, 0.1]} for x in range(6)]


@pytest.fixture
def own_split(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Parts of a split; what a test registers is forgotten after it."""
    monkeypatch.setattr(splits, "_REGISTERED", {})
    monkeypatch.setattr(anchors, "_REGISTERED", {})
    return {"train": GOALS[:3], "val": GOALS[3:5], "test": GOALS[5:]}


def test_a_split_of_ones_own(own_split: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "anchors.json"
    split = register_split(REACHER, "mine", **own_split, anchors=path)
    assert register_split(REACHER, "mine", **own_split, anchors=path) == split
    with pytest.raises(ConfigError, match="'mine' already, of other tasks"):
        register_split(REACHER, "mine", **{**own_split, "val": own_split["test"], "test": own_split["val"]})
    assert split_names(REACHER) == ("paper", "mine")
    assert default_split(REACHER) == task_split(REACHER).name == "paper"
    assert task_split(REACHER, "mine") == split
    assert list(split.subset("val")) == own_split["val"]
    split.train[0]["goal"][0] = 7.0  # the caller's own
    assert task_split(REACHER, "mine").train[0]["goal"][0] == 0.0
    assert not has_anchors(REACHER, "mine")
    with pytest.raises(UnknownNameError, match="anchors"):
        load_anchors(REACHER, "mine")
    path.write_text(Path(anchors.__file__).with_name(anchor_file_name(REACHER, "paper")).read_text())
    assert has_anchors(REACHER, "mine")
    with pytest.raises(TaskError, match="the split has"):  # they are of another split
        load_anchors(REACHER, "mine", split.content_hash)
    for damaged in ("{", '{"returns": {}}'):
        path.write_text(damaged)
        with pytest.raises(TaskError, match=r"anchors\.json is damaged: .*icrl-agents anchors"):
            load_anchors(REACHER, "mine")


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("paper", {}, ConfigError, "has a split 'paper' already"),
        ("my own", {}, ConfigError, "letters, digits"),
        (3, {}, ConfigError, "letters, digits"),
        ("mine", {"val": []}, TaskError, "no val tasks"),
        ("mine", {"test": GOALS[:1]}, TaskError, "in train and in test"),
        ("mine", {"val": [{"goal": [9.0, 0.0]}]}, TaskError, "within 0.2 m"),
        ("mine", {"val": [{"direction": 1.0}]}, TaskError, "goal"),
    ],
)
def test_splits_that_are_none(
    own_split: dict[str, Any], name: Any, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        register_split(REACHER, name, **{**own_split, **changes})
    assert split_names(REACHER) == ("paper",)


def test_an_environment_without_a_split_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "_SPLITS", {})
    with pytest.raises(UnknownNameError, match="register_split gives it one"):
        default_split(REACHER)


def test_modules_that_a_variable_names_are_imported_when_a_name_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_modules, "_imported", set())
    monkeypatch.syspath_prepend(tmp_path)
    # What it looks up while it is imported must not import it again.
    (tmp_path / "once.py").write_text("from icrl_agents.envs import env_ids\nenv_ids()\nTIMES = [1]\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    monkeypatch.setenv("ICRL_IMPORT", " once,")
    env_ids()
    sys.modules["once"].TIMES.append(2)
    backbone_names()
    assert sys.modules.pop("once").TIMES == [1, 2]
    for name, why in (("broken", "ZeroDivisionError"), ("nowhere", "ModuleNotFoundError")):
        monkeypatch.setenv("ICRL_IMPORT", name)
        for _ in range(2):  # said every time
            with pytest.raises(ConfigError, match=f"ICRL_IMPORT names '{name}'.*{why}"):
                resolve_env_id("reacher-goal")


def test_the_program_that_a_variable_names_is_not_imported_once_more(tmp_path: Path) -> None:
    program = tmp_path / "own_program.py"
    program.write_text(
        "from icrl_agents.envs import env_ids, register_meta_env\n"
        f"register_meta_env('own/Once-v0', *{PLACES}, horizon=50)\n"
        "print('own/Once-v0' in env_ids())\n"
    )
    environment = {**os.environ, "ICRL_IMPORT": "own_program"}
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr


def test_functions_that_take_an_id_import_what_registers_it(tmp_path: Path) -> None:
    """Each in a process of its own, as a worker that was given nothing but the variable."""
    module = "04_your_own_meta_env"
    path = str(Path(__file__).parents[2] / "examples")
    for code in (
        "from icrl_agents.training.collection import make_rows; make_rows(ENV, [{'direction': 1.0}], 1)",
        "from icrl_agents.envs import split_names; assert split_names(ENV) == ('mine',)",
        "from icrl_agents.envs import task_split; task_split(ENV)",
    ):
        environment = {**os.environ, "ICRL_IMPORT": module, "PYTHONPATH": path}
        command = [sys.executable, "-c", f"ENV = 'own/SwimmerDir-v0'; {code}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

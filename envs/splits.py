"""Named splits of tasks: which are trained on, selected on, and reported on.

    paper    every environment  train as many as the paper, val 10, test 30; our draws, since its own are unpublished
    pearl    HalfCheetah-Vel    PEARL's draws: train 90, val 10, test 30
    macaw    HalfCheetah-Vel    MACAW's even speeds: train 30, val 5, test 5
             Ant-Dir            MACAW's test directions: train 40, val 5, test 5

PEARL and MACAW have no val: it is taken from their training tasks, so that their test tasks stay comparable.
Environments of your own bring splits by :func:`register_split`.
"""

import copy
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from icrl_agents.envs.definition import MetaEnvDefinition
from icrl_agents.errors import ConfigError, TaskError, UnknownNameError


@dataclass(frozen=True)
class TaskSplit:
    """Three disjoint lists of tasks of one environment.

    Attributes:
        name: the split's name, e.g. ``"paper"``.
        env_id: the environment's Gymnasium id.
        train: tasks to learn from.
        val: tasks to select anything on.
        test: tasks to report on.
        content_hash: first 16 hex digits of the SHA-256 of the three lists.
    """

    name: str
    env_id: str
    train: tuple[dict[str, Any], ...]
    val: tuple[dict[str, Any], ...]
    test: tuple[dict[str, Any], ...]
    content_hash: str

    def __hash__(self) -> int:
        return hash((self.env_id, self.name, self.content_hash))

    def subset(self, name: str) -> tuple[dict[str, Any], ...]:
        """The tasks of ``"train"``, ``"val"`` or ``"test"``.

        Raises:
            UnknownNameError: another name.
        """
        if name not in ("train", "val", "test"):
            raise UnknownNameError("subset", name, ("train", "val", "test"))
        return copy.deepcopy(getattr(self, name))


Lists = tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]

_FROZEN: Mapping[tuple[str, str], str] = {
    ("icrl/ReacherGoal-v0", "paper"): "3f0e8bc336c5e3a1",
    ("icrl/PusherGoal-v0", "paper"): "4260adb15f4fbda4",
    ("icrl/HalfCheetahVel-v0", "paper"): "13c44fd1eb8bd371",
    ("icrl/HalfCheetahVel-v0", "pearl"): "40c5528bf989894e",
    ("icrl/HalfCheetahVel-v0", "macaw"): "da627c95aad1c7c9",
    ("icrl/AntDir-v0", "paper"): "d619021b922a2c5a",
    ("icrl/AntDir-v0", "macaw"): "0786fea969c457a5",
}
"""Content hash of every published split: a change in any random stream must not change a benchmark silently."""

_PAPER_TRAIN_TASKS: Mapping[str, int] = {
    "icrl/ReacherGoal-v0": 70,
    "icrl/PusherGoal-v0": 35,
    "icrl/HalfCheetahVel-v0": 15,
    "icrl/AntDir-v0": 30,
}
_PAPER_SEED = 2506_13892  # the paper's arXiv number; its own draws are unpublished


def _paper(definition: MetaEnvDefinition) -> Lists:
    """The paper's number of training tasks (its Table 4), 10 to validate and 30 to test."""
    train = _PAPER_TRAIN_TASKS[definition.env_id]
    drawn = [definition.canonical_task(_rounded(task)) for task in definition.sample_tasks(train + 40, _PAPER_SEED)]
    return drawn[:train], drawn[train : train + 10], drawn[train + 10 :]


def _pearl_half_cheetah(definition: MetaEnvDefinition) -> Lists:
    """PEARL's 130 draws, the last 30 its test; it has no val, which here is the last 10 of its 100 training tasks."""
    drawn = _velocities(np.random.RandomState(1337).uniform(0.0, 3.0, 130))
    return drawn[:90], drawn[90:100], drawn[100:]


def _macaw_half_cheetah(definition: MetaEnvDefinition) -> Lists:
    """MACAW's 40 even speeds and its 5 to test; it has no val, which here is every seventh of its 35 training tasks."""
    every = _velocities(np.linspace(0.075, 3.0, 40))
    test = [every[i] for i in (2, 7, 15, 23, 26)]
    train = [task for task in every if task not in test]
    val = train[3::7]
    return [task for task in train if task not in val], val, test


_MACAW_SEED = 2008_06043  # MACAW's arXiv number


def _macaw_ant(definition: MetaEnvDefinition) -> Lists:
    """MACAW's 5 test directions; its 45 others stand in its data only: 40 to train and 5 to validate are our draws."""
    test = [definition.canonical_task({"direction": angle}) for angle in (0.245, 1.778, 0.904, 3.569, 4.142)]
    drawn = [definition.canonical_task(_rounded(task)) for task in definition.sample_tasks(45, _MACAW_SEED)]
    return drawn[:40], drawn[40:], test


_SPLITS: Mapping[tuple[str, str], Callable[[MetaEnvDefinition], Lists]] = {
    **{(env_id, "paper"): _paper for env_id in _PAPER_TRAIN_TASKS},
    ("icrl/HalfCheetahVel-v0", "pearl"): _pearl_half_cheetah,
    ("icrl/HalfCheetahVel-v0", "macaw"): _macaw_half_cheetah,
    ("icrl/AntDir-v0", "macaw"): _macaw_ant,
}


_REGISTERED: dict[tuple[str, str], TaskSplit] = {}
"""(environment, name) -> splits of users' own, in the order in which they came."""


def register_split_of(
    definition: MetaEnvDefinition,
    name: str,
    train: Sequence[Mapping[str, Any]],
    val: Sequence[Mapping[str, Any]],
    test: Sequence[Mapping[str, Any]],
) -> TaskSplit:
    """See :func:`icrl_agents.envs.register_split`."""
    env_id = definition.env_id
    if (env_id, name) not in _REGISTERED and name in split_names_of(env_id):
        raise ConfigError(f"{env_id} has a split {name!r} already")
    if not isinstance(name, str) or re.fullmatch(r"[\w-]+", name) is None:
        raise ConfigError(f"a split's name has letters, digits, '_' and '-', got {name!r}")
    lists = [tuple(definition.canonical_task(task) for task in tasks) for tasks in (train, val, test)]
    taken: dict[str, str] = {}
    for subset, tasks in zip(("train", "val", "test"), lists, strict=True):
        if not tasks:
            raise TaskError(f"split {name!r} of {env_id} has no {subset} tasks")
        for task in tasks:
            before = taken.setdefault(_canonical(task), subset)
            if before != subset:
                raise TaskError(f"split {name!r} of {env_id} has the task {task} in {before} and in {subset}")
    split = TaskSplit(name, env_id, lists[0], lists[1], lists[2], _content_hash(*lists))
    if _REGISTERED.setdefault((env_id, name), split) != split:
        raise ConfigError(f"{env_id} has a split {name!r} already, of other tasks")
    return copy.deepcopy(split)


def split_names_of(env_id: str) -> tuple[str, ...]:
    """See :func:`icrl_agents.envs.split_names`."""
    own = (name for known, name in _REGISTERED if known == env_id)
    return (*sorted(name for known, name in _SPLITS if known == env_id), *own)


def default_split_of(definition: MetaEnvDefinition) -> str:
    """See :func:`icrl_agents.envs.default_split`."""
    names = split_names_of(definition.env_id)
    if not names:
        raise UnknownNameError(f"split of {definition.env_id}", "paper", names, "register_split gives it one.")
    return "paper" if "paper" in names else names[0]


def split_of(definition: MetaEnvDefinition, name: str | None) -> TaskSplit:
    """A named split, the caller's own; None is the default one.

    Raises:
        UnknownNameError: the environment has no split of that name, or none.
        TaskError: the split's content is not what was published.
    """
    name = default_split_of(definition) if name is None else name
    return copy.deepcopy(_REGISTERED.get((definition.env_id, name)) or _published(definition, name))


@cache
def _published(definition: MetaEnvDefinition, name: str) -> TaskSplit:
    env_id = definition.env_id
    if (env_id, name) not in _SPLITS:
        raise UnknownNameError(f"split of {env_id}", name, split_names_of(env_id))
    train, val, test = (tuple(tasks) for tasks in _SPLITS[env_id, name](definition))
    digest = _content_hash(train, val, test)
    if digest != _FROZEN[env_id, name]:
        raise TaskError(f"split {name!r} of {env_id} has hash {digest}, but was published as {_FROZEN[env_id, name]}")
    return TaskSplit(name, env_id, train, val, test, digest)


def _content_hash(*lists: Sequence[Mapping[str, Any]]) -> str:
    return hashlib.sha256(_canonical(lists).encode()).hexdigest()[:16]


def _canonical(tasks: Any) -> str:
    return json.dumps(tasks, sort_keys=True, separators=(",", ":"))


def _velocities(values: np.ndarray) -> list[dict[str, Any]]:
    return [{"velocity": float(value)} for value in values]


def _rounded(task: Mapping[str, Any]) -> dict[str, Any]:
    """Four decimals: a split a person can read and retype."""
    return {key: np.round(value, 4).tolist() for key, value in task.items()}

"""Named splits of tasks: which are trained on, selected on, and reported on."""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from icrl_agents.envs.definition import MetaEnvDefinition
from icrl_agents.errors import TaskError, UnknownNameError

Subset = Literal["train", "val", "test"]


@dataclass(frozen=True)
class TaskSplit:
    """Three disjoint lists of tasks of one environment.

    Attributes:
        name: the split's name, e.g. ``"paper"``.
        env_id: the environment's Gymnasium id.
        train: tasks to learn from.
        val: tasks to select anything on.
        test: tasks to report on, once per published result.
        content_hash: first 16 hex digits of the SHA-256 of the three lists.
    """

    name: str
    env_id: str
    train: tuple[dict[str, Any], ...]
    val: tuple[dict[str, Any], ...]
    test: tuple[dict[str, Any], ...]
    content_hash: str

    def subset(self, name: str) -> tuple[dict[str, Any], ...]:
        """The tasks of ``"train"``, ``"val"`` or ``"test"``.

        Raises:
            UnknownNameError: another name.
        """
        if name not in ("train", "val", "test"):
            raise UnknownNameError("subset", name, ("train", "val", "test"))
        return copy.deepcopy(getattr(self, name))


_FROZEN: Mapping[tuple[str, str], str] = {("icrl/ReacherGoal-v0", "paper"): "3f0e8bc336c5e3a1"}
"""Content hash of every published split: a change in any random stream must not change a benchmark silently."""

_PAPER_TRAIN_TASKS: Mapping[str, int] = {"icrl/ReacherGoal-v0": 70}
_PAPER_SEED = 2506_13892  # the paper's arXiv number; its own draws are unpublished


def _paper(definition: MetaEnvDefinition) -> tuple[list[dict[str, Any]], ...]:
    """The paper's number of training tasks (its Table 4), 10 to validate and 30 to test."""
    train = _PAPER_TRAIN_TASKS[definition.env_id]
    drawn = [definition.canonical_task(_rounded(task)) for task in definition.sample_tasks(train + 40, _PAPER_SEED)]
    return drawn[:train], drawn[train : train + 10], drawn[train + 10 :]


_SPLITS: dict[tuple[str, str], Callable[[MetaEnvDefinition], tuple[list[dict[str, Any]], ...]]] = {
    ("icrl/ReacherGoal-v0", "paper"): _paper,
}


@cache
def split_of(definition: MetaEnvDefinition, name: str) -> TaskSplit:
    """A named split.

    Raises:
        UnknownNameError: the environment has no split of that name.
        TaskError: the split's content is not what was published.
    """
    env_id = definition.env_id
    if (env_id, name) not in _SPLITS:
        raise UnknownNameError(f"split of {env_id}", name, [n for e, n in _SPLITS if e == env_id])
    train, val, test = (tuple(tasks) for tasks in _SPLITS[env_id, name](definition))
    canonical = json.dumps([train, val, test], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:16]
    if digest != _FROZEN[env_id, name]:
        raise TaskError(f"split {name!r} of {env_id} has hash {digest}, but was published as {_FROZEN[env_id, name]}")
    return TaskSplit(name, env_id, train, val, test, digest)


def _rounded(task: Mapping[str, Any]) -> dict[str, Any]:
    """Four decimals: a split a person can read and retype."""
    return {key: [round(v, 4) for v in value] for key, value in task.items()}

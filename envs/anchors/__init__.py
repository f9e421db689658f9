"""What returns are worth: the reference policies' returns on val and test tasks, frozen as JSON files here.

``zero`` does nothing, ``random`` draws actions uniformly, ``blind`` is the best policy that sees neither task nor
reward, ``oracle`` the best task-informed one. Each file holds the command that made it. A file may hold only some of
them, until the others have been measured.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from icrl_agents.errors import TaskError, UnknownNameError

ANCHOR_NAMES = ("zero", "random", "blind", "oracle")


@dataclass(frozen=True)
class Anchors:
    """Returns per episode of the reference policies on one split.

    Attributes:
        env_id: the environment's Gymnasium id.
        split: the split's name.
        split_hash: content hash of the tasks they were measured on.
        command: what made them.
        returns: subset (``"val"``, ``"test"``) -> anchor name -> mean return of each task.
        details: how each was measured.
    """

    env_id: str
    split: str
    split_hash: str
    command: str
    returns: Mapping[str, Mapping[str, list[float]]]
    details: Mapping[str, Any]

    def of(self, subset: str) -> Mapping[str, list[float]]:
        """Anchor name -> mean return of each task of a subset, all four.

        Raises:
            UnknownNameError: none were measured on that subset, or not all; ``returns`` has those that were.
        """
        if subset not in self.returns:
            raise UnknownNameError(f"anchored subset of split {self.split!r}", subset, self.returns)
        measured = self.returns[subset]
        for name in ANCHOR_NAMES:
            if name not in measured:
                raise UnknownNameError(f"anchor of {self.env_id} on split {self.split!r}", name, measured)
        return measured


def anchor_file_name(env_id: str, split: str) -> str:
    """Name of the file that holds the anchors, e.g. ``ReacherGoal-v0.paper.json``."""
    return f"{env_id.removeprefix('icrl/')}.{split}.json"


_REGISTERED: dict[tuple[str, str], Path] = {}
"""(environment, split) -> the file of a split of users' own."""


def register_anchors(env_id: str, split: str, path: str | Path) -> None:
    """The file that holds the anchors of a split of your own; it is read when they are asked for."""
    _REGISTERED[env_id, split] = Path(path).resolve()


def anchors_path(env_id: str, split: str) -> Path | None:
    """Where the anchors of a split belong: the file that was registered for it, else the package's; None for others."""
    if (env_id, split) in _REGISTERED:
        return _REGISTERED[env_id, split]
    packaged = Path(str(resources.files(__name__) / anchor_file_name(env_id, split)))
    return packaged if packaged.is_file() else None


def has_anchors(env_id: str, split: str) -> bool:
    """Whether there is a file of them."""
    path = anchors_path(env_id, split)
    return path is not None and path.is_file()


def load_anchors(env_id: str, split: str, split_hash: str | None = None) -> Anchors:
    """Read the frozen anchors.

    Args:
        env_id: Gymnasium id.
        split: name of the split.
        split_hash: content hash the caller's split has, checked against the file's.

    Raises:
        UnknownNameError: none were frozen for that environment and split.
        TaskError: they were measured on a split of other content, or the file is damaged.
    """
    file = anchors_path(env_id, split)
    if file is None or not file.is_file():
        known = [f.name for f in resources.files(__name__).iterdir() if f.name.endswith(".json")]
        raise UnknownNameError("anchors", anchor_file_name(env_id, split), known)
    try:
        anchors = Anchors(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise TaskError(f"{file} is damaged: {error}. Measure again with icrl-agents anchors") from None
    if split_hash is not None and anchors.split_hash != split_hash:
        raise TaskError(f"anchors of {env_id} are for split hash {anchors.split_hash}, the split has {split_hash}")
    return anchors

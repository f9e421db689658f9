"""What a reset takes of rows: all of it is checked before anything changes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from icrl_agents.errors import TaskError


def one_per_row(tasks: Any, rows: int) -> Sequence[Any]:
    """The tasks, if they are a list of that many.

    Raises:
        TaskError: they are not.
    """
    if isinstance(tasks, Mapping) or not isinstance(tasks, Sequence) or len(tasks) != rows:
        got = f"{len(tasks)}" if isinstance(tasks, Sequence) else f"a {type(tasks).__name__}"
        raise TaskError(f"expected a list of {rows} tasks, one per row, got {got}")
    return tasks


def checked_mask(mask: Any, rows: int) -> np.ndarray:
    """Which rows a reset begins, ``[rows]`` bool.

    Raises:
        TaskError: another shape or type, or no row.
    """
    mask = np.asarray(mask)
    if mask.shape != (rows,) or mask.dtype != bool or not mask.any():
        raise TaskError(f"reset_mask is {rows} booleans, at least one True, got {mask!r}")
    return mask

"""What seeds a reset takes: all of them are checked before anything changes."""

from typing import Any

import numpy as np

from icrl_agents.errors import InputError


def checked_seed(seed: Any) -> int | None:
    """The seed of a reset as Python's own number; None stays None.

    Raises:
        InputError: not a whole number of at least 0.
    """
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"a seed is a whole number of at least 0, got {seed!r}")
    return int(seed)


def checked_seeds(seed: Any, rows: int) -> list[int | None]:
    """One seed per row: of one number s, row i has s + i; else they are given, None for rows without.

    Raises:
        InputError: another number of seeds, or one that is not a whole number of at least 0.
    """
    if seed is None:
        return [None] * rows
    if isinstance(seed, str) or np.ndim(seed) == 0:
        first = checked_seed(seed)
        return [None if first is None else first + row for row in range(rows)]
    if len(seed) != rows:
        raise InputError(f"expected {rows} seeds, one per row, got {len(seed)}")
    return [checked_seed(own) for own in seed]

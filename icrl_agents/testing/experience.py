"""What the checks of meta-environments require of observations, infos and whole episodes."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from icrl_agents.testing.requirement import require


def in_space(space: gymnasium.Space, observation: Any) -> None:
    inside = isinstance(observation, np.ndarray) and observation.dtype == space.dtype and space.contains(observation)
    finite = inside and bool(np.isfinite(observation).all())
    if not finite:
        raise AssertionError(f"observations are finite and inside {space}, got {observation!r}")


def new_task(info: Mapping[str, Any], expected: bool, when: str) -> None:
    found = info.get("new_task")
    good = found is not None and bool(found) is expected
    require(good, f'info["new_task"] of {when}, is {expected}; got {found!r}')


def same_experience(a: list[tuple[Any, ...]], b: list[tuple[Any, ...]], message: str) -> None:
    require(len(a) == len(b), f"{message} episodes of {len(a)} and {len(b)} steps")
    for t, (one, other) in enumerate(zip(a, b, strict=True)):
        for name, x, y in zip(("observations", "rewards", "terminated", "truncated"), one, other, strict=True):
            if not np.array_equal(x, y):
                raise AssertionError(f"{message} {name} differ at step {t}: {x} and {y}")


def same_row(found: Any, expected: Any, row: int, what: str) -> None:
    if not np.array_equal(found, expected):
        raise AssertionError(f"row {row} is not the single environment: {what} {found}, there {expected}")


def touching_pairs(env: Any) -> set[tuple[int, int]] | None:
    """Pairs of shapes that touch; None where no MuJoCo simulation can be asked."""
    data: Any = getattr(env.unwrapped, "data", None)
    if not hasattr(data, "contact"):
        return None
    return {(int(a), int(b)) for a, b in data.contact.geom}


def betrays(info: Mapping[str, Any], secrets: Sequence[np.ndarray]) -> str | None:
    """The entry of ``info`` that is called ``task`` or holds, however deep, a number of a secret; None without one."""
    return next((name for name, value in info.items() if name == "task" or _holds(value, secrets)), None)


def _holds(found: Any, secrets: Sequence[np.ndarray]) -> bool:
    """Whether floats contain a number of a secret, also rounded to float32; whole ones, such as 0, are no evidence."""
    if isinstance(found, Mapping):
        return betrays(found, secrets) is not None
    if isinstance(found, np.ndarray) and found.dtype == object:
        found = found.ravel().tolist()
    if isinstance(found, list | tuple):
        return any(_holds(part, secrets) for part in found)
    array = np.asarray(found)
    if array.dtype.kind != "f":
        return False
    numbers = np.concatenate([secret for secret in secrets if secret.dtype.kind == "f"] or [np.empty(0)])
    numbers = numbers[numbers != np.round(numbers)]
    return bool(np.isclose(array.reshape(-1, 1), numbers, rtol=1e-6, atol=0.0).any())

"""What one step of n simulations comes to, for single and vector environments: also where the physics diverges.

A simulation diverges when a position, velocity or acceleration is huge or not a number. MuJoCo then puts it back into
its default state and goes on; here that ends the episode, with ``terminated``, the observation from before the step,
reward 0 and ``info["diverged"]``. Nothing that is not finite leaves an environment.
"""

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from icrl_agents.envs.definition import MetaEnvDefinition, PhysicsState
from icrl_agents.errors import InputError

DIVERGENCE = slice(int(mujoco.mjtWarning.mjWARN_BADQPOS), int(mujoco.mjtWarning.mjWARN_BADQACC) + 1)
"""Which of MuJoCo's warning counters say that a simulation diverged; a reset sets them to 0."""


@dataclass(frozen=True)
class View:
    """What is to be seen of n simulations; arrays of its own, no views of the simulation.

    Attributes:
        observations: ``[n, N_o]`` float64.
        privileged: ``[n, p]`` float64, what the definition calls so.
    """

    observations: np.ndarray
    privileged: np.ndarray

    @classmethod
    def of(cls, definition: MetaEnvDefinition, state: PhysicsState) -> "View":
        """As the state is now."""
        return cls(definition.observe(state), np.array(definition.privileged(state), np.float64))

    def where(self, rows: np.ndarray, other: "View") -> "View":
        """This one, in ``rows`` ``[n]`` bool the other."""
        rows = rows[:, None]
        return View(
            np.where(rows, other.observations, self.observations), np.where(rows, other.privileged, self.privileged)
        )


@dataclass(frozen=True)
class Outcome:
    """After a step of n simulations.

    Attributes:
        view: of what followed, finite.
        rewards: ``[n]`` float64, finite.
        infos: what the definition tells of the reward ``[n]`` by name, and ``diverged [n]`` bool if any did.
        terminated: ``[n]`` bool, True also where the simulation diverged.
    """

    view: View
    rewards: np.ndarray
    infos: dict[str, np.ndarray]
    terminated: np.ndarray


def outcome(
    definition: MetaEnvDefinition,
    before: Any,
    state: PhysicsState,
    actions: np.ndarray,
    tasks: np.ndarray,
    last: View,
    failed: np.ndarray,
) -> Outcome:
    """What a step comes to.

    Args:
        definition: of the environment.
        before: what its ``remember`` returned before the step.
        state: after the step.
        actions: ``[n, A]`` float64.
        tasks: ``[n, k]``.
        last: what was seen before the step.
        failed: ``[n]`` bool, where the engine says that the simulation diverged.
    """
    with np.errstate(all="ignore"):  # what overflows here is replaced below
        rewards, infos = definition.reward(before, state, actions, tasks)
        view = View.of(definition, state)
        terminated = definition.terminated(state)
    # The engine checks the state at the beginning of a substep: what the last one did to it, it has not seen yet.
    diverged = failed | ~np.isfinite(rewards)
    for seen in (view.observations, view.privileged):
        diverged |= ~np.isfinite(seen).all(1)
    if diverged.any():
        view = view.where(diverged, last)
        rewards = np.where(diverged, 0.0, rewards)
        infos = {**{name: np.where(diverged, 0.0, info) for name, info in infos.items()}, "diverged": diverged}
        terminated = terminated | diverged
    return Outcome(view, rewards, infos, terminated)


def checked_actions(actions: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Actions as float64, before they change anything.

    Raises:
        InputError: no numbers, another shape, or not finite.
    """
    try:
        given = np.asarray(actions)
    except ValueError:  # rows of different lengths
        given = np.empty(0, object)
    if given.dtype.kind not in "fiub":
        raise InputError(f"actions are numbers of shape {shape}, got {actions!r}")
    actions = given.astype(np.float64)
    if actions.shape != shape:
        raise InputError(f"expected actions of shape {shape}, got {actions.shape}")
    if not np.isfinite(actions).all():
        raise InputError(f"actions are finite numbers, got {actions.tolist() if actions.ndim == 1 else _bad(actions)}")
    return actions


def _bad(actions: np.ndarray) -> str:
    row = int(np.flatnonzero(~np.isfinite(actions).all(1))[0])
    return f"{actions[row].tolist()} in row {row}"

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
class Outcome:
    """After a step of n simulations.

    Attributes:
        observations: ``[n, N_o]`` float64, finite.
        rewards: ``[n]`` float64, finite.
        infos: what the definition tells of the reward ``[n]`` by name, and ``diverged [n]`` bool if any did.
        terminated: ``[n]`` bool, True also where the simulation diverged.
    """

    observations: np.ndarray
    rewards: np.ndarray
    infos: dict[str, np.ndarray]
    terminated: np.ndarray


def outcome(
    definition: MetaEnvDefinition,
    before: Any,
    state: PhysicsState,
    actions: np.ndarray,
    tasks: np.ndarray,
    last: np.ndarray,
    failed: np.ndarray,
) -> Outcome:
    """What a step comes to.

    Args:
        definition: of the environment.
        before: what its ``remember`` returned before the step.
        state: after the step.
        actions: ``[n, A]`` float64.
        tasks: ``[n, k]``.
        last: observations before the step ``[n, N_o]``.
        failed: ``[n]`` bool, where the engine says that the simulation diverged.
    """
    with np.errstate(all="ignore"):  # what overflows here is replaced below
        rewards, infos = definition.reward(before, state, actions, tasks)
        observations = definition.observe(state)
        terminated = definition.terminated(state)
    # The engine looks at the beginning of a substep: what the last one did to the state it has not seen yet.
    diverged = failed | ~np.isfinite(rewards) | ~np.isfinite(observations).all(1)
    if diverged.any():
        observations = np.where(diverged[:, None], last, observations)
        rewards = np.where(diverged, 0.0, rewards)
        infos = {**{name: np.where(diverged, 0.0, info) for name, info in infos.items()}, "diverged": diverged}
        terminated = terminated | diverged
    return Outcome(observations, rewards, infos, terminated)


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

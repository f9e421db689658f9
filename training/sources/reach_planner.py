"""The best reaches: torques for Reacher-Goal's arm, planned by who knows goal and physics.

The two joints hardly feel each other (armature 1 kg m^2, links of 1e-3), so that angles are linear in torques, and a
whole episode is a smooth problem in 100 numbers. Newton's method solves it from every way to bend and turn the arm.
That none is better is not proved. What a plan promises, MuJoCo pays, within 0.01 and on average to 0.002.

    n plans, T steps each
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from icrl_agents.errors import ConfigError

STEPS = 50
"""T, steps of an episode."""

INERTIA, GEAR, LINKS = 1.0007, 200.0, (0.1, 0.11)
"""In kg m^2, N m and m, as reacher.xml has them (the inertia is the mean of the joints' own, the arm stretched); a
joint's damping is 1 N m s/rad."""

BENT = 2.98
"""Furthest bend of the elbow in rad; its limit is 3."""

_PHYSICS_STEP = 0.01  # s, of which a step of the environment has two
_DECAY = np.exp(-_PHYSICS_STEP / INERTIA)  # of a velocity in one
_TOGETHER = 50  # plans that are solved at a time: what they take of memory stays small


class Plans(NamedTuple):
    """What was planned.

    Attributes:
        torques: ``[n, T, 2]``, actions.
        angles: ``[n, T, 2]`` in rad, before each of them.
        speeds: ``[n, T, 2]`` in rad/s, likewise.
        returns: ``[n]`` that this brings.
    """

    torques: np.ndarray
    angles: np.ndarray
    speeds: np.ndarray
    returns: np.ndarray


def _effects() -> tuple[np.ndarray, np.ndarray]:
    """What a start's speed ``[T]`` and torques ``[T, T]`` add to an angle after each step."""
    ends = np.arange(2, 2 * STEPS + 1, 2)  # in physics steps
    turned = GEAR * (_PHYSICS_STEP * np.arange(2 * STEPS + 1) - INERTIA * (1 - _DECAY ** np.arange(2 * STEPS + 1)))
    since = ends[:, None] - (ends - 2)  # a torque of 1 began
    lasting, ended = (np.where(steps > 0, turned[steps.clip(0)], 0.0) for steps in (since, since - 2))
    return INERTIA * (1 - _DECAY**ends), lasting - ended


_OF_SPEED, _OF_TORQUES = (torch.from_numpy(effect) for effect in _effects())
_PAIRS = (_OF_TORQUES[:, :, None] * _OF_TORQUES[:, None]).reshape(STEPS, STEPS * STEPS)
_TOWARDS = torch.linalg.solve(_OF_TORQUES.T @ _OF_TORQUES + torch.eye(STEPS).double(), _OF_TORQUES.sum(0))
"""Torques ``[T]`` that turn a joint by 1 rad and hold it there, as nearly as effort allows: what plans begin with."""


def step_arm(angles: np.ndarray, speeds: np.ndarray, torques: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angles and speeds ``[..., 2]`` one step of the environment later, as if the elbow had no limit."""
    kept = _DECAY**2
    coasted = angles + INERTIA * (1 - kept) * speeds
    return coasted + _OF_TORQUES[0, 0].item() * torques, kept * speeds + GEAR * (1 - kept) * torques


def observe_arm(angles: np.ndarray, speeds: np.ndarray) -> np.ndarray:
    """What Reacher-Goal's observations have of angles and speeds ``[..., 2]``: ``[..., 8]``."""
    inner, outer = angles[..., 0], angles.sum(-1)
    tip = [sum(r * f(a) for r, a in zip(LINKS, (inner, outer), strict=True)) for f in (np.cos, np.sin)]
    return np.concatenate([np.cos(angles), np.sin(angles), speeds, np.stack(tip, -1)], -1)


def plan(angles: np.ndarray, speeds: np.ndarray, goals: np.ndarray, *, iterations: int = 50) -> Plans:
    """The best episodes found from given states.

    Args:
        angles: ``[n, 2]`` of the joints, in rad.
        speeds: ``[n, 2]``, in rad/s.
        goals: ``[n, 2]``, in m.
        iterations: of Newton's method. After half of them only the two most promising ways are followed.

    Raises:
        ConfigError: less than 2 iterations.
    """
    if iterations < 2:
        raise ConfigError(f"iterations: expected at least 2, got {iterations}")
    parts = zip(*(torch.from_numpy(np.float64(x)).split(_TOGETHER) for x in (angles, speeds, goals)), strict=True)
    done = [_plan(start, speed, goal, iterations) for start, speed, goal in parts]
    torques, returns = (torch.cat(part).numpy() for part in zip(*done, strict=True))
    states = [(angles, speeds)]
    for t in range(STEPS - 1):
        states.append(step_arm(*states[-1], torques[:, t]))
    led_to, fast = (np.stack(part, 1) for part in zip(*states, strict=True))
    return Plans(torques, led_to, fast, returns)


def _plan(start: Tensor, speeds: Tensor, goals: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Torques ``[n, T, 2]`` and returns ``[n]``."""
    targets = torch.complex(goals[:, 0], goals[:, 1])
    ways = _ways(targets) - start[:, None]  # [n, W, 2]
    torques = ways[..., None] * _TOWARDS  # [n, W, 2, T]
    radii = np.geomspace(0.1, 1e-5, iterations).tolist()
    torques, costs = _improve(torques, start, speeds, targets, radii[: iterations // 2])
    kept = costs.argsort(1)[:, :2]
    torques = torques.gather(1, kept[..., None, None].expand(-1, -1, 2, STEPS))
    torques, costs = _improve(torques, start, speeds, targets, radii[iterations // 2 :])
    best = costs.argmin(1)
    return torques[torch.arange(len(goals)), best].mT, -costs[torch.arange(len(goals)), best]


def _ways(goals: Tensor) -> Tensor:
    """Angles ``[n, W, 2]`` that reach complex goals, or nearly: the elbow on either side, the shoulder either way."""
    inner, outer = LINKS
    cosine = (goals.abs() ** 2 - inner**2 - outer**2) / (2 * inner * outer)
    bend = cosine.clamp(math.cos(BENT), 1).acos()
    return torch.stack(
        [
            torch.stack([goals.angle() - (inner + torch.polar(_like(bend, outer), elbow)).angle() + turn, elbow], 1)
            for elbow in (bend, -bend)
            for turn in (-2 * math.pi, 0, 2 * math.pi)
        ],
        1,
    )


def _improve(
    torques: Tensor, start: Tensor, speeds: Tensor, goals: Tensor, radii: list[float]
) -> tuple[Tensor, Tensor]:
    """Newton's steps on torques ``[n, W, 2, T]``, one for each radius, and the costs ``[n, W]`` at the last."""
    n, ways = torques.shape[:2]
    start, speeds, goals = (x.repeat_interleave(ways, 0) for x in (start, speeds, goals))
    x, damping = torques.reshape(-1, 2, STEPS), torch.ones(n * ways, dtype=torch.float64)
    hessian = torch.empty(len(x), 2, STEPS, 2, STEPS, dtype=torch.float64)
    flat = hessian.view(len(x), 2 * STEPS, 2 * STEPS)
    now = torch.empty(len(x), dtype=torch.float64)
    for radius in radii:
        now, slopes, (first, both, second) = _cost(x, start, speeds, goals, radius)
        for i, j, curved in ((0, 0, first), (0, 1, both), (1, 0, both), (1, 1, second)):
            hessian[:, i, :, j] = (curved @ _PAIRS).view(-1, STEPS, STEPS)
        flat.diagonal(dim1=1, dim2=2).add_((2 + damping)[:, None])
        gradient = (slopes @ _OF_TORQUES + 2 * x).reshape(len(x), 2 * STEPS)
        trial = x - torch.linalg.solve(flat, gradient).view_as(x)
        then, *_ = _cost(trial, start, speeds, goals, radius)
        better = then < now
        x, now = torch.where(better[:, None, None], trial, x), torch.where(better, then, now)
        damping = torch.where(better, damping / 3, damping * 4).clamp(1e-6, 1e6)
    return x.view_as(torques), now.view(n, ways)


def _cost(
    torques: Tensor, start: Tensor, speeds: Tensor, goals: Tensor, radius: float
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Minus the return ``[m]`` of torques ``[m, 2, T]``, and how it depends on the angles.

    Distances are rounded off at the complex goal within a radius in m, where they have no derivative.

    Returns:
        The cost; its derivatives ``[m, 2, T]``; and of the second ones, step by step, those by the shoulder, by both
        and by the elbow ``[m, T]``, without what bends the other way: a Newton step then leads down.
    """
    angles = start[..., None] + _OF_SPEED * speeds[..., None] + torques @ _OF_TORQUES.T
    inner, outer = (torch.polar(_like(a, r), a) for r, a in zip(LINKS, (angles[:, 0], angles.sum(1)), strict=True))
    tip = inner + outer
    gap = tip - goals[:, None]
    distance = (gap.abs() ** 2 + radius**2).sqrt()
    slopes = torch.stack([-(gap.conj() * tip).imag, -(gap.conj() * outer).imag], 1) / distance[:, None]  # d tip = i tip
    first, both, second = (
        ((a.conj() * b).real - (gap.conj() * c).real - slopes[:, i] * slopes[:, j]) / distance
        for a, b, c, i, j in ((tip, tip, tip, 0, 0), (tip, outer, outer, 0, 1), (outer, outer, outer, 1, 1))
    )
    over = angles[:, 1].sign() * (angles[:, 1].abs() - BENT).clamp(min=0)
    slopes[:, 1] += 1e3 * over
    second = second + 1e3 * (over != 0)
    cost = distance.sum(1) + torques.square().sum((1, 2)) + 500 * over.square().sum(1)
    middle, half = (first + second) / 2, (first - second) / 2
    spread = torch.hypot(half, both)
    high, low = (middle + spread).clamp(min=0), (middle - spread).clamp(min=0)  # eigenvalues
    mean, scale = (high + low) / 2, (high - low) / (2 * spread).clamp(min=1e-12)
    return cost, slopes, (mean + scale * half, scale * both, mean - scale * half)


def _like(x: Tensor, value: float) -> Tensor:
    return torch.full_like(x, value)

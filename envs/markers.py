"""What a viewer of a meta-environment sees beside the simulation: shapes that no physics and no agent knows of."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

Color = tuple[float, float, float, float]
"""Red, green, blue and opacity in [0, 1]."""

TARGET: Color = (0.1, 0.9, 0.2, 1.0)
"""What the hidden task asks for."""

ACTUAL: Color = (1.0, 0.6, 0.0, 1.0)
"""What the robot does."""


@dataclass(frozen=True)
class Marker:
    """One shape.

    Attributes:
        type: of the shape.
        pos: ``[3]`` in m, the centre; of an arrow, where it begins.
        size: ``[3]`` in m, as MuJoCo reads it for this type.
        mat: rotation ``[9]``, rows first.
        rgba: its colour.
    """

    type: mujoco.mjtGeom
    pos: np.ndarray
    size: np.ndarray
    mat: np.ndarray
    rgba: Color


def arrow(start: np.ndarray, direction: np.ndarray, length: float, radius: float, rgba: Color) -> Marker:
    """An arrow from ``start [3]`` along ``direction [3]``, a unit vector that is not vertical."""
    across = np.cross([0.0, 0.0, 1.0], direction)
    across /= np.linalg.norm(across)
    # MuJoCo's arrow points along its own z axis, and is drawn half as long as its size says
    mat = np.stack([across, np.cross(direction, across), direction], axis=1)
    return Marker(mujoco.mjtGeom.mjGEOM_ARROW, start, np.array([radius, radius, 2 * length]), mat.ravel(), rgba)


def box(low: np.ndarray, high: np.ndarray, rgba: Color) -> Marker:
    """A box along the axes between two opposite corners ``[3]``, in either order."""
    size = np.abs(high - low) / 2
    return Marker(mujoco.mjtGeom.mjGEOM_BOX, (low + high) / 2, size, np.eye(3).ravel(), rgba)


def add_markers(scene: mujoco.MjvScene, markers: Iterable[Marker]) -> None:
    """Append shapes to an updated scene."""
    for marker in markers:
        geom = scene.geoms[scene.ngeom]
        mujoco.mjv_initGeom(geom, marker.type, marker.size, marker.pos, marker.mat, np.array(marker.rgba, np.float32))
        scene.ngeom += 1


def follow(camera: mujoco.MjvCamera, config: Mapping[str, Any], xpos: np.ndarray) -> None:
    """Let a free camera look at the body that ``config["trackbodyid"]`` names, in x and y: up and down it stays calm.

    Args:
        camera: to be moved.
        config: a definition's ``camera``.
        xpos: positions of the bodies ``[nbody, 3]`` of the simulation it shows.
    """
    body = config.get("trackbodyid", -1)
    if body > 0:
        camera.lookat[:2] = xpos[body, :2]

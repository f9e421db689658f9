"""MuJoCo's shapes as triangles, for viewers that know nothing of MuJoCo.

V vertices, F faces; a mesh lies in the shape's own frame.
"""

from dataclasses import dataclass, replace

import mujoco
import numpy as np

from icrl_agents.envs.markers import Color

SEGMENTS = 24
"""Around a circle; even."""

SHAFT, TIP = 0.6, 2.0
"""Length of an arrow's shaft over the whole, and radius of its tip over the shaft's."""

_GEOM = mujoco.mjtGeom
_DEFAULT_RGBA = np.array([0.5, 0.5, 0.5, 1.0], np.float32)


@dataclass(frozen=True)
class Mesh:
    """Triangles.

    Attributes:
        vertices: ``[V, 3]`` float32 in m.
        faces: ``[F, 3]`` uint32, counter-clockwise seen from outside.
        smooth: whether light should not show its edges.
    """

    vertices: np.ndarray
    faces: np.ndarray
    smooth: bool = False


def shape_mesh(shape: mujoco.mjtGeom | int, size: np.ndarray) -> Mesh:
    """The mesh of a primitive shape.

    Args:
        shape: sphere, capsule, ellipsoid, cylinder, box or arrow.
        size: ``[3]`` as MuJoCo reads it for this shape: radius; radius and half length; half lengths of the axes; of an
            arrow radius, radius and twice the length.

    Raises:
        ValueError: another shape.
    """
    if shape == _GEOM.mjGEOM_BOX:
        return _box(size)
    if shape == _GEOM.mjGEOM_SPHERE:
        size = np.full(3, size[0])
    if shape in (_GEOM.mjGEOM_SPHERE, _GEOM.mjGEOM_ELLIPSOID):
        unit = _turned(_half_circle(0.0))
        return Mesh((unit.vertices * size).astype(np.float32), unit.faces, smooth=True)
    radius, length = float(size[0]), float(size[1])
    if shape == _GEOM.mjGEOM_CYLINDER:
        return _turned(np.array([[0.0, -length], [radius, -length], [radius, length], [0.0, length]]))
    if shape == _GEOM.mjGEOM_CAPSULE:
        return replace(_turned(_half_circle(length / radius) * radius), smooth=True)
    if shape == _GEOM.mjGEOM_ARROW:
        end = float(size[2]) / 2
        tip = TIP * radius
        neck = max(SHAFT * end, end - 2 * tip)
        return _turned(np.array([[0.0, 0.0], [radius, 0.0], [radius, neck], [tip, neck], [0.0, end]]))
    raise ValueError(f"no triangles for the shape {shape}")


def geom_mesh(model: mujoco.MjModel, geom: int) -> Mesh:
    """The mesh of a geom of a model; of one that is neither primitive nor a mesh, the box around it.

    A plane has none: it may have no end.
    """
    shape, size = int(model.geom_type[geom]), model.geom_size[geom]
    if shape == _GEOM.mjGEOM_MESH:
        of = model.geom_dataid[geom]
        first, count = model.mesh_vertadr[of], model.mesh_vertnum[of]
        first_face, faces = model.mesh_faceadr[of], model.mesh_facenum[of]
        return Mesh(
            model.mesh_vert[first : first + count].astype(np.float32),
            model.mesh_face[first_face : first_face + faces].astype(np.uint32),
        )
    try:
        return shape_mesh(shape, size)
    except ValueError:
        centre, half = np.split(model.geom_aabb[geom], 2)
        around = _box(half)
        return Mesh((around.vertices + centre).astype(np.float32), around.faces)


def geom_color(model: mujoco.MjModel, geom: int) -> Color:
    """As MuJoCo colours it: by its own colour, or by its material's where it has none of its own."""
    rgba = model.geom_rgba[geom]
    if model.geom_matid[geom] >= 0 and (rgba == _DEFAULT_RGBA).all():
        rgba = model.mat_rgba[model.geom_matid[geom]]
    red, green, blue, opacity = rgba.tolist()
    return (red, green, blue, opacity)


def visible_geoms(model: mujoco.MjModel) -> list[int]:
    """Those that MuJoCo's viewers show without being asked: the first three groups, where not fully transparent."""
    return [g for g in range(model.ngeom) if model.geom_group[g] < 3 and geom_color(model, g)[3] > 0]


def quaternions(rotations: np.ndarray) -> np.ndarray:
    """Rotation matrices ``[n, 9]``, rows first, as quaternions ``[n, 4]``: w, x, y, z."""
    result = np.empty((len(rotations), 4))
    for quaternion, rotation in zip(result, np.asarray(rotations, np.float64), strict=True):
        mujoco.mju_mat2Quat(quaternion, rotation)
    return result


def _half_circle(length: float) -> np.ndarray:
    """An outline ``[n, 2]`` of radius and height, from the lowest to the highest point of a capsule of radius 1."""
    angles = np.linspace(-np.pi / 2, np.pi / 2, SEGMENTS + 1)
    below, above = angles[: SEGMENTS // 2 + 1], angles[SEGMENTS // 2 :]
    halves = [np.stack([np.cos(part), np.sin(part) + shift], 1) for part, shift in ((below, -length), (above, length))]
    outline = np.concatenate(halves) if length > 0 else np.concatenate([halves[0], halves[1][1:]])
    outline[[0, -1], 0] = 0.0
    return outline


def _turned(outline: np.ndarray) -> Mesh:
    """An outline ``[n, 2]`` of radius and height, lowest first, both ends on the axis, turned about the z axis."""
    n = len(outline)
    angles = np.arange(SEGMENTS) * (2 * np.pi / SEGMENTS)
    rings = np.empty((n, SEGMENTS, 3))
    rings[..., 0] = outline[:, :1] * np.cos(angles)
    rings[..., 1] = outline[:, :1] * np.sin(angles)
    rings[..., 2] = outline[:, 1:]
    index = np.arange(n * SEGMENTS).reshape(n, SEGMENTS)
    low, high = index[:-1], index[1:]
    low_next, high_next = (np.roll(part, -1, axis=1) for part in (low, high))
    first = np.stack([low, low_next, high_next], -1)
    second = np.stack([low, high_next, high], -1)
    # At the axis a ring is a point: there one of the two triangles has no area
    faces = np.concatenate([first[1:].reshape(-1, 3), second[:-1].reshape(-1, 3)])
    return Mesh(rings.reshape(-1, 3).astype(np.float32), faces.astype(np.uint32))


def _box(half: np.ndarray) -> Mesh:
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    quads = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
    faces = [triangle for a, b, c, d in quads for triangle in ((a, b, c), (a, c, d))]
    return Mesh((corners * half).astype(np.float32), np.array(faces, np.uint32))

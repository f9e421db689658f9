"""Triangles of MuJoCo's shapes, against the volumes that geometry and MuJoCo know."""

import math
from itertools import pairwise

import gymnasium
import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl_agents.envs import MetaEnv, env_ids
from icrl_agents.envs.markers import TARGET, arrow
from icrl_agents.watch.shapes import Mesh, geom_color, geom_mesh, quaternions, shape_mesh, visible_geoms

GEOM = mujoco.mjtGeom
LENGTHS = st.floats(0.05, 2.0)

VOLUMES = {
    GEOM.mjGEOM_SPHERE: lambda r, h, _: 4 / 3 * math.pi * r**3,
    GEOM.mjGEOM_CAPSULE: lambda r, h, _: 4 / 3 * math.pi * r**3 + 2 * math.pi * r**2 * h,
    GEOM.mjGEOM_ELLIPSOID: lambda a, b, c: 4 / 3 * math.pi * a * b * c,
    GEOM.mjGEOM_CYLINDER: lambda r, h, _: 2 * math.pi * r**2 * h,
    GEOM.mjGEOM_BOX: lambda a, b, c: 8 * a * b * c,
}


def volume(mesh: Mesh) -> float:
    """By the divergence theorem: positive only if faces are counter-clockwise from outside."""
    a, b, c = (mesh.vertices[mesh.faces[:, i]].astype(np.float64) for i in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


@pytest.mark.parametrize("shape", VOLUMES)
@settings(deadline=None)
@given(size=st.tuples(LENGTHS, LENGTHS, LENGTHS))
def test_a_shape_has_the_volume_it_should(shape: mujoco.mjtGeom, size: tuple[float, float, float]) -> None:
    mesh = shape_mesh(shape, np.array(size))
    assert volume(mesh) == pytest.approx(VOLUMES[shape](*size), rel=0.03)  # 24 segments are no circle
    assert (mesh.vertices.dtype, mesh.faces.dtype) == (np.float32, np.uint32)


@pytest.mark.parametrize("shape", [*VOLUMES, GEOM.mjGEOM_ARROW])
def test_a_shape_is_closed(shape: mujoco.mjtGeom) -> None:
    """Every edge belongs to as many faces one way as the other."""
    mesh = shape_mesh(shape, np.array([0.1, 0.3, 0.7]))
    places = {tuple(vertex): i for i, vertex in enumerate(np.round(mesh.vertices, 6).tolist())}
    index = [places[tuple(vertex)] for vertex in np.round(mesh.vertices, 6).tolist()]
    edges: dict[tuple[int, int], int] = {}
    for face in mesh.faces.tolist():
        corners = [index[i] for i in face]
        for a, b in pairwise([*corners, corners[0]]):
            edges[a, b] = edges.get((a, b), 0) + 1
    assert all(edges.get((b, a), 0) == count for (a, b), count in edges.items())


def test_an_arrow_ends_where_it_points() -> None:
    direction = np.array([0.6, 0.8, 0.0])
    marker = arrow(np.array([1.0, 2.0, 0.5]), direction, 1.5, 0.05, TARGET)
    points = shape_mesh(marker.type, marker.size).vertices @ marker.mat.reshape(3, 3).T + marker.pos
    along = (points - marker.pos) @ direction
    assert (along.min(), along.max()) == pytest.approx((0.0, 1.5), abs=1e-6)
    np.testing.assert_allclose(points[along.argmax()], marker.pos + 1.5 * direction, atol=1e-6)


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="no triangles"):
        shape_mesh(GEOM.mjGEOM_HFIELD, np.ones(3))


@pytest.mark.parametrize("env_id", env_ids())
def test_every_geom_of_our_models_fills_its_box(env_id: str) -> None:
    env = gymnasium.make(env_id)
    assert isinstance(env.unwrapped, MetaEnv)
    model = env.unwrapped.model
    shown = [geom for geom in visible_geoms(model) if model.geom_type[geom] != GEOM.mjGEOM_PLANE]
    assert len(shown) > 3
    for geom in shown:
        mesh, (centre, half) = geom_mesh(model, geom), np.split(model.geom_aabb[geom], 2)
        low, high = mesh.vertices.min(0), mesh.vertices.max(0)
        np.testing.assert_allclose((low + high) / 2, centre, atol=1e-6)
        np.testing.assert_allclose((high - low) / 2, half, rtol=0.01, atol=1e-6)
    env.close()


MODEL = """
<mujoco>
  <asset>
    <mesh name="wedge" vertex="0 0 0  2 0 0  0 2 0  0 0 2"/>
    <hfield name="hill" nrow="2" ncol="2" size="1 2 .5 .1" elevation="0 1 1 0"/>
    <material name="red" rgba="1 0 0 1"/>
  </asset>
  <worldbody>
    <geom type="mesh" mesh="wedge" pos="1 2 3"/>
    <geom type="hfield" hfield="hill"/>
    <geom type="sphere" size=".1" material="red"/>
    <geom type="sphere" size=".1" material="red" rgba="0 0 1 1"/>
    <geom type="sphere" size=".1" group="3"/>
    <geom type="sphere" size=".1" rgba="1 1 1 0"/>
  </worldbody>
</mujoco>
"""


def test_meshes_materials_and_groups_are_as_mujoco_has_them() -> None:
    model = mujoco.MjModel.from_xml_string(MODEL)
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    wedge = geom_mesh(model, 0).vertices @ data.geom_xmat[0].reshape(3, 3).T + data.geom_xpos[0]
    corners = {(1, 2, 3), (3, 2, 3), (1, 4, 3), (1, 2, 5)}
    assert {tuple(vertex) for vertex in np.round(wedge, 4).tolist()} == corners
    assert volume(geom_mesh(model, 0)) == pytest.approx(8 / 6, rel=1e-5)
    around = geom_mesh(model, 1).vertices
    np.testing.assert_allclose(around.max(0) - around.min(0), 2 * model.geom_aabb[1, 3:], rtol=1e-5)
    assert geom_color(model, 2) == (1, 0, 0, 1)
    assert geom_color(model, 3) == (0, 0, 1, 1)
    assert visible_geoms(model) == [0, 1, 2, 3]


@settings(deadline=None)
@given(st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: math.hypot(*q) > 0.1))
def test_quaternions_turn_as_their_matrices_do(quaternion: tuple[float, ...]) -> None:
    unit = np.array(quaternion) / np.linalg.norm(quaternion)
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, unit)
    (back,) = quaternions(matrix[None])
    assert abs(back @ unit) == pytest.approx(1.0, abs=1e-6)

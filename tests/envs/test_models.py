"""The compiled models are those that MuJoCo reads from the files, without what it says of them."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import mujoco
import numpy as np
import pytest

from icrl_agents.envs import env_definition, env_ids
from icrl_agents.envs.models import load_model, with_farther_floor


@pytest.mark.parametrize("env_id", env_ids())
def test_a_model_is_that_of_its_file_bit_for_bit(env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo logs there
    path = env_definition(env_id).model_path
    ours, theirs = load_model(path, 1, 1), mujoco.MjModel.from_xml_path(str(path))
    arrays = [name for name in dir(theirs) if isinstance(getattr(theirs, name), np.ndarray)]
    assert {"body_mass", "body_inertia", "dof_invweight0", "actuator_gear"} <= set(arrays)
    for name in arrays:
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)


def test_pictures_fit_and_the_models_own_screen_is_kept() -> None:
    path = env_definition("icrl/AntDir-v0").model_path
    own = load_model(path, 1, 1).vis.global_
    grown = load_model(path, own.offwidth + 7, 1).vis.global_
    assert (grown.offwidth, grown.offheight) == (own.offwidth + 7, own.offheight)


@pytest.mark.parametrize("make", ["make", "make_vec"])
def test_making_an_environment_says_and_writes_nothing(make: str, tmp_path: Path) -> None:
    code = f"import gymnasium, icrl_agents.envs as e; [gymnasium.{make}(i) for i in e.env_ids()]"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert not list(tmp_path.iterdir())


def differences(one: mujoco.MjModel, other: mujoco.MjModel) -> dict[str, np.ndarray]:
    """Array -> where two models are not the same."""
    arrays = {name: (getattr(one, name), getattr(other, name)) for name in dir(one)}
    found = {name: ours != theirs for name, (ours, theirs) in arrays.items() if isinstance(ours, np.ndarray)}
    return {name: where for name, where in found.items() if where.any()}


@pytest.mark.parametrize("env_id", env_ids())
def test_for_pictures_a_floor_goes_on_and_nothing_else_is_changed(env_id: str) -> None:
    model = load_model(env_definition(env_id).model_path, 1, 1)
    before, drawn = copy.copy(model), with_farther_floor(model)
    assert not differences(model, before)
    floor = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, "floor")
    if floor < 0:
        assert not differences(model, drawn)
        return
    changed, material = differences(model, drawn), model.geom_matid[floor]
    assert set(changed) == {"geom_size", "mat_texrepeat"}
    assert np.argwhere(changed["geom_size"]).tolist() == [[floor, 0], [floor, 1]]
    assert np.argwhere(changed["mat_texrepeat"]).tolist() == [[material, 0], [material, 1]]
    assert drawn.geom_size[floor, :2].min() > 10 * 20  # m/s, seconds
    tiles = [m.mat_texrepeat[material] / m.geom_size[floor, :2] for m in (model, drawn)]
    np.testing.assert_array_equal(*tiles)


@pytest.mark.parametrize(
    ("floor", "farther"),
    [
        ('size="4 4 1"', True),
        ('size="0 0 1" material="other"', False),  # it has no end
        ('size="4 4 1" material="by_length"', False),
        ('size="4 4 1" material="other"', False),  # a ball's as well
    ],
)
def test_floors_of_other_models(floor: str, farther: bool) -> None:
    model = mujoco.MjModel.from_xml_string(f"""
        <mujoco>
          <asset>
            <texture name="checker" type="2d" builtin="checker" width="2" height="2"/>
            <material name="by_length" texture="checker" texuniform="true"/>
            <material name="other" texture="checker"/>
          </asset>
          <worldbody>
            <geom name="floor" type="plane" {floor}/>
            <geom type="sphere" size="1" material="other"/>
          </worldbody>
        </mujoco>""")
    assert set(differences(model, with_farther_floor(model))) == ({"geom_size"} if farther else set())

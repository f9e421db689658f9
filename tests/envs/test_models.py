"""The compiled models are those that MuJoCo reads from the files, without what it says of them."""

import os
import subprocess
import sys
from pathlib import Path

import mujoco
import numpy as np
import pytest

from icrl_agents.envs import env_definition, env_ids
from icrl_agents.envs.models import load_model


@pytest.mark.parametrize("env_id", env_ids())
def test_a_model_is_that_of_its_file_bit_for_bit_but_that_a_floor_goes_on(
    env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo logs there
    path = env_definition(env_id).model_path
    ours, theirs = load_model(path, 1, 1), mujoco.MjModel.from_xml_path(str(path))
    assert {"body_mass", "body_inertia", "dof_invweight0", "actuator_gear"} <= set(arrays_of(theirs))
    changed = differences(ours, theirs)
    floor = mujoco.mj_name2id(theirs, mujoco.mjtObj.mjOBJ_GEOM, "floor")
    if floor < 0:
        assert not changed
        return
    material = theirs.geom_matid[floor]
    assert set(changed) == {"geom_size", "mat_texrepeat"}
    assert np.argwhere(changed["geom_size"]).tolist() == [[floor, 0], [floor, 1]]
    assert np.argwhere(changed["mat_texrepeat"]).tolist() == [[material, 0], [material, 1]]
    assert ours.geom_size[floor, :2].min() > 10 * 20  # m/s, seconds
    tiles = [model.mat_texrepeat[material] / model.geom_size[floor, :2] for model in (ours, theirs)]
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
def test_floors_of_other_models(floor: str, farther: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    path.write_text(f"""
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
    changed = differences(load_model(path, 1, 1), mujoco.MjModel.from_xml_path(str(path)))
    assert set(changed) == ({"geom_size"} if farther else set())


def arrays_of(model: mujoco.MjModel) -> dict[str, np.ndarray]:
    found = {name: getattr(model, name) for name in dir(model)}
    return {name: array for name, array in found.items() if isinstance(array, np.ndarray)}


def differences(one: mujoco.MjModel, other: mujoco.MjModel) -> dict[str, np.ndarray]:
    """Array -> where two models are not the same."""
    ours = arrays_of(one)
    return {name: ours[name] != theirs for name, theirs in arrays_of(other).items() if (ours[name] != theirs).any()}


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

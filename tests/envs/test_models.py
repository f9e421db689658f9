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
def test_a_model_is_that_of_its_file_bit_for_bit(env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo logs there
    path = env_definition(env_id).model_path
    ours, theirs = load_model(path, 1, 1), mujoco.MjModel.from_xml_path(str(path))
    arrays = [name for name in dir(theirs) if isinstance(getattr(theirs, name), np.ndarray)]
    assert {"body_mass", "body_inertia", "dof_invweight0", "actuator_gear"} <= set(arrays)
    for name in set(arrays) - {"geom_size", "mat_texrepeat"}:  # floors are drawn farther
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    solid = theirs.geom_type != mujoco.mjtGeom.mjGEOM_PLANE
    np.testing.assert_array_equal(ours.geom_size[solid], theirs.geom_size[solid])


@pytest.mark.parametrize("env_id", ["icrl/AntDir-v0", "icrl/HalfCheetahVel-v0"])
def test_floors_are_drawn_as_far_as_anybody_runs_in_the_same_pattern(env_id: str) -> None:
    path = env_definition(env_id).model_path
    ours, theirs = load_model(path, 1, 1), mujoco.MjModel.from_xml_path(str(path))
    floor, material = theirs.geom("floor").id, theirs.geom("floor").matid[0]
    assert ours.geom_size[floor, :2].min() > 10 * 20  # m/s, seconds
    tiles = [model.mat_texrepeat[material] / model.geom_size[floor, :2] for model in (ours, theirs)]
    np.testing.assert_array_equal(*tiles)


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

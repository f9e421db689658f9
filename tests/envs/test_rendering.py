"""Pictures show the hidden task to whoever watches; nothing they do reaches the simulation or the agent."""

import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl_agents.envs import MetaEnv, env_definition, env_ids, sample_tasks
from icrl_agents.envs.definition import PhysicsState
from icrl_agents.envs.markers import ACTUAL, TARGET, Marker

SIZE = {"width": 48, "height": 32}

over_envs = pytest.mark.parametrize("env_id", env_ids())


def single(env_id: str, **options: Any) -> MetaEnv:
    env = gymnasium.make(env_id, **options).unwrapped
    assert isinstance(env, MetaEnv)
    return env


@over_envs
def test_rendering_changes_neither_observation_nor_reward(env_id: str) -> None:
    seen, unseen = single(env_id, render_mode="rgb_array", **SIZE), single(env_id)
    all_seen, all_unseen = (
        gymnasium.make_vec(env_id, num_envs=2, **options) for options in ({"render_mode": "rgb_array", **SIZE}, {})
    )
    for env in (seen, unseen, all_seen, all_unseen):
        env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(4):
        seen.render()
        all_seen.render()
        actions = rng.uniform(-1, 1, all_seen.action_space.shape).astype(np.float32)
        for ours, theirs in (
            (seen.step(actions[0]), unseen.step(actions[0])),
            (all_seen.step(actions), all_unseen.step(actions)),
        ):
            for a, b in zip(ours[:4], theirs[:4], strict=True):
                np.testing.assert_array_equal(a, b)
    seen.close()
    all_seen.close()


@over_envs
def test_single_and_vector_environments_give_the_same_picture(env_id: str) -> None:
    tasks = sample_tasks(env_id, 2, seed=0)
    many = gymnasium.make_vec(env_id, num_envs=2, tasks=tasks, render_mode="rgb_array", **SIZE)
    many.reset(seed=0)
    rows = many.render()
    many.close()
    assert rows is not None
    for seed, (task, row) in enumerate(zip(tasks, rows, strict=True)):
        one = single(env_id, task=task, render_mode="rgb_array", **SIZE)
        one.reset(seed=seed)
        np.testing.assert_array_equal(one.render(), row)
        one.close()


@over_envs
def test_other_modes_show_the_same_scene(env_id: str) -> None:
    pictures: dict[str, Any] = {}
    for mode in ("rgb_array", "depth_array", "rgbd_tuple"):
        env = single(env_id, task=sample_tasks(env_id, 1, seed=0)[0], render_mode=mode, **SIZE)
        env.reset(seed=0)
        pictures[mode] = env.render()
        env.close()
    np.testing.assert_array_equal(pictures["rgbd_tuple"][0], pictures["rgb_array"])
    np.testing.assert_array_equal(pictures["rgbd_tuple"][1], pictures["depth_array"])
    assert pictures["rgb_array"].shape == (32, 48, 3)
    assert pictures["depth_array"].shape == (32, 48)


def test_pictures_larger_than_mujocos_default() -> None:
    env = gymnasium.make_vec("icrl/AntDir-v0", num_envs=1, render_mode="rgb_array", width=800, height=660)
    env.reset(seed=0)
    pictures = env.render()
    env.close()
    assert pictures is not None
    assert pictures[0].shape == (660, 800, 3)


@pytest.mark.parametrize("env_id", ["icrl/AntDir-v0", "icrl/HalfCheetahVel-v0"])
def test_the_camera_follows_a_robot_that_runs_away(env_id: str) -> None:
    env = single(env_id, render_mode="rgb_array", **SIZE)
    env.reset(seed=0)
    near = np.asarray(env.render()).astype(float)
    # Six periods of the chequered floor further on everything looks the same, if the camera went along.
    moved = env.data.qpos.copy()
    moved[0] += 8.0
    env.set_state(moved, env.data.qvel.copy())
    far = np.asarray(env.render()).astype(float)
    moved[0] += 2 / 3  # half a period: the floor changes colour, and so does the picture
    env.set_state(moved, env.data.qvel.copy())
    other = np.asarray(env.render()).astype(float)
    env.close()
    assert np.abs(far - near).mean() < 0.1 * np.abs(other - near).mean()


def markers_of(env_id: str, task: dict[str, Any], qvel: np.ndarray) -> dict[Any, Marker]:
    """What is drawn for a robot 5 m along x that moves with ``qvel [nv]``, by colour."""
    definition = env_definition(env_id)
    env = single(env_id)
    qpos = np.zeros((1, env.model.nq))
    qpos[0, 0] = 5.0
    xpos = np.zeros((1, env.model.nbody, 3))
    xpos[0, :, 0] = 5.0
    drawn = definition.task_markers(PhysicsState(qpos, qvel[None], xpos), 0, definition.task_vector(task))
    return {marker.rgba: marker for marker in drawn}


@settings(deadline=None, max_examples=20)
@given(target=st.floats(0.0, 6.28), heading=st.floats(0.0, 6.28), speed=st.floats(0.0, 4.0))
def test_ant_arrows_point_where_they_should(target: float, heading: float, speed: float) -> None:
    qvel = np.zeros(14)
    qvel[:2] = speed * math.cos(heading), speed * math.sin(heading)
    drawn = markers_of("icrl/AntDir-v0", {"direction": target}, qvel)
    assert (ACTUAL in drawn) == (np.hypot(*qvel[:2]) > 0.1)
    for color, angle in ((TARGET, target), (ACTUAL, heading)):
        if color in drawn:
            mat = drawn[color].mat.reshape(3, 3)
            np.testing.assert_allclose(mat @ [0, 0, 1], [math.cos(angle), math.sin(angle), 0], atol=1e-9)
            np.testing.assert_allclose(mat.T @ mat, np.eye(3), atol=1e-9)
            assert np.linalg.det(mat) == pytest.approx(1.0)
            assert np.hypot(*(drawn[color].pos[:2] - [5, 0])) == pytest.approx(0.3)


@pytest.mark.parametrize(("target", "speed"), [(2.0, 0.5), (0.0, -0.5), (3.0, 3.0)])
def test_cheetah_bars_are_as_long_as_the_speeds(target: float, speed: float) -> None:
    qvel = np.zeros(9)
    qvel[0] = speed
    drawn = markers_of("icrl/HalfCheetahVel-v0", {"velocity": target}, qvel)
    bars = [drawn[color] for color in (TARGET, ACTUAL)]
    zero = 5.0 - 0.9  # the gauge reaches 0.6 m for each of its 3 m/s, its middle over the torso
    for bar, value in zip(bars, (target, speed), strict=True):
        ends = sorted((zero, zero + 0.6 * value))
        np.testing.assert_allclose([bar.pos[0] - bar.size[0], bar.pos[0] + bar.size[0]], ends, atol=1e-9)


@over_envs
def test_videos_can_be_recorded(env_id: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    films: dict[str, list[np.ndarray]] = {}

    class Clip:  # in place of the encoder, which is not ours to test
        def __init__(self, frames: list[np.ndarray], fps: float) -> None:
            self.frames = list(frames)
            assert fps == env_definition(env_id).render_fps

        def write_videofile(self, path: str, logger: Any) -> None:
            films[Path(path).name] = self.frames

    for name in ("moviepy", "moviepy.video", "moviepy.video.io", "moviepy.video.io.ImageSequenceClip"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["moviepy.video.io.ImageSequenceClip"], "ImageSequenceClip", Clip, raising=False)
    env = gymnasium.make(env_id, render_mode="rgb_array", max_episode_steps=4, **SIZE)
    env = gymnasium.wrappers.RecordVideo(env, str(tmp_path / "films"), episode_trigger=lambda episode: episode == 0)
    env.reset(seed=0)
    for _ in range(4):
        env.step(env.action_space.sample())
    env.reset()
    env.close()
    ((_, film),) = films.items()
    assert [frame.shape for frame in film] == [(32, 48, 3)] * 5
    assert (film[0] != film[-1]).any()

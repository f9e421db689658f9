"""Films of episodes, side by side."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest

from icrl_agents import video
from icrl_agents.agent import InContextAgent
from icrl_agents.envs.reacher_goal import ReacherGoalDefinition
from icrl_agents.errors import InputError, MissingExtraError
from icrl_agents.video import record_learning

TASK = {"goal": [0.1, 0.05]}


@pytest.fixture(autouse=True)
def small_and_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "FRAME_SIZE", 48)
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.setenv(name, "")  # so that what the test leaves there is undone
        monkeypatch.delenv(name)


def test_two_of_three_episodes_side_by_side(make_agent: Callable[..., InContextAgent], tmp_path: Path) -> None:
    path = record_learning(make_agent(), TASK, tmp_path / "deeper/film.gif", episodes=3, shown=(1, 3))
    assert path == tmp_path / "deeper/film.gif"
    assert path.read_bytes().startswith(b"GIF8")
    frames = imageio.imread(path, index=None)
    assert frames.shape == (50, 48, 96, 3)  # a frame a step of the episode, two pictures wide
    left, right = frames[:, :, :48], frames[:, :, 48:]
    assert (left[0] != left[-1]).any()
    assert (left[-1] != right[-1]).any()
    meta: dict[str, Any] = imageio.immeta(path)
    assert (meta["duration"], meta["loop"]) == (40, 0)  # half speed: 50 steps are one simulated second


def test_the_episodes_asked_for_are_shown(
    make_agent: Callable[..., InContextAgent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    films: list[np.ndarray] = []
    monkeypatch.setattr(imageio, "imwrite", lambda path, frames, **options: films.append(np.stack(frames)))
    for shown in ((1, 2, 3), (1, 3)):
        record_learning(make_agent(), TASK, tmp_path / "film.gif", episodes=3, shown=shown)
    first, second, third = np.split(films[0], 3, axis=2)
    np.testing.assert_array_equal(films[1], np.concatenate([first, third], axis=2))
    assert (second != third).any()


def test_the_task_is_in_the_picture_and_the_film_is_the_same_again(
    make_agent: Callable[..., InContextAgent], tmp_path: Path
) -> None:
    films = [
        imageio.imread(record_learning(make_agent(), task, tmp_path / f"{n}.gif", episodes=1, shown=(1,)), index=None)
        for n, task in enumerate((TASK, TASK, {"goal": [-0.1, 0.05]}))
    ]
    np.testing.assert_array_equal(films[0], films[1])
    assert (films[0][0] != films[2][0]).any()


def test_a_shorter_episode_stays_on_its_last_picture(
    make_agent: Callable[..., InContextAgent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second episode ends after 5 steps."""
    steps = iter(range(1, 1000))

    def terminated(self: ReacherGoalDefinition, state: Any) -> np.ndarray:
        return np.array([next(steps) == 55])

    monkeypatch.setattr(ReacherGoalDefinition, "terminated", terminated)
    path = record_learning(make_agent(), TASK, tmp_path / "film.gif", episodes=2, shown=(1, 2))
    frames = imageio.imread(path, index=None)
    assert len(frames) == 50
    short = frames[:, :, 48:].astype(int)
    assert (short[0] != short[4]).any()
    assert np.abs(short[5:] - short[4]).mean() < 2  # but for the palette of a GIF


def test_nothing_to_show_is_refused(make_agent: Callable[..., InContextAgent], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="from 1 to 3 to show"):
        record_learning(make_agent(), TASK, tmp_path / "film.gif", episodes=3, shown=(4,))
    assert list(tmp_path.iterdir()) == []


def test_without_imageio_the_extra_is_named(
    make_agent: Callable[..., InContextAgent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imageio.v3", None)
    with pytest.raises(MissingExtraError, match=r"icrl-agents\[video\]"):
        record_learning(make_agent(), TASK, tmp_path / "film.gif", episodes=1)

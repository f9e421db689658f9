"""Figures are written and show something."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from icrl_agents.errors import InputError
from icrl_agents.evaluation import EvalResult
from icrl_agents.plots import plot_environments, plot_results

BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def invented(name: str = "first", tasks: int = 3, episodes: int = 6) -> EvalResult:
    """An agent that gets better."""
    rng = np.random.default_rng(len(name))
    returns = -20 / np.arange(1, episodes + 1) + rng.normal(size=(tasks, episodes))
    per_step = rng.uniform(-1, 0, (2, tasks, 50))
    return EvalResult(
        agent=name,
        env_id="icrl/ReacherGoal-v0",
        split="paper",
        split_hash="0123",
        subset="test",
        seeds=[0],
        tasks=[{"goal": [0.01 * task, 0.0]} for task in range(tasks)],
        returns=returns.tolist(),
        lengths=np.full((tasks, episodes), 50.0).tolist(),
        anchors={name: [level] * tasks for name, level in (("zero", -11.0), ("blind", -8.0), ("oracle", -3.0))},
        normalized=((returns + 8) / 5).tolist(),
        first_episode=per_step[0].tolist(),
        last_episode=per_step[1].tolist(),
    )


def pixels_of(path: Path, color: tuple[int, int, int]) -> tuple[int, int]:
    """How many there are in the left and in the right panel; the lines of a legend have about 200."""
    found = (np.round(imread(path)[..., :3] * 255) == color).all(-1)
    middle = int(found.shape[1] * 0.6)
    return int(found[:, :middle].sum()), int(found[:, middle:].sum())


def test_a_picture_of_two_agents(tmp_path: Path) -> None:
    path = plot_results([invented(), invented("second")], tmp_path / "deeper/figure.png")
    assert path == tmp_path / "deeper/figure.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    height, width, _ = imread(path).shape
    assert (width, height) == (1650, 630)
    for color in (BLUE, ORANGE):
        assert min(pixels_of(path, color)) > 1000


def test_the_second_colour_is_the_second_agents(tmp_path: Path) -> None:
    path = plot_results([invented()], tmp_path / "one.png")
    assert min(pixels_of(path, BLUE)) > 1000
    assert pixels_of(path, ORANGE) == (0, 0)


def test_more_agents_than_colours(tmp_path: Path) -> None:
    assert plot_results([invented(f"{n}", tasks=1) for n in range(7)], tmp_path / "many.png").stat().st_size > 10_000


@pytest.mark.parametrize(("tasks", "episodes"), [(1, 1), (1, 3), (2, 1)])
def test_the_smallest_results_have_a_picture_too(tmp_path: Path, tasks: int, episodes: int) -> None:
    path = plot_results([invented(tasks=tasks, episodes=episodes)], str(tmp_path / "figure.png"))
    assert min(pixels_of(path, BLUE)) > 100


def test_the_ending_gives_the_format(tmp_path: Path) -> None:
    path = plot_results([invented()], tmp_path / "figure.SVG")
    assert "<svg" in path.read_text()


@pytest.mark.parametrize("name", ["figure", "figure.exe"])
def test_no_format_of_pictures(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"\.png"):
        plot_results([invented()], tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [{"env_id": "icrl/AntDir-v0"}, {"split": "pearl"}, {"subset": "val"}, {"env_options": {"max_episode_steps": 9}}],
)
def test_what_has_no_common_axis_is_not_drawn(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="exactly one"):
        plot_results([invented(), replace(invented(), **change)], tmp_path / "figure.png")


def test_nothing_is_not_drawn(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exactly one"):
        plot_results([], tmp_path / "figure.png")


def test_several_environments_have_a_panel_each(tmp_path: Path) -> None:
    ours, other = invented(), replace(invented("other", episodes=7), env_id="icrl/AntDir-v0")
    path = plot_environments([ours, invented("second"), other], tmp_path / "all.png")
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize("change", [{"split": "macaw"}, {"subset": "val"}, {"env_options": {"max_episode_steps": 9}}])
def test_a_panel_shows_one_subset(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the same options, split and subset"):
        plot_environments([invented(), replace(invented(), **change)], tmp_path / "all.png")


def test_no_environments_are_no_figure(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        plot_environments([], tmp_path / "all.png")

"""The page: what it shows and what its controls do, without a browser and, as a soak test, in one."""

import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("viser")

from icrl_agents.agent import InContextAgent
from icrl_agents.cli import main
from icrl_agents.errors import MissingExtraError
from icrl_agents.watch.page import SPEEDS, WatchPage, reference_returns
from icrl_agents.watch.simulation import LiveSimulation, Simulation

HERE, THERE = {"goal": [0.1, 0.05]}, {"goal": [-0.12, 0.02]}


@pytest.fixture
def page(make_agent: Callable[..., InContextAgent]) -> Iterator[WatchPage]:
    """Of a simulation that nobody steps but the test."""
    simulation = Simulation(make_agent(), HERE, seed=0)
    with WatchPage(LiveSimulation(simulation), port=8431) as page:
        yield page
    simulation.close()


def steps(page: WatchPage, count: int) -> None:
    simulation = page._live.simulation
    for _ in range(count):
        simulation.step()
    page._live._latest = simulation.frame()
    page.refresh()


def gui(page: WatchPage, label: str) -> Any:
    handles = page._server.gui._gui_input_handle_from_uuid.values()
    return next(handle for handle in handles if getattr(handle, "label", None) == label)


def use(page: WatchPage, label: str, value: Any = True) -> None:
    """What a visitor does, as the server is told of it."""
    handle = gui(page, label)
    if value is not True:
        handle._impl.value = value
    for callback in handle._impl.update_cb:
        callback(type("Event", (), {"client_id": 0, "client": None, "target": handle}))


def test_the_page_is_served_with_its_own_script(page: WatchPage) -> None:
    with urllib.request.urlopen(page.url) as answer:
        assert b"<script" in answer.read()


def test_scene_and_curve_follow_the_simulation(page: WatchPage) -> None:
    steps(page, 120)
    frame = page._live.latest
    for geom, handle in page._scene._geoms.items():
        np.testing.assert_allclose(handle.position, frame.positions[geom], atol=1e-6)
    episode, totals, moved, blind, oracle = page._controls._plot.data
    assert episode.tolist() == [1, 2]
    assert totals.tolist() == [e.total for e in frame.episodes]
    assert np.isnan(moved).all()
    config = page._live.simulation.agent.config
    levels = reference_returns(config)
    assert reference_returns(replace(config, env_options={"max_episode_steps": 20})) == {}  # of 50 steps
    assert (set(blind), set(oracle)) == ({levels["blind"]}, {levels["oracle"]})
    low, high = page._controls._plot.scales["y"]["range"]
    assert low < min(totals) < levels["oracle"] < high
    assert page._controls._status.content.startswith("Episode 3, step 20: ")


def test_a_slider_moves_the_task_and_its_new_place_is_seen_before_it_holds(page: WatchPage) -> None:
    use(page, "goal x", -0.12)
    steps(page, 1)
    assert page._live.latest.next_task == {"goal": [-0.12, 0.05]}
    assert len(page._scene._ghosts) == 1
    assert "moves when the episode ends" in page._controls._status.content
    steps(page, 100)
    assert page._live.latest.task == {"goal": [-0.12, 0.05]}
    assert page._scene._ghosts == {}
    moved = page._controls._plot.data[2]
    assert np.isnan(moved).tolist() == [True, False]


def test_no_such_task_is_said_and_changes_nothing(page: WatchPage) -> None:
    use(page, "goal x", 0.19)
    use(page, "goal y", 0.19)
    assert "within 0.2 m" in page._controls._complaint.content
    steps(page, 50)
    assert page._live.latest.task == {"goal": [0.19, 0.05]}


def test_a_random_task_sets_the_sliders(page: WatchPage) -> None:
    use(page, "New random task")
    steps(page, 1)
    task = page._live.latest.next_task
    assert task is not None
    assert [gui(page, f"goal {axis}").value for axis in "xy"] == pytest.approx(task["goal"], abs=1e-3)
    assert page._live.simulation.frame().next_task == task  # setting the sliders wishes nothing


def test_buttons_of_the_agents_life(page: WatchPage) -> None:
    steps(page, 60)
    use(page, "End this episode now")
    steps(page, 1)
    assert (page._live.latest.steps, len(page._live.latest.episodes)) == (1, 1)
    use(page, "Forget everything")
    steps(page, 1)
    assert page._live.latest.episodes == ()
    assert page._controls._plot.data[0].tolist() == []
    for name, speed in SPEEDS.items():
        use(page, "Speed", name)
        assert page._live.speed == speed
    use(page, "Pause", 1)
    assert page._live.paused


def test_without_viser_the_extra_is_named(
    make_agent: Callable[..., InContextAgent], monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = Simulation(make_agent(), HERE)
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(MissingExtraError, match=r"icrl-agents\[watch\]"):
        WatchPage(LiveSimulation(simulation))
    simulation.close()


def test_the_command_serves_until_it_is_interrupted(
    make_agent: Callable[..., InContextAgent],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_agent().save_pretrained(tmp_path)
    visited: list[int] = []

    def refresh(self: WatchPage) -> None:
        with urllib.request.urlopen(self.url) as answer:
            visited.append(answer.status)
        raise KeyboardInterrupt

    monkeypatch.setattr(WatchPage, "refresh", refresh)
    main(["watch", str(tmp_path), "--port", "8433", "--no-open"])
    out = capsys.readouterr().out
    assert visited == [200]
    assert "tiny-mamba lives at http://127.0.0.1:843" in out
    assert out.splitlines()[-1] == "ended"
    assert not any(thread.name == "icrl-agents watch" for thread in threading.enumerate())


@pytest.mark.soak
def test_in_a_browser(browser: Any, tmp_path: Path) -> None:
    """The whole command, as a visitor meets it, until Ctrl-C. WATCH_SCREENSHOT keeps the picture."""
    command = [sys.executable, "-m", "icrl_agents.cli", "watch", "--port", "8435", "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            browser.go(process.stdout.readline().split("lives at ")[1].split(";")[0])
            episodes = "Object.values(window.__viserTestpoints?.uplots ?? {})[0]?.chart.data[1].length ?? 0"
            browser.wait(lambda: browser.evaluate(episodes) >= 3, "three episodes", 120)
            browser.click("New random task")
            says = "document.body.innerText.includes('moves when the episode')"
            browser.wait(lambda: browser.evaluate(says), "a task that waits")
            picture = browser.screenshot(Path(os.environ.get("WATCH_SCREENSHOT", tmp_path / "page.png")))
            assert picture.stat().st_size > 40_000
            browser.click("Forget everything")
            browser.wait(lambda: browser.evaluate(episodes) <= 2, "an empty curve")
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 0
            assert process.stdout.read().strip() == "ended"
        finally:
            process.kill()

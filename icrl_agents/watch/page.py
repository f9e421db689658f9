"""The page: the live simulation in 3-d, the return per episode beside it, and controls, by viser.

The page only looks: it takes the newest frame some thirty times a second and sends what changed. viser replaces what a
slow browser has not fetched yet, so neither the simulation nor this loop ever waits for one.
"""

import contextlib
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np

from icrl_agents.config import AgentConfig
from icrl_agents.envs import Task, load_anchors, short_name
from icrl_agents.envs.markers import Color, Marker
from icrl_agents.errors import MissingExtraError, TaskError, UnknownNameError
from icrl_agents.evaluation import acts_as_registered
from icrl_agents.watch.shapes import Mesh, geom_color, geom_mesh, quaternions, shape_mesh, visible_geoms
from icrl_agents.watch.simulation import Episode, Frame, LiveSimulation, NumberRange, task_ranges

if TYPE_CHECKING:
    import viser

REFRESH_SECONDS = 1 / 30
"""Between two looks at the simulation."""

SPEEDS: Mapping[str, float] = {"1/4": 0.25, "1": 1.0, "4": 4.0, "16": 16.0, "as fast as it can": math.inf}
"""What the page calls a speed -> simulated seconds a second."""

GHOST = 0.35
"""Opacity of what holds from the next episode on."""

_MOVED_COLOR, _RETURN_COLOR, _BLIND_COLOR, _ORACLE_COLOR = "#d55e00", "#0072b2", "#7a7a7a", "#009e73"
_HELP = """\
The agent does not see the **hidden task**. Move it: it holds from the next episode on, and the agent is not told. It
keeps what it remembers of the last one, and has to find out. *Forget everything* is how it began.

*Blind* is the best policy that sees neither task nor reward, *oracle* one that was told the task: mean returns over the
val tasks."""


def reference_returns(config: AgentConfig) -> dict[str, float]:
    """What blind and oracle return on average over the val tasks of an agent's split, where that was measured."""
    if not acts_as_registered(config):
        return {}
    try:
        measured = load_anchors(config.env_id, config.split).returns.get("val", {})
    except UnknownNameError:
        return {}
    return {name: float(np.mean(measured[name])) for name in ("blind", "oracle") if name in measured}


class WatchPage:
    """A web page that shows a live simulation and tells it what its visitors wish. Use it in ``with``.

    Args:
        live: the simulation.
        host: address to listen on; the default is seen by this machine alone.
        port: to listen on, or the next free one.

    Raises:
        MissingExtraError: viser is not installed.
    """

    def __init__(self, live: LiveSimulation, host: str = "127.0.0.1", port: int = 8080) -> None:
        try:
            import viser
        except ImportError as error:
            raise MissingExtraError("viser", "watch") from error
        self._live = live
        self._shown: Frame | None = None
        with contextlib.redirect_stdout(io.StringIO()):  # viser prints its own address, in a box
            self._server = viser.ViserServer(host=host, port=port, label="icrl-agents watch", verbose=False)
        self.url = f"http://{'localhost' if host == '0.0.0.0' else host}:{self._server.get_port()}"
        self._scene = _Scene(self._server, live)
        self._controls = _Controls(self._server, live)

    def refresh(self) -> None:
        """Send what has changed since the last time.

        Raises:
            BaseException: whatever ended the simulation.
        """
        frame = self._live.latest
        if frame is self._shown:
            return
        with self._server.atomic():
            self._scene.show(frame)
        self._controls.show(frame)
        self._shown = frame

    def serve(self, until: Callable[[], bool] = lambda: False) -> None:
        """Refresh until asked to stop, or interrupted."""
        while not until():
            self.refresh()
            time.sleep(REFRESH_SECONDS)

    def __enter__(self) -> "WatchPage":
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._server.stop()


class _Scene:
    """The geoms of the model and the markers of the task. Everything hangs on one frame, which moves against the body
    that the camera follows: so the robot stays in the middle, and every visitor turns a view of their own."""

    def __init__(self, server: "viser.ViserServer", live: LiveSimulation) -> None:
        self._scene, model = server.scene, live.simulation.model
        camera = live.simulation.definition.camera
        self._world = self._scene.add_frame("/world", show_axes=False)
        self._geoms: dict[int, Any] = {}
        self._ghosts: dict[int, Any] = {}
        self._markers: dict[str, tuple[tuple[Any, ...], Any]] = {}
        self._positions = np.full((model.ngeom, 3), np.nan)
        self._rotations = np.full((model.ngeom, 9), np.nan)
        self._model = model
        for geom in visible_geoms(model):
            name = f"/world/geom/{geom}"
            if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_PLANE:
                self._geoms[geom] = self._add_floor(name, geom, float(camera.get("distance", 3.0)))
            else:
                self._geoms[geom] = self._add(name, geom_mesh(model, geom), geom_color(model, geom))
        self._look(server, camera)
        self._scene.configure_environment_map(None)  # drawn in software, viser's own map outshines everything
        self._scene.configure_default_lights(cast_shadow=False)
        self._scene.add_light_hemisphere("/sky", intensity=2.0)

    def show(self, frame: Frame) -> None:
        """Move everything to where it is now."""
        self._world.position = (-frame.centre[0], -frame.centre[1], 0.0)
        moved = (frame.positions != self._positions).any(1) | (frame.rotations != self._rotations).any(1)
        turns = quaternions(frame.rotations)
        for geom, handle in self._geoms.items():
            if moved[geom]:
                handle.position, handle.wxyz = frame.positions[geom], turns[geom]
        self._positions, self._rotations = frame.positions, frame.rotations
        self._show_ghosts(frame, turns)
        self._show_markers("now", frame.markers, 1.0)
        self._show_markers("next", frame.next_markers, GHOST)

    def _show_ghosts(self, frame: Frame, turns: np.ndarray) -> None:
        for geom in set(self._ghosts) - set(frame.next_geoms):
            self._ghosts.pop(geom).remove()
        for geom, position in frame.next_geoms.items():
            if geom not in self._geoms:
                continue
            if geom not in self._ghosts:
                color = (*geom_color(self._model, geom)[:3], GHOST)
                self._ghosts[geom] = self._add(f"/world/next/{geom}", geom_mesh(self._model, geom), color)
            self._ghosts[geom].position, self._ghosts[geom].wxyz = position, turns[geom]

    def _show_markers(self, kind: str, markers: Sequence[Marker], opacity: float) -> None:
        wanted = {f"/world/{kind}/marker/{i}": marker for i, marker in enumerate(markers)}
        for name in [name for name in self._markers if name.startswith(f"/world/{kind}/") and name not in wanted]:
            self._markers.pop(name)[1].remove()
        for name, marker in wanted.items():
            look = (int(marker.type), *np.round(marker.size, 3).tolist(), *marker.rgba)
            if self._markers.get(name, ((), None))[0] != look:  # another size is another mesh
                rgba: Color = (*marker.rgba[:3], marker.rgba[3] * opacity)
                self._markers[name] = (look, self._add(name, shape_mesh(marker.type, marker.size), rgba))
            handle = self._markers[name][1]
            handle.position, handle.wxyz = marker.pos, quaternions(marker.mat[None])[0]

    def _add(self, name: str, mesh: Mesh, rgba: Color) -> Any:
        red, green, blue = (round(255 * part) for part in rgba[:3])
        return self._scene.add_mesh_simple(
            name,
            mesh.vertices,
            mesh.faces,
            color=(red, green, blue),
            opacity=None if rgba[3] >= 1 else rgba[3],
            flat_shading=not mesh.smooth,
        )

    def _add_floor(self, name: str, geom: int, distance: float) -> Any:
        """A plane as a grid with about ten lines in sight; one without an end gets one out of sight."""
        width, height = (2 * half if half > 0 else 40 * distance for half in self._model.geom_size[geom][:2].tolist())
        cell = 10.0 ** math.floor(math.log10(distance / 2))
        return self._scene.add_grid(
            name,
            width=width,
            height=height,
            cell_size=cell,
            section_size=5 * cell,
            section_color=(170, 170, 170),
            plane_color=(236, 238, 240),
            plane_opacity=1.0,
            fade_distance=15 * distance,
        )

    def _look(self, server: "viser.ViserServer", camera: Mapping[str, Any]) -> None:
        """Begin where MuJoCo's free camera would stand."""
        azimuth, elevation = (math.radians(camera.get(name, default)) for name, default in _DIRECTIONS)
        ahead = np.array([math.cos(azimuth), math.sin(azimuth), 0.0]) * math.cos(elevation)
        ahead[2] = math.sin(elevation)
        lookat = np.array(camera.get("lookat", np.zeros(3)), np.float64)
        if camera.get("trackbodyid", -1) > 0:
            lookat[:2] = 0.0
        view = server.initial_camera
        view.fov = math.radians(45.0)
        view.look_at, view.position = lookat, lookat - float(camera.get("distance", 3.0)) * ahead


_DIRECTIONS = (("azimuth", 90.0), ("elevation", -45.0))
"""MuJoCo's defaults, in degrees."""


class _Controls:
    """The panel: the curve, what happens now, the hidden task and how to go on."""

    def __init__(self, server: "viser.ViserServer", live: LiveSimulation) -> None:
        simulation = live.simulation
        config = simulation.agent.config
        gui: Any = server.gui
        self._live, self._simulation = live, simulation
        gui.configure_theme(control_width="large", show_logo=False, show_share_button=False)
        gui.main_panel.dock_right()
        self._references = reference_returns(config)
        self._drawn: tuple[int, tuple[Episode, ...]] = (0, ())
        gui.add_markdown(f"**{config.name}** in {short_name(config.env_id)}, its weights fixed")
        self._plot = gui.add_uplot(
            self._curve(()),
            (
                {"label": "episode"},
                {"label": "return", "stroke": _RETURN_COLOR, "width": 2, "points": {"show": True, "size": 5}},
                {"label": "the task moved", "stroke": _MOVED_COLOR, "width": 0, "points": {"show": True, "size": 11}},
                *(
                    {"label": name, "stroke": color, "dash": (6, 4), "width": 1.5, "points": {"show": False}}
                    for name, color in (("blind", _BLIND_COLOR), ("oracle", _ORACLE_COLOR))
                    if name in self._references
                ),
            ),
            scales=self._scales(()),
            axes=({"label": "episode"}, {"label": "return per episode"}),
            legend={"live": False},
            height=240,
            padding=(12, 24, 0, 0),
        )
        self._status = gui.add_markdown("")
        with gui.add_folder("Hidden task"):
            self._add_task(gui)
        with gui.add_folder("The agent's life"):
            self._add_life(gui)
        gui.add_markdown(_HELP)

    def show(self, frame: Frame) -> None:
        """Bring the curve and the words up to date."""
        drawn = (len(frame.episodes), frame.episodes[-1:])
        if self._drawn != drawn:
            self._drawn = drawn
            scales = self._scales(frame.episodes)
            if self._plot.scales != scales:
                self._plot.scales = scales
            self._plot.data = self._curve(frame.episodes)
        waiting = " The task moves when the episode ends." if frame.next_task is not None else ""
        text = f"Episode {len(frame.episodes) + 1}, step {frame.steps}: {frame.total:.2f} so far.{waiting}"
        if self._status.content != text:
            self._status.content = text

    def _add_task(self, gui: Any) -> None:
        task = self._live.latest.task
        self._sliders: dict[str, list[Any]] = {}
        for key, ranges in task_ranges(self._simulation.definition).items():
            numbers = np.atleast_1d(task[key]).tolist()
            names = [key] if len(ranges) == 1 else [f"{key} {axis}" for axis in _axes(len(ranges))]
            self._sliders[key] = [
                gui.add_slider(name, at.low, at.high, at.step, _within(number, at))
                for name, at, number in zip(names, ranges, numbers, strict=True)
            ]
        self._complaint = gui.add_markdown("")
        anywhere = gui.add_button("New random task")

        @anywhere.on_click
        def _(event: Any) -> None:
            self._put(self._simulation.move_anywhere())

        for slider in (slider for sliders in self._sliders.values() for slider in sliders):

            @slider.on_update
            def _(event: Any) -> None:
                if event.client_id is not None:  # a visitor's, not _put's
                    self._move()

    def _add_life(self, gui: Any) -> None:
        pause = gui.add_checkbox("Pause", self._live.paused)
        speed = gui.add_dropdown("Speed", tuple(SPEEDS), initial_value="1", hint="simulated seconds a second")
        end = gui.add_button("End this episode now", hint="the agent keeps what it learned; the curve skips it")
        forget = gui.add_button("Forget everything", color="red")

        @pause.on_update
        def _(event: Any) -> None:
            self._live.paused = pause.value

        @speed.on_update
        def _(event: Any) -> None:
            self._live.speed = SPEEDS[speed.value]

        @end.on_click
        def _(event: Any) -> None:
            self._simulation.end_episode()

        @forget.on_click
        def _(event: Any) -> None:
            self._simulation.forget()

    def _move(self) -> None:
        """Let the task be what the sliders say, or say why it cannot."""
        task = {
            key: sliders[0].value if len(sliders) == 1 else [slider.value for slider in sliders]
            for key, sliders in self._sliders.items()
        }
        try:
            self._simulation.move(task)
        except TaskError as error:
            self._complaint.content = f"*No such task: {error}.*"
        else:
            self._complaint.content = ""

    def _put(self, task: Task) -> None:
        """Set the sliders to a task that came from elsewhere."""
        self._complaint.content = ""
        for key, sliders in self._sliders.items():
            for slider, number in zip(sliders, np.atleast_1d(task[key]).tolist(), strict=True):
                slider.value = _within(number, NumberRange(slider.min, slider.max, slider.step))

    def _curve(self, episodes: Sequence[Episode]) -> tuple[np.ndarray, ...]:
        """The plot's columns: episode, return, return where the task moved, and the references."""
        totals = np.array([episode.total for episode in episodes], np.float64)
        moved = np.array([episode.moved for episode in episodes], bool)
        lines = [np.full(len(totals), level) for level in self._references.values()]
        return (np.arange(1.0, len(totals) + 1), totals, np.where(moved, totals, np.nan), *lines)

    def _scales(self, episodes: Sequence[Episode]) -> dict[str, Any]:
        """The plot's ranges: uPlot finds none of y where a NaN hides a point, and viser none of x that began with one
        point. They grow in steps, because each other range makes the plot anew."""
        levels = [*self._references.values(), *(episode.total for episode in episodes)] or [0.0]
        low, high = min(levels), max(levels)
        step = 10.0 ** math.floor(math.log10(max(high - low, 1.0)))
        return {
            "x": {"time": False, "range": (0, 10 * math.ceil(max(len(episodes), 1) / 10))},
            "y": {"range": (step * math.floor(low / step - 0.1), step * math.ceil(high / step + 0.1))},
        }


def _axes(n: int) -> Sequence[str]:
    return ("x", "y", "z")[:n] if n <= 3 else [str(i) for i in range(1, n + 1)]


def _within(number: float, at: NumberRange) -> float:
    """The number on the slider that is nearest."""
    return min(max(round(number, -math.floor(math.log10(at.step))), at.low), at.high)

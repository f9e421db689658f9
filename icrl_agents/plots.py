"""Figures a person understands at a glance."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from icrl_agents.atomic import require_writable
from icrl_agents.envs import short_name
from icrl_agents.errors import InputError
from icrl_agents.evaluation import EvalResult

_COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
)  # Okabe and Ito, safe for colour blindness


def plot_results(results: Sequence[EvalResult], path: str | Path) -> Path:
    """Draw agents on the same tasks: return per episode, and reward per step inside the first episode and the last.

    Args:
        results: of one environment and subset.
        path: of the picture; the ending gives the format.

    Raises:
        InputError: nothing to draw, results of several environments or subsets, or no format of pictures.
    """
    path = Path(path)
    if len({_circumstances(r) for r in results}) != 1:
        raise InputError("a figure shows results of exactly one environment with the same options, split and subset")
    first = results[0]
    figure = _figure(path, (11, 4.2))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _returns(left, results)
    for result, color in zip(results, _COLORS * len(results), strict=False):
        steps = np.arange(1, len(result.first_episode[0]) + 1)
        _band(right, steps, np.asarray(result.first_episode), color, None, None)
        right.plot(steps, np.mean(result.last_episode, 0), color=color, ls=":")
    for style, label in (("-", "episode 1"), (":", "last episode")):  # colours are those of the other panel
        right.plot([], [], color="#555555", ls=style, label=label)
    left.set_title(f"{short_name(first.env_id)}: {len(first.tasks)} unseen tasks, no weight update")
    right.set(xlabel="step", ylabel="reward per step")
    right.set_title("inside an episode")
    return _saved(figure, path)


def plot_environments(results: Sequence[EvalResult], path: str | Path) -> Path:
    """Draw the return per episode in several environments, a panel each, as the paper's Figure 1.

    Episodes are on a logarithmic axis, and what lies far below blind is out of the picture.

    Args:
        results: of any environments, in the order of the panels; each environment's of one split and subset.
        path: of the picture; the ending gives the format.

    Raises:
        InputError: nothing to draw, one environment's results of several subsets, or no format of pictures.
    """
    path = Path(path)
    of_envs = {
        env_id: [r for r in results if r.env_id == env_id] for env_id in dict.fromkeys(r.env_id for r in results)
    }
    if not results or any(len({_circumstances(r) for r in own}) != 1 for own in of_envs.values()):
        raise InputError("a figure shows results, of each environment those of the same options, split and subset")
    kinds = {r.agent: r.agent.removeprefix(f"{short_name(r.env_id)}-") for r in results}
    colors = dict(zip(dict.fromkeys(kinds.values()), _COLORS * len(results), strict=False))
    rows = (len(of_envs) + 1) // 2
    figure = _figure(path, (11, 3.6 * rows + 0.4))
    panels = figure.subplots(rows, 2, squeeze=False).reshape(-1)
    for panel, own in zip(panels, of_envs.values(), strict=False):
        for result in own:
            episodes = np.arange(1, len(result.returns[0]) + 1)
            kind = kinds[result.agent]
            _band(panel, episodes, np.asarray(result.returns), colors[kind], kind, None)
        _in_view(panel, own)
        panel.set_title(f"{short_name(own[0].env_id)}, {len(own[0].tasks)} unseen tasks")
    for panel in panels[len(of_envs) :]:
        figure.delaxes(panel)
    drawn: dict[str, Any] = {}
    for axes in figure.axes:
        drawn |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=len(drawn), fontsize=9, frameon=False)
    return _saved(figure, path, legends=False)


def _circumstances(result: EvalResult) -> tuple[str, ...]:
    """What results in one panel share."""
    return result.env_id, repr(dict(result.env_options)), result.split, result.subset


def _in_view(axes: Axes, results: Sequence[EvalResult]) -> None:
    """What lies between and about the anchors, which are named at their lines; first episodes have most of the room."""
    last = max(2, max(len(result.returns[0]) for result in results))
    axes.set_xscale("log")
    axes.set_xlim(1, last)
    ticks = [episode for episode in (1, 2, 3, 5, 10, 20, 40, 100, 300) if episode <= last]
    axes.set_xticks(ticks, [str(episode) for episode in ticks])
    axes.minorticks_off()
    axes.set(xlabel="episode of an unseen task", ylabel="return per episode")
    anchors = results[0].anchors
    levels = {name: float(np.mean(anchors[name])) for name in ("oracle", "blind") if name in anchors}
    for name, level in levels.items():
        axes.axhline(level, color="#555555", ls="--" if name == "oracle" else "-.", lw=1.2)
        white = {"facecolor": "white", "alpha": 0.7, "pad": 0.5, "edgecolor": "none"}
        axes.text(1.03, level, f"{name} {level:.4g}", va="bottom", fontsize=8, color="#333333", bbox=white)
    if levels:
        span = levels["oracle"] - levels["blind"]
        axes.set_ylim(levels["blind"] - 0.4 * span, levels["oracle"] + 0.4 * span)


def require_picture(path: str | Path) -> None:
    """Raise unless a picture can be saved there, before the work whose result it is to show.

    Raises:
        InputError: no format of pictures, or no place to write to.
    """
    path, formats = Path(path), Figure().canvas.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in formats:
        raise InputError(f"{path}: expected a name that ends in one of .{', .'.join(sorted(formats))}")
    require_writable(path)


def _figure(path: Path, size: tuple[float, float]) -> Figure:
    """An empty one that can be saved under the path."""
    require_picture(path)
    return Figure(figsize=size, layout="constrained", dpi=150)


def _saved(figure: Figure, path: Path, *, legends: bool = True) -> Path:
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if legends:
            axes.legend(fontsize=8, framealpha=0.9, edgecolor="none")
    figure.savefig(path)
    return path


def _returns(axes: Axes, results: Sequence[EvalResult]) -> None:
    """Return per episode of one environment's agents, and its anchors."""
    for result, color in zip(results, _COLORS * len(results), strict=False):
        episodes = np.arange(1, len(result.returns[0]) + 1)
        band = "95 % interval over tasks" if result is results[-1] else None
        _band(axes, episodes, np.asarray(result.returns), color, result.agent, band)
    for name, style, text in (
        ("oracle", "--", "oracle: was told the task"),
        ("blind", "-.", "blind: sees neither task nor reward"),
        ("zero", ":", "no action"),
    ):
        if name not in results[0].anchors:
            continue
        level = float(np.mean(results[0].anchors[name]))
        axes.axhline(level, color="#555555", ls=style, lw=1.2, label=f"{text} ({level:.1f})")
    axes.set(xlabel="episode of an unseen task", ylabel="return per episode")
    axes.set_xlim(1, max(2, max(len(result.returns[0]) for result in results)))


def _band(axes: Axes, x: np.ndarray, values: np.ndarray, color: str, label: str | None, band: str | None) -> None:
    """The mean over tasks ``[N, X]`` and its 95 % bootstrap band."""
    axes.plot(x, values.mean(0), color=color, lw=2, marker="o" if len(x) == 1 else None, label=label)
    if len(values) > 1:
        mean: Any = np.mean
        rng = np.random.default_rng(0)
        bounds = stats.bootstrap((values,), mean, axis=0, n_resamples=1_000, method="percentile", rng=rng)
        low, high = bounds.confidence_interval
        axes.fill_between(x, low, high, color=color, alpha=0.2, lw=0, label=band)

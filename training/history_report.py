"""What is in a dataset of learning histories: does every task get better, how steadily, and how much was seen."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from icrl_agents.envs import short_name
from icrl_agents.errors import DatasetError
from icrl_agents.plots import require_picture
from icrl_agents.training.histories import History, HistoryDataset, Manifest

ENDS = 0.1
"""The first and the last returns of a history are means over this part of its episodes at either end."""

CURVE_POINTS = 50
"""A learning curve is drawn as the means of so many equal parts of a history."""

_SAMPLED_STEPS = 2_000  # of each history, evenly spaced: what coverage is estimated from
_CELLS = 20  # along each of the two axes


@dataclass(frozen=True)
class TaskReport:
    """The histories of one task.

    Attributes:
        task: the task.
        episodes: whole episodes, over all its histories.
        first_return: mean return of their first episodes, see :data:`ENDS`.
        last_return: mean return of their last episodes.
        monotonicity: Spearman's rank correlation of return and episode number, mean over its histories; 1 if every
            episode is better than all before it, 0 if nothing is learned.
        coverage: part of the states that any history visits which these visit. States are cells of a 20 x 20 grid over
            the two directions in which the dataset's observations vary most.
        early_ends: part of the episodes that terminated.
        curve: ``[CURVE_POINTS]``, mean return in equal parts of its histories; NaN where there are fewer episodes.
    """

    task: dict
    episodes: int
    first_return: float
    last_return: float
    monotonicity: float
    coverage: float
    early_ends: float
    curve: np.ndarray


@dataclass(frozen=True)
class HistoryReport:
    """A dataset.

    Attributes:
        manifest: what it is.
        tasks: one report a task, in the manifest's order; tasks without a whole episode are left out.
    """

    manifest: Manifest
    tasks: tuple[TaskReport, ...]

    def overall(self) -> dict[str, float]:
        """Means over tasks of every number, and ``episodes``, their sum."""
        names = ("first_return", "last_return", "monotonicity", "coverage", "early_ends")
        means = {name: float(np.mean([getattr(task, name) for task in self.tasks])) for name in names}
        return {"episodes": sum(task.episodes for task in self.tasks), **means}


def report_histories(directory: str | Path, *, on_task: Callable[[int], None] | None = None) -> HistoryReport:
    """Read a dataset, or as much of it as is there, and say what is in it.

    Args:
        directory: of the dataset.
        on_task: called with the number of tasks read so far.

    Raises:
        DatasetError: no dataset, no whole episode, or damaged; every file is compared with its checksum.
    """
    dataset = HistoryDataset(directory, require_complete=False)
    dataset.verify()
    manifest = dataset.manifest
    cells = _Cells(dataset)
    reports, visited = [], []
    for k, task in enumerate(manifest.tasks):
        own = range(k * manifest.streams_per_task, (k + 1) * manifest.streams_per_task)
        histories = [history for h in own if len((history := dataset.history(h)).episode_ends)]
        if histories:
            visited.append(np.unique(np.concatenate([cells.of(_sampled(h.observations)) for h in histories])))
            reports.append((dict(task), histories_numbers(histories)))
        if on_task is not None:
            on_task(k + 1)
    if not reports:
        raise DatasetError(f"{directory} holds no whole episode yet")
    anyone = len(np.unique(np.concatenate(visited)))
    tasks = [
        TaskReport(task=task, coverage=len(own) / anyone, **numbers)
        for (task, numbers), own in zip(reports, visited, strict=True)
    ]
    return HistoryReport(manifest, tuple(tasks))


def histories_numbers(histories: list[History]) -> dict:
    """The fields of a :class:`TaskReport` that its own histories tell, each with an episode at least."""
    returns = [history.returns for history in histories]
    ends = [max(1, round(ENDS * len(own))) for own in returns]
    episodes = sum(map(len, returns))
    return {
        "episodes": episodes,
        "first_return": float(np.mean([own[:n].mean() for own, n in zip(returns, ends, strict=True)])),
        "last_return": float(np.mean([own[-n:].mean() for own, n in zip(returns, ends, strict=True)])),
        "monotonicity": float(np.mean([_monotonicity(own) for own in returns])),
        "early_ends": sum(int(history.terminated.sum()) for history in histories) / episodes,
        "curve": _curve(returns),
    }


def plot_histories(report: HistoryReport, path: str | Path) -> Path:
    """Draw the learning curve of every task, and the mean over tasks.

    Args:
        report: of the dataset.
        path: of the picture; the ending gives the format.

    Raises:
        InputError: no format of pictures, or no place to write to.
    """
    path, manifest = Path(path), report.manifest
    require_picture(path)
    figure = Figure(figsize=(11, 4.6), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    curves = np.array([task.curve for task in report.tasks])
    steps = (np.arange(CURVE_POINTS) + 0.5) / CURVE_POINTS * manifest.progress.steps
    order = np.argsort([task.last_return for task in report.tasks])
    for rank, k in enumerate(order):
        shade = 0.25 + 0.6 * rank / max(1, len(order) - 1)
        drawn = np.isfinite(curves[k])
        left.plot(steps[drawn], curves[k][drawn], color=(*(3 * (1 - shade,)), 0.55), lw=0.8)
    there = np.isfinite(curves).any(0)
    left.plot(steps[there], np.nanmean(curves[:, there], 0), color="#d55e00", lw=2.2, label="mean over tasks")
    left.plot([], [], color="#777777", lw=0.8, label=f"each of {len(report.tasks)} tasks; darker: better at its end")
    left.set(xlabel="step of the history", ylabel="return per episode", xlim=(0, manifest.progress.steps))
    left.set_title(f"{short_name(manifest.env_id)}: {manifest.source}, {manifest.streams_per_task} histories a task")
    left.legend(fontsize=8, framealpha=0.9, edgecolor="none", loc="lower right")
    right.axhline(0, color="#555555", ls=":", lw=1)
    right.scatter(
        [task.coverage for task in report.tasks], [task.monotonicity for task in report.tasks], s=18, color="#0072b2"
    )
    right.set(
        xlabel="coverage: share of the states visited in any task",
        ylabel="monotonicity: rank correlation of return and episode",
        xlim=(0, 1.02),
        ylim=(-1.05, 1.05),
    )
    right.text(0.01, 0.02, "nothing learned", fontsize=8, color="#555555")
    right.set_title("one point a task: how steadily it learns, how much it sees", fontsize=10)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return path


class _Cells:
    """The grid that coverage is counted on, laid over a sample of the whole dataset."""

    def __init__(self, dataset: HistoryDataset) -> None:
        few = max(1, len(dataset) // 100)  # a hundred histories show well enough how observations vary
        parts = [_sampled(dataset.history(h).observations) for h in range(0, len(dataset), few)]
        sample = np.concatenate(parts).astype(np.float64)
        if not len(sample):
            raise DatasetError("the dataset holds no whole episode yet")
        self._mean, std = sample.mean(0), sample.std(0)
        scaled = (sample - self._mean) / np.where(std > 0, std, 1)
        _, _, directions = np.linalg.svd(scaled.T @ scaled)
        self._axes = directions[:2].T / np.where(std > 0, std, 1)[:, None]  # [N_o, 1 or 2]
        low, high = np.percentile((sample - self._mean) @ self._axes, [1, 99], axis=0)
        self._low, self._width = low, np.where(high > low, high - low, 1)

    def of(self, observations: np.ndarray) -> np.ndarray:
        """Cell numbers ``[T]`` of observations ``[T, N_o]``; those beyond the grid are in its outermost cells."""
        at = ((observations - self._mean) @ self._axes - self._low) / self._width * _CELLS
        cells = np.clip(at, 0, _CELLS - 1).astype(np.int64)
        return cells @ _CELLS ** np.arange(cells.shape[1])


def _sampled(observations: np.ndarray) -> np.ndarray:
    return observations[:: max(1, len(observations) // _SAMPLED_STEPS)]


def _monotonicity(returns: np.ndarray) -> float:
    """Spearman's correlation of returns ``[E]`` with their order; 0 where nothing changes."""
    if len(returns) < 2 or np.ptp(returns) == 0:
        return 0.0
    return float(stats.spearmanr(np.arange(len(returns)), returns).statistic)


def _curve(returns: list[np.ndarray]) -> np.ndarray:
    """Mean return in ``CURVE_POINTS`` equal parts of histories with returns ``[E]`` each."""
    total, count = np.zeros(CURVE_POINTS), np.zeros(CURVE_POINTS)
    for own in returns:
        part = ((np.arange(len(own)) + 0.5) * CURVE_POINTS / len(own)).astype(np.int64)  # of an episode's middle
        total += np.bincount(part, own, CURVE_POINTS)
        count += np.bincount(part, minlength=CURVE_POINTS)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)

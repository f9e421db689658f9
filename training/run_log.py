"""What a training run tells while it runs: a progress bar, a JSONL file and TensorBoard, of the same numbers."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from icrl_agents.atomic import write_text_atomically
from icrl_agents.errors import MissingExtraError
from icrl_agents.training.lock import writing
from icrl_agents.training.validation import Validation

METRICS_FILE = "metrics.jsonl"
"""One JSON object a line, each with its ``update``."""


class RunLog:
    """Use it in ``with``.

    A run that is continued forgets what it had logged after the update it continues from.

    Args:
        directory: of the run; ``metrics.jsonl`` and ``tensorboard/`` are in it.
        updates: length of the whole run.
        done: updates already done; -1 where not even what comes before the first is.
        tensorboard: write TensorBoard files; None does where TensorBoard is installed.
        quiet: show no progress bar.

    Raises:
        MissingExtraError: TensorBoard is wanted and not installed.
        DatasetError: the disk is full.
    """

    def __init__(self, directory: Path, updates: int, done: int, *, tensorboard: bool | None, quiet: bool) -> None:
        self._directory = directory
        path = directory / METRICS_FILE
        with writing(directory):
            self._tensorboard = _summary_writer(directory / "tensorboard", done, tensorboard)
            kept = [line for line in _lines(path) if json.loads(line)["update"] <= done]
            write_text_atomically(path, "".join(kept))
            self._file = path.open("a", encoding="utf-8")
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            disable=quiet,
        )
        self._task = self._bar.add_task("training", total=updates, completed=max(0, done), note="")

    def update(self, update: int, metrics: Mapping[str, float], note: str) -> None:
        """Record one update's numbers, move the bar and show a note beside it."""
        self.record(update, metrics)
        self._bar.update(self._task, completed=update, note=note)

    def record(self, update: int, metrics: Mapping[str, Any]) -> None:
        """Record numbers, and lists of numbers, as they stand after an update."""
        with writing(self._directory):
            self._file.write(json.dumps({"update": update, **metrics}) + "\n")
            self._file.flush()
        if self._tensorboard is not None:
            for name, value in metrics.items():
                if isinstance(value, float):
                    self._tensorboard.add_scalar(name, value, update)

    def validation(self, update: int, found: Validation) -> None:
        """Record and show what a validation found."""
        metrics: dict[str, Any] = {"val_score": found.score}
        if found.loss is not None:
            metrics["val_loss"] = found.loss
        if found.returns is not None:
            metrics["val_returns"] = found.returns
        self.record(update, metrics)
        shown = {name: value for name, value in metrics.items() if isinstance(value, float)}
        self.say(f"update {update}: " + ", ".join(f"{name} {value:.4f}" for name, value in shown.items()))

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        if not self._bar.disable:
            self._bar.console.print(text, highlight=False)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        with writing(self._directory):  # closing writes what could not be written before, once more
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def _lines(path: Path) -> list[str]:
    """Whole lines of a log; a kill may have cut the last."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def _summary_writer(directory: Path, done: int, wanted: bool | None) -> Any:
    """What writes TensorBoard files, or None."""
    if wanted is False:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        if wanted is None:
            return None
        raise MissingExtraError("tensorboard", "train") from None
    return SummaryWriter(str(directory), purge_step=done + 1)

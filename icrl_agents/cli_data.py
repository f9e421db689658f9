"""Commands about datasets of learning histories: look at them, make more of them, exchange them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Column, Table
from tyro.conf import Positional

from icrl_agents.errors import ConfigError

console = Console(markup=False)  # what is printed has paths and names in it


@dataclass(frozen=True)
class Histories:
    """Check a dataset of learning histories, and print and plot what is in it."""

    directory: Positional[Path]
    """Folder of the dataset, also of a collection that is not complete."""
    plot: Path = Path("out/histories.png")
    """File for the picture: the learning curve of every task."""

    def run(self) -> None:
        """Verify, then show."""
        from icrl_agents.plots import require_picture
        from icrl_agents.training.history_report import ENDS, plot_histories, report_histories

        require_picture(self.plot)
        with console.status("comparing every file with its checksum") as status:
            report = report_histories(self.directory, on_task=lambda done: status.update(f"{done} tasks read"))
        manifest, progress, overall = report.manifest, report.manifest.progress, report.overall()
        headings = ("episodes", "first\nreturn", "last\nreturn", "mono-\ntonicity", "coverage", "early\nends")
        columns = [Column(heading, justify="right", no_wrap=True) for heading in headings]
        # Two numbers to tell a task by fit on a line of 80 characters.
        table = Table(Column("task", overflow="fold"), *columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        rows = [(_task(task.task), task.episodes, vars(task)) for task in report.tasks]
        mean = round(overall["episodes"] / len(rows))
        for task, episodes, numbers in [*rows, ("mean over tasks", mean, overall)]:
            table.add_row(
                task,
                f"{episodes:,}",
                f"{numbers['first_return']:.2f}",
                f"{numbers['last_return']:.2f}",
                f"{numbers['monotonicity']:.2f}",
                f"{numbers['coverage']:.0%}",
                f"{numbers['early_ends']:.1%}",
                style="bold" if numbers is overall else None,
            )
        console.print(table)
        console.print(
            f"first and last return: mean over the first and last {ENDS:.0%} of the episodes; monotonicity: rank "
            "correlation of return and episode number, 1 if every episode is better than those before, 0 if nothing is "
            "learned; coverage: share of the states visited in any task; early ends: episodes that terminated\n",
            style="dim",
            highlight=False,
        )
        state = "complete" if progress.complete else "not complete: the command that collects it continues it"
        console.print(
            f"{manifest.env_id}, {manifest.subset} of split {manifest.split}, {manifest.source}, seed {manifest.seed}\n"
            f"{manifest.histories} histories of {progress.steps:,} steps, {manifest.streams_per_task} a task; "
            f"{int(overall['episodes']):,} episodes; {len(progress.snapshots)} policy snapshots; {state}\n"
            f"{len(progress.files)} files, {sum(file.size for file in progress.files) / 1e6:,.1f} MB, all as written",
            highlight=False,
        )
        console.print(f"picture: {plot_histories(report, self.plot)}", soft_wrap=True)


@dataclass(frozen=True)
class Regenerate:
    """Make learning histories from the policy snapshots of a dataset: other streams, noise or tasks, in minutes.

    An interrupted regeneration goes on with the same command.
    """

    data: Positional[Path]
    """Folder of the dataset whose snapshots act."""
    out: Path
    """Folder of the new dataset."""
    policy: Literal["learning", "final"] = "learning"
    """All snapshots in order, as the source learned; or the final one throughout."""
    noise: Literal["source", "annealed", "none"] = "source"
    """As wide as the source's own; random actions that fade out over the history (AD-eps); or none."""
    noise_scale: float = 1.0
    """Times the source's own width; or the part of annealed noise at the start."""
    annealed_until: float = 1.0
    """Part of the history after which annealed noise is 0."""
    wrong_experts: float = 0.0
    """Probability of acting as the policy of another task, redrawn every so many steps."""
    wrong_expert_steps: int = 50
    """Steps that a wrong expert acts for."""
    steps: int | None = None
    """Steps of each history; default: as many as the dataset's."""
    streams: int | None = None
    """Histories of each task; default: as many as the dataset's."""
    subset: str | None = None
    """Tasks of another part of the split (train, val, test, or several joined by +); needs a source that is told the
    task."""
    sampled_tasks: int = 0
    """So many new tasks from the environment's distribution instead; needs a source that is told the task."""
    seed: int = 0
    """Of everything."""

    def run(self) -> None:
        """Make them, then say what was made."""
        from icrl_agents.training.regeneration import RegenerationConfig, regenerate

        options = {name: value for name, value in vars(self).items() if name not in ("data", "out")}
        made = regenerate(self.data, self.out, RegenerationConfig(**options))
        returns = made.manifest.progress.final_returns
        console.print(
            f"{self.out}: {len(made)} histories of {made.manifest.progress.steps} steps, {len(made.manifest.tasks)} "
            f"tasks; final source policies return {sum(returns) / len(returns):.2f}"
        )


@dataclass(frozen=True)
class ExportMinari:
    """Write a dataset as a Minari dataset, where Minari keeps its own."""

    directory: Positional[Path]
    """Folder of the dataset."""
    dataset_id: Positional[str]
    """Minari's name for it, e.g. icrl/reacher-goal/ppo-v0."""

    def run(self) -> None:
        """Export and say where it is."""
        from icrl_agents.training.minari_exchange import export_minari

        with console.status("exporting") as status:
            path = export_minari(
                self.directory, self.dataset_id, on_history=lambda done: status.update(f"{done} histories exported")
            )
        console.print(f"{self.dataset_id}: {path}", soft_wrap=True)


@dataclass(frozen=True)
class ImportMinari:
    """Make a dataset of learning histories from a Minari dataset on this machine."""

    dataset: Positional[str]
    """Minari id, or folder."""
    out: Path
    """Folder of the new dataset."""
    env: str | None = None
    """Environment, where the Minari dataset does not tell or another id is meant."""
    task: str | None = None
    """Task of all its episodes as JSON, e.g. '{"velocity": 2.0}'; default: what its episodes tell."""

    def run(self) -> None:
        """Import and say what came."""
        from icrl_agents.training.minari_exchange import import_minari

        made = import_minari(self.dataset, self.out, env_id=self.env, task=self._given_task())
        manifest = made.manifest
        console.print(f"{self.out}: {len(made)} histories of up to {manifest.progress.steps} steps", soft_wrap=True)

    def _given_task(self) -> dict | None:
        if self.task is None:
            return None
        try:
            task = json.loads(self.task)
        except ValueError as error:
            raise ConfigError(f"--task is JSON, e.g. '{{\"velocity\": 2.0}}', got {self.task!r}: {error}") from None
        if not isinstance(task, dict):
            raise ConfigError(f"--task is a JSON object, e.g. '{{\"velocity\": 2.0}}', got {self.task!r}")
        return task


@dataclass(frozen=True)
class PushData:
    """Publish a dataset on the Hugging Face Hub, as a dataset repository."""

    directory: Positional[Path]
    """Folder of the dataset."""
    repo_id: Positional[str]
    """Where to: org/name."""
    private: bool = False
    """Only for those that may see it; a public one is refused. Default: as its owner has new ones set."""

    def run(self) -> None:
        """Push and print the address."""
        from icrl_agents.training.dataset_hub import push_dataset

        console.print(push_dataset(self.directory, self.repo_id, private=self.private), soft_wrap=True)


@dataclass(frozen=True)
class PullData:
    """Fetch a dataset from the Hugging Face Hub and verify it.

    An interrupted download goes on with the same command.
    """

    repo_id: Positional[str]
    """Where from: org/name."""
    out: Path
    """Folder of the dataset."""
    revision: str | None = None
    """Branch, tag or commit; default: main."""

    def run(self) -> None:
        """Pull and say what came."""
        from icrl_agents.training.dataset_hub import pull_dataset

        pulled = pull_dataset(self.repo_id, self.out, revision=self.revision)
        console.print(
            f"{self.out}: {len(pulled)} histories of {pulled.manifest.progress.steps} steps, "
            f"{pulled.manifest.env_id}, all as uploaded",
            soft_wrap=True,
        )


DATA_COMMANDS = (Histories, Regenerate, ExportMinari, ImportMinari, PushData, PullData)


def _task(task: dict) -> str:
    """A task as short text: ``goal 0.12 -0.05``."""
    parts = []
    for key, value in task.items():
        numbers = value if isinstance(value, list) else [value]
        parts.append(f"{key} " + " ".join(f"{n:.3g}" if isinstance(n, float) else str(n) for n in numbers))
    return ", ".join(parts)

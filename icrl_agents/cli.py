"""The command line: every command is a frozen dataclass, documented by its fields.

Training is imported by the commands that need it, so that running an agent needs none of its packages.
"""

import io
import os
import re
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from tyro.conf import Positional

from icrl_agents.cli_data import DATA_COMMANDS, PullData, Regenerate
from icrl_agents.cli_training import Anchors, Collect, Finetune, ImportMamba, Presets, Reproduce, Train
from icrl_agents.cli_watch import Watch
from icrl_agents.envs.own_modules import VARIABLE
from icrl_agents.errors import IcrlError, InputError, UnknownNameError
from icrl_agents.idle_threads import let_idle_threads_sleep

if TYPE_CHECKING:
    from collections.abc import Mapping

    from icrl_agents.agent import InContextAgent
    from icrl_agents.evaluation import EvalResult

console = Console(markup=False)  # what is printed has paths and names in it


@dataclass(frozen=True)
class Demo:
    """A bundled agent learns tasks it has never seen; the curve is printed and plotted."""

    env: Positional[str | None] = None
    """Environment; default: the agent's, or reacher-goal."""
    agent: str | None = None
    """Agent name, directory or Hub id; default: the environment's bundled Mamba agent."""
    tasks: int = 10
    """Unseen tasks."""
    episodes: int = 40
    """Episodes of each task."""
    seed: int = 0
    """Of initial states."""
    out: Path = Path("out")
    """Folder for the picture."""
    video: bool = False
    """Also write a GIF: the first, fifth and last episode on one task side by side."""

    def run(self) -> None:
        """Evaluate on val tasks, which nothing reported rests on, and show what happened."""
        from icrl_agents.agent import InContextAgent
        from icrl_agents.envs import resolve_env_id
        from icrl_agents.evaluation import evaluate
        from icrl_agents.plots import plot_results, require_picture
        from icrl_agents.video import record_learning, require_film

        agent = InContextAgent.from_pretrained(self.agent or _bundled_mamba(self.env or "reacher-goal"))
        if self.env is not None and resolve_env_id(self.env) != agent.config.env_id:
            raise InputError(f"{self.agent} is an agent for {agent.config.env_id}, not for {self.env}")
        picture, film = (self.out / f"{agent.config.name}.{ending}" for ending in ("png", "gif"))
        require_picture(picture)
        if self.video:
            require_film(film)
        console.print(f"{agent.config.name} meets tasks it has never seen. Its weights stay as they are.")
        with console.status("episode 1") as status:

            def show(episode: int, mean: float) -> None:
                status.update(f"episode {episode} of {self.episodes}: mean return {mean:.2f}")

            result = evaluate(
                agent,
                subset="val",
                tasks=self.tasks,
                episodes=self.episodes,
                seeds=(self.seed,),
                controls=False,
                on_episode=show,
            )
        _print_curve(result)
        console.print(f"picture: {plot_results([result], picture)}", soft_wrap=True)
        if self.video:
            shown = sorted({1, min(5, self.episodes), self.episodes})
            record_learning(agent, result.tasks[0], film, self.seed, self.episodes, shown)
            console.print(f"video: {film}", soft_wrap=True)


@dataclass(frozen=True)
class List:
    """The bundled agents, environments, backbones and kernels."""

    kernels: bool = False
    """Only the kernels: which are in use here, and why the others are not."""

    def run(self) -> None:
        """Print them."""
        if self.kernels:
            _print_kernels()
            return
        from icrl_agents.backbones import backbone_names
        from icrl_agents.envs import env_ids, short_name
        from icrl_agents.hub import bundled_agents
        from icrl_agents.kernels import available_kernels

        titles = ("agent", "backbone", "params", "normalized (mean of ratios)")
        table = Table(*(Column(title, no_wrap=True) for title in titles))  # names are to be copied
        for agent in bundled_agents():
            where = agent.env_id if agent.backbone == "-" else agent.backbone  # "on the Hub: ..."
            table.add_row(agent.name, where, agent.parameters, agent.final_normalized)
        console.print(table)
        console.print("environments: " + ", ".join(f"{short_name(env_id)} ({env_id})" for env_id in env_ids()))
        console.print("backbones: " + ", ".join(backbone_names()))
        console.print("kernels: " + ", ".join(available_kernels()))


@dataclass(frozen=True)
class Evaluate:
    """Evaluate an agent on unseen tasks: returns, anchors, controls, intervals. Published returns: --seed 0 1 2."""

    agent: Positional[str]
    """Bundled name, directory, or Hub id."""
    split: str | None = None
    """Named task split; default: the agent's own."""
    subset: Literal["val", "test"] = "test"
    """Report on test, select on val."""
    tasks: int = 30
    """The first so many tasks of the subset."""
    episodes: int = 40
    """Episodes of each task."""
    seed: Annotated[tuple[int, ...], tyro.conf.arg(name="seed")] = (0,)
    """Evaluation seeds; returns are averaged over them task by task."""
    controls: bool = True
    """Also run swapped rewards and forgetting at every episode, with the first seed."""
    json: Path | None = None
    """File for the whole result."""
    plot: Path | None = None
    """File for the picture."""

    def run(self) -> None:
        """Evaluate and show."""
        from icrl_agents.agent import InContextAgent
        from icrl_agents.atomic import require_writable
        from icrl_agents.evaluation import evaluate
        from icrl_agents.plots import plot_results, require_picture

        if self.json is not None:
            require_writable(self.json)
        if self.plot is not None:
            require_picture(self.plot)
        agent = InContextAgent.from_pretrained(self.agent)
        result = evaluate(
            agent,
            split=self.split,
            subset=self.subset,
            tasks=self.tasks,
            episodes=self.episodes,
            seeds=self.seed,
            controls=self.controls,
        )
        _print_curve(result)
        _print_summary(result)
        if self.json is not None:
            result.save(self.json)
            console.print(f"result: {self.json}", soft_wrap=True)
        if self.plot is not None:
            console.print(f"picture: {plot_results([result], self.plot)}", soft_wrap=True)


@dataclass(frozen=True)
class Compare:
    """Compare agents on the same tasks: a table, a paired difference and a figure.

    Where results are among them, what is not given is as in the first result.
    """

    agents: Positional[tuple[str, ...]]
    """Agents (name, directory, Hub id) or results (JSON of evaluate)."""
    split: str | None = None
    """Named task split; default: the first agent's."""
    subset: Literal["val", "test"] | None = None
    """Part of the split; default: test."""
    tasks: int | None = None
    """The first so many tasks; default: 30."""
    episodes: int | None = None
    """Episodes of each task; default: 40."""
    seed: Annotated[tuple[int, ...] | None, tyro.conf.arg(name="seed")] = None
    """Evaluation seeds; default: 0."""
    out: Path = Path("out/compare.png")
    """File for the figure."""

    def run(self) -> None:
        """Evaluate what is not a result yet, and show all beside each other."""
        from icrl_agents.agent import InContextAgent
        from icrl_agents.evaluation import EvalResult, evaluate, paired_difference
        from icrl_agents.model_card import final_of, quoted
        from icrl_agents.plots import plot_results, require_picture

        if not self.agents:
            raise InputError("name at least one agent or result to compare")
        require_picture(self.out)
        loaded: dict[str, EvalResult | InContextAgent] = {
            name: EvalResult.load(name) if name.endswith(".json") else InContextAgent.from_pretrained(name)
            for name in self.agents
        }
        protocol = self._protocol(loaded)
        results = []
        for name, given in loaded.items():
            if isinstance(given, EvalResult):
                results.append(given)
                continue
            with console.status(Text(f"evaluating {name}")):
                results.append(evaluate(given, **protocol, controls=False))
        normalized = "normalized" if results[0].anchors else "return"
        table = Table(
            Column("agent", overflow="fold"),
            *("episode 1", "last 5 episodes", normalized, "IQM"),
            Column(f"minus {results[0].agent}, by task", overflow="fold"),
        )
        for result in results:
            final = final_of(result.summary)
            difference = "" if result is results[0] else quoted(paired_difference(result, results[0]))
            table.add_row(
                result.agent,
                quoted(result.summary["first_return"]),
                quoted(result.summary["final_return"]),
                quoted(final),
                f"{final['iqm']:.2f}",
                difference,
            )
        console.print(table)
        console.print(f"picture: {plot_results(results, self.out)}", soft_wrap=True)

    def _protocol(self, loaded: "Mapping[str, EvalResult | InContextAgent]") -> dict[str, Any]:
        """Of the whole comparison, as arguments of ``evaluate``; an error where a result or agent does not fit it."""
        from icrl_agents.envs import task_split
        from icrl_agents.evaluation import EvalResult, split_for

        stored = {name: _protocol_of(given) for name, given in loaded.items() if isinstance(given, EvalResult)}
        first = next(iter(loaded.values()))
        of = {name: given if isinstance(given, EvalResult) else given.config for name, given in loaded.items()}
        places = {name: (at.env_id, dict(at.env_options)) for name, at in of.items()}
        place = places[self.agents[0]]
        for name, other in places.items():
            if other != place:
                raise InputError(f"{name} is of {_place(*other)}, {self.agents[0]} of {_place(*place)}: compare in one")
        default: dict[str, Any] = {"subset": "test", "tasks": 30, "episodes": 40, "seeds": (0,)}
        if not isinstance(first, EvalResult):
            default["split"] = split_for(first)
        default |= next(iter(stored.values()), {})
        asked = {
            "split": self.split,
            "subset": self.subset,
            "tasks": self.tasks,
            "episodes": self.episodes,
            "seeds": self.seed,
        }
        protocol = default | {key: value for key, value in asked.items() if value is not None}
        if len(stored) < len(loaded):
            there = len(task_split(place[0], protocol["split"]).subset(protocol["subset"]))
            protocol["tasks"] = min(protocol["tasks"], there)
        for name, own in stored.items():
            for key in own:
                if key != "seeds" and own[key] != protocol[key]:
                    raise InputError(f"{name} has {key} {own[key]!r}, the comparison {protocol[key]!r}")
            if own["seeds"] != protocol["seeds"]:
                console.print(f"{name} was measured with seeds {own['seeds']}, others with {protocol['seeds']}")
        return protocol


@dataclass(frozen=True)
class Push:
    """Publish a checkpoint on the Hugging Face Hub."""

    directory: Positional[Path]
    """A checkpoint."""
    repo_id: Positional[str]
    """Where to: org/name."""
    private: bool = False
    """Only for those that may see it; a public one is refused. Default: as its owner has new ones set."""

    def run(self) -> None:
        """Push and print the address."""
        from icrl_agents.publishing import push_to_hub

        console.print(push_to_hub(self.directory, self.repo_id, private=self.private))


@dataclass(frozen=True)
class Publish:
    """Publish the bundled agents on the Hugging Face Hub, each as ORG/NAME.

    The token is that of hf auth login or HF_TOKEN. Repositories that hold the same files are left alone, so the same
    command goes on where it was interrupted. Those that hold others are named, and changed only with --update.
    """

    org: Positional[str]
    """User or organisation."""
    private: bool = False
    """Only for those that may see them; a public one is refused. Default: as their owner has new ones set."""
    only: tuple[str, ...] = ()
    """Names of agents; default: all."""
    update: bool = False
    """Replace what differs."""
    dry_run: bool = False
    """Say what would be done, and do nothing."""

    def run(self) -> None:
        """Publish one after the other; each is told as soon as it is done."""
        from icrl_agents.publishing import publish_bundled

        differing = 0
        for done in publish_bundled(
            self.org, names=self.only, private=self.private, update=self.update, dry_run=self.dry_run
        ):
            at = f" at {done.revision}" if done.revision else ""
            files = f" ({', '.join(done.files)})" if done.files else ""
            console.print(f"{done.repo_id}: {done.outcome}{at}{files}", soft_wrap=True, highlight=False)
            differing += done.outcome == "differs"
        if differing:
            console.print(f"{differing} left as they are; --update replaces them")


COMMANDS = (
    Demo,
    Watch,
    List,
    Collect,
    Train,
    Finetune,
    Evaluate,
    Compare,
    Anchors,
    Reproduce,
    Presets,
    ImportMamba,
    Push,
    Publish,
    *DATA_COMMANDS,
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``icrl-agents``."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # progress reaches a log file at once
    let_idle_threads_sleep()
    if (sys.argv[1:] if arguments is None else arguments) == ["--version"]:
        packages = ("icrl-agents", "torch", "mujoco", "gymnasium", "numpy", "numba")
        print(", ".join(f"{name} {version(name)}" for name in packages))
        return
    if os.environ.get(VARIABLE):
        sys.path.insert(0, os.getcwd())  # as python -m has it: own modules mostly lie where one works
    chosen: Any = tyro.extras.subcommand_cli_from_dict(
        {_command_name(command): command for command in COMMANDS},
        prog="icrl-agents",
        description=(
            "Agents that learn a new task from interaction alone, with no weight update. Environments and backbones of "
            "your own: ICRL_IMPORT=MODULE names what registers them. --version says what runs here."
        ),
        args=arguments,
    )
    try:
        chosen.run()
    except IcrlError as error:
        errors = Console(stderr=True)
        errors.print("error:", style="bold red", end=" ")
        errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        resumes = isinstance(chosen, Collect | Train | Finetune | Anchors | Reproduce | Regenerate | PullData | Publish)
        if isinstance(chosen, Collect) and chosen.begins_again:
            resumes = False
        Console(stderr=True).print(f"interrupted{'; the same command goes on where it stopped' if resumes else ''}")
        sys.exit(130)


def _command_name(command: type) -> str:
    """``"push-data"`` for ``PushData``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", command.__name__).lower()


def _bundled_mamba(env: str) -> str:
    """The Mamba that comes with the package for an environment."""
    from icrl_agents.envs import resolve_env_id, short_name
    from icrl_agents.hub import agent_names

    name = f"{short_name(resolve_env_id(env))}-mamba"
    if name not in agent_names():
        advice = "Name an agent of yours: --agent, e.g. runs/..."
        raise UnknownNameError(f"bundled agent for {env}", name, agent_names(), advice)
    return name


def _place(env_id: str, options: "Mapping[str, Any]") -> str:
    """An environment, and what it is made with, in words."""
    return f"{env_id} with {dict(options)}" if options else env_id


def _protocol_of(result: "EvalResult") -> dict[str, Any]:
    """How a stored result was measured, as arguments of ``evaluate``."""
    return {
        "split": result.split,
        "subset": result.subset,
        "tasks": len(result.tasks),
        "episodes": len(result.returns[0]),
        "seeds": tuple(result.seeds),
    }


def _print_kernels() -> None:
    from icrl_agents.kernels import kernel_status

    table = Table("kernel", "state", "what it runs, or why not")
    for row in kernel_status():
        table.add_row(row.name, row.state, row.detail, style=None if row.state == "in use" else "dim")
    console.print(table)


def _print_curve(result: "EvalResult") -> None:
    import numpy as np

    title = f"{result.agent}: mean over {len(result.tasks)} unseen tasks"
    columns = {"return": np.mean(result.returns, 0)}
    if result.anchors:
        columns["normalized"] = np.mean(result.normalized, 0)
    table = Table("episode", *columns, title=title)
    episodes = len(result.returns[0])
    for episode in sorted({1, 2, 3, 5, 10, 20, 30, episodes} & set(range(1, episodes + 1))):
        table.add_row(str(episode), *(f"{values[episode - 1]:.2f}" for values in columns.values()))
    for name, meaning in (("random", ""), ("zero", ""), ("blind", "0"), ("oracle", "1")):
        if name in result.anchors:
            table.add_row(name, f"{np.mean(result.anchors[name]):.2f}", meaning, style="dim")
    console.print(table)
    if not result.anchors:
        place = _place(result.env_id, result.env_options)
        console.print(f"split {result.split!r} of {place} has no anchors, or not all of them, to normalize by")


def _print_summary(result: "EvalResult") -> None:
    from icrl_agents.model_card import final_of, quoted

    for name, value in result.summary.items():
        console.print(f"{name}: {quoted(value) if isinstance(value, dict) else value}")
    reset = result.controls.get("reset_each_episode")
    if reset:
        console.print(f"control, forgetting at every episode: {quoted(final_of(reset))}")
    swapped = result.controls.get("swapped_rewards")
    if swapped:
        console.print(
            f"control, rewards of another task: nearer to the rewarded task in {swapped['nearer_to_rewarded']:.0%}, "
            f"error {quoted(swapped['error_to_rewarded'])} against {quoted(swapped['error_to_own'])}"
        )


if __name__ == "__main__":
    main()

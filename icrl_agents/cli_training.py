"""Commands that make agents: collect histories, train on them, measure anchors, or all of it one after the other."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from icrl_agents.config import Head
from icrl_agents.errors import ConfigError

Preset = Literal["laptop", "paper"]
Method = Literal["ad", "on-policy"]
Source = Literal[
    "task-parallel",
    "task-parallel-ppo",
    "task-parallel-sac",
    "task-parallel-droq",
    "task-informed",
    "task-informed-privileged",
    "task-informed-sac",
    "planned",
    "sb3-ppo",
    "sb3-sac",
    "sb3-droq",
    "sb3-tqc",
    "sb3-crossq",
]
console = Console(markup=False)  # what is printed has paths and names in it


@dataclass(frozen=True)
class Collect:
    """Collect learning histories: source algorithms learn the training tasks and every step is recorded.

    An interrupted collection goes on with the same command; one of an sb3 source without --jobs has to begin again, in
    another folder.
    """

    env: Positional[str]
    """Environment, e.g. reacher-goal."""
    preset: Preset = "laptop"
    """Source algorithm and amount of data; task-informed and planned sources have one setting for both."""
    out: Path | None = None
    """Folder of the dataset; default: data/ENV/SOURCE."""
    source: Source = "task-parallel"
    """A learner a task, all in one program (task-parallel: PPO, or with preset paper the paper's choice); one learner
    that sees the task (task-informed: PPO), or also what the task does not say (task-informed-privileged, in
    pusher-goal); a policy that sees the task and does what was planned (planned, in reacher-goal); or stable-baselines3
    and sb3-contrib, one run a task."""
    task: int | None = None
    """The one task that an sb3 source learns, by its place in the subset; default: the first."""
    jobs: int | None = None
    """Let an sb3 source learn all tasks instead, so many at a time, each in a process, into one dataset."""
    device: str = "cpu"
    """Where task-parallel and task-informed SAC and DroQ learn, e.g. cuda."""
    steps_per_task: int | None = None
    """Environment steps per task, of a task-informed source those of the learner of all tasks, before any specialises;
    default: the preset's."""
    specialise_steps_per_task: int | None = None
    """Steps that follow, in which a task-informed PPO has become one learner a task; default: the preset's."""
    consolidate: int | None = None
    """Rounds at the end in which the specialised policies become one again, which is told the task and keeps what they
    share; default: none."""
    symmetric: bool | None = None
    """Whether a task-informed PPO sees and acts through the symmetry of its tasks, where the environment knows one, as
    in ant-dir; default: the preset's."""
    split: str | None = None
    """Named task split; default: paper, or the first of an environment of your own."""
    subset: str | None = None
    """Part of the split: train, val, test, sampled:N for N more, or several joined by +; default: the preset's."""
    seed: int = 0
    """Of everything."""
    engine: Literal["local", "ray"] = "local"
    """This process, or a Ray cluster; either goes on with what the other began."""
    address: str | None = None
    """Of the Ray cluster, host:port or auto; default: RAY_ADDRESS, or a Ray on this machine alone."""
    shards: int | None = None
    """Parts that the tasks are divided into on the cluster; default: one a core."""

    @property
    def begins_again(self) -> bool:
        """Whether nothing of it is kept if it is interrupted."""
        return self.source.startswith("sb3-") and self.jobs is None

    def run(self) -> None:
        """Collect, then say what was collected."""
        from icrl_agents.envs import resolve_env_id, short_name
        from icrl_agents.training.memory import keep_freed_memory
        from icrl_agents.training.ray_engine import open_engine
        from icrl_agents.training.sources.presets import run_collection

        keep_freed_memory()
        env_id = resolve_env_id(self.env)
        out = self.out or Path("data") / short_name(env_id) / self.source
        with open_engine(self.engine, self.address, self.shards, self.device) as engine:
            dataset = run_collection(
                env_id,
                out,
                preset=self.preset,
                source=self.source,
                task=self.task,
                jobs=self.jobs,
                steps_per_task=self.steps_per_task,
                specialise_steps_per_task=self.specialise_steps_per_task,
                consolidate=self.consolidate,
                symmetric=self.symmetric,
                split=self.split,
                subset=self.subset,
                seed=self.seed,
                engine=engine,
            )
        progress = dataset.manifest.progress
        mean = sum(progress.final_returns) / len(progress.final_returns)
        console.print(
            f"{out}: {len(dataset)} histories of {progress.steps} steps, {len(dataset.manifest.tasks)} tasks; "
            f"final source policies return {mean:.2f}"
        )


@dataclass(frozen=True)
class Train:
    """Distil learning histories into an agent. An interrupted training goes on with the same command.

    On several processes or GPUs: torchrun --nproc-per-node 2 -m icrl_agents.cli train ...
    """

    env: Positional[str]
    """Environment, e.g. reacher-goal."""
    data: Path | None = None
    """Folder of the dataset; default: where collect puts the method's source."""
    backbone: str = "mamba"
    """Registered sequence model: mamba, mamba2, transformer, or one that ICRL_IMPORT brings."""
    preset: Preset = "laptop"
    """Size, sequence length and schedule."""
    method: Method = "ad"
    """From the histories as they are (ad, the paper; no agent here became better than blind by it), or with the student
    acting and the final policies of a source that is told the task teaching (on-policy, as the bundled agents without
    -ad)."""
    head: Head | None = None
    """Trained by squared error (deterministic, the paper), by likelihood (gaussian; then the agent samples), or by that
    of several actions, of which the agent does the most probable (mixture); default: the preset's."""
    out: Path | None = None
    """Folder of the checkpoint; default: runs/ENV-BACKBONE[-ad][-HEAD][-masked]."""
    name: str | None = None
    """Name of the agent; default: the folder's."""
    target: Literal["sampled", "source_mean", "final_policy"] | None = None
    """What to predict: the executed action (the paper), the source's mean, or its final policy's action; default:
    sampled with method ad, final_policy with on-policy."""
    mask_rewards: bool = False
    """The control agent, which never sees a reward."""
    task_changes: float | None = None
    """With method on-policy: probability that the student's task changes between rounds and nobody tells it, which
    makes agents that notice; default: the preset's."""
    updates: int | None = None
    """Gradient updates; default: the preset's."""
    learning_rate: float | None = None
    """Peak of AdamW's, after a rise and before a fall to 0; default: the preset's."""
    muon_learning_rate: float | None = None
    """Peak of Muon's, for the matrices between hidden layers; 0 leaves all to AdamW; default: the preset's."""
    init_backbone: Path | None = None
    """Folder of a backbone to start from, as import-mamba writes it; the backbone must be of the preset's shape."""
    device: str = "auto"
    """Where to train, e.g. cpu or cuda; auto is the GPU if there is one."""
    seed: int = 0
    """Of weights, batches and noise."""

    def run(self) -> None:
        """Train and say where the checkpoint is."""
        from icrl_agents.envs import resolve_env_id, short_name
        from icrl_agents.training.parallel import processes_of_environment
        from icrl_agents.training.pipeline import agent_name, run_training, source_of

        env_id = resolve_env_id(self.env)
        short = short_name(env_id)
        out = self.out or Path("runs") / agent_name(short, self.backbone, self.method, self.head, self.mask_rewards)
        run_training(
            env_id,
            self.data or Path("data") / short / source_of(self.method, env_id),
            out,
            name=self.name or out.resolve().name,
            backbone=self.backbone,
            preset=self.preset,
            method=self.method,
            head=self.head,
            target=self.target,
            mask_rewards=self.mask_rewards,
            task_changes=self.task_changes,
            updates=self.updates,
            learning_rate=self.learning_rate,
            muon_learning_rate=self.muon_learning_rate,
            init_backbone=None if self.init_backbone is None else str(self.init_backbone),
            device=self.device,
            seed=self.seed,
        )
        if processes_of_environment().first:
            console.print(f"checkpoint: {out}", soft_wrap=True)


@dataclass(frozen=True)
class Finetune:
    """Fine-tune an agent by reinforcement: it acts in training tasks and learns from reward, beyond its teachers.

    An interrupted run goes on with the same command.
    """

    agent: Positional[str]
    """Agent name, directory or Hub id, e.g. runs/mine."""
    out: Path | None = None
    """Folder of the checkpoint; default: runs/AGENT-finetuned."""
    name: str | None = None
    """Name of the agent that it makes; default: the folder's."""
    rounds: int | None = None
    """Roll-outs, each of which is learned from; default: the preset's."""
    subset: str | None = None
    """Tasks to train on: train, sampled:N for N of the distribution, or several joined by +; default: the preset's."""
    learning_rate: float | None = None
    """Its peak, after a rise and before a fall to 0; default: the preset's."""
    noise: float | None = None
    """Deviation of the actions it tries around its own in the first round, in their units; default: the preset's."""
    noise_decay: float | None = None
    """What is left of it in the last, 1 keeps it; default: the preset's."""
    task_changes: float | None = None
    """Probability that its task changes between rounds and nobody tells it, which makes agents that notice; default:
    the preset's."""
    device: str = "auto"
    """Where to train, e.g. cpu or cuda; auto is the GPU if there is one."""
    seed: int = 0
    """Of everything."""

    def run(self) -> None:
        """Fine-tune and say what it brought."""
        from icrl_agents.training.memory import keep_freed_memory
        from icrl_agents.training.pipeline import run_finetuning

        keep_freed_memory()
        agent = Path(self.agent)
        out = self.out or Path("runs") / f"{(agent.resolve() if agent.is_dir() else agent).name}-finetuned"
        result = run_finetuning(
            self.agent,
            out,
            name=self.name or out.resolve().name,
            rounds=self.rounds,
            subset=self.subset,
            learning_rate=self.learning_rate,
            noise=self.noise,
            noise_decay=self.noise_decay,
            task_changes=self.task_changes,
            device=self.device,
            seed=self.seed,
        )
        console.print(f"checkpoint: {out}, of round {result.best_round}", soft_wrap=True)


@dataclass(frozen=True)
class Anchors:
    """Measure the reference policies of an environment: no action, random, blind and oracle."""

    env: Positional[str]
    """Environment, e.g. reacher-goal."""
    split: str | None = None
    """Named task split; default: paper, or the first of an environment of your own."""
    steps_per_task: int = 200_000
    """Environment steps of each oracle."""
    informed: Path | None = None
    """Dataset of a task-informed source: oracles begin from its learner, and are it where they take no steps."""
    blind_iterations: int | None = None
    """Roll-outs of the blind policy; default: as many as the shipped anchors took."""
    data: Path | None = None
    """Folder for the oracles' histories; default: data/ENV/oracle."""
    out: Path | None = None
    """JSON file; default: the one that register_split(..., anchors=FILE) named, or the one that the package ships."""
    only: tuple[Literal["zero", "random", "blind", "oracle"], ...] = ("zero", "random", "blind", "oracle")
    """Which to measure; the file then holds no others."""
    floor: float | None = None
    """Return below which an oracle has not been learned; default: what is known of the environment."""
    seed: int = 0
    """Of everything."""

    def run(self) -> None:
        """Measure and write."""
        from icrl_agents.envs import resolve_env_id, short_name
        from icrl_agents.envs.anchors import ANCHOR_NAMES, anchors_path
        from icrl_agents.training.anchors import BLIND_ITERATIONS, measure_anchors, save_anchors
        from icrl_agents.training.memory import keep_freed_memory
        from icrl_agents.training.sources.presets import oracle_collection

        keep_freed_memory()
        env_id = resolve_env_id(self.env)
        config = oracle_collection(env_id, self.split, self.steps_per_task, self.informed, self.seed)
        out = self.out or anchors_path(env_id, config.split)
        if out is not None and not os.access(next(p for p in out.absolute().parents if p.exists()), os.W_OK):
            raise ConfigError(f"nothing can be written to {out.parent}: name a file with --out")
        if out is None:
            raise ConfigError(f"no file is known for anchors of {env_id} on split {config.split!r}: name it with --out")
        options = f"--split {config.split} --steps-per-task {self.steps_per_task} --seed {self.seed}"
        if self.informed is not None:
            options += f" --informed {self.informed}"
        if self.blind_iterations is not None:
            options += f" --blind-iterations {self.blind_iterations}"
        if set(self.only) != set(ANCHOR_NAMES):
            options += f" --only {' '.join(self.only)}"
        if self.floor is not None:
            options += f" --floor {self.floor:g}"
        command = f"icrl-agents anchors {self.env} {options}"
        data = self.data or Path("data") / short_name(env_id) / "oracle"
        anchors = measure_anchors(
            config,
            data,
            command,
            only=self.only,
            floor=self.floor,
            blind_iterations=BLIND_ITERATIONS if self.blind_iterations is None else self.blind_iterations,
        )
        save_anchors(anchors, out)
        for subset, returns in anchors.returns.items():
            means = ", ".join(f"{name} {sum(values) / len(values):.2f}" for name, values in returns.items())
            console.print(f"{subset}: {means}")
        console.print(f"anchors: {out}", soft_wrap=True)


@dataclass(frozen=True)
class Reproduce:
    """From nothing to an evaluated agent: collect, train, fine-tune where the shipped agents are, evaluate.

    Goes on where it was interrupted.
    """

    env: Positional[str] = "reacher-goal"
    """Environment, e.g. reacher-goal."""
    backbone: str = "mamba"
    """Registered sequence model: mamba, mamba2, transformer, or one that ICRL_IMPORT brings."""
    preset: Preset = "laptop"
    """Amount of data, size and schedule."""
    method: Method = "on-policy"
    """As the bundled agents without -ad were made (on-policy), or as those with it, and the paper's (ad)."""
    head: Head | None = None
    """Trained by squared error (deterministic, the paper), by likelihood (gaussian; then the agent samples), or by that
    of several actions, of which the agent does the most probable (mixture); default: the preset's."""
    mask_rewards: bool = False
    """The control agent, which never sees a reward."""
    device: str = "auto"
    """Where to train and evaluate, e.g. cpu or cuda; auto is the GPU if there is one."""
    seed: int = 0
    """Of everything."""
    data: Path = Path("data")
    """Folder of datasets."""
    out: Path = Path("runs")
    """Folder of checkpoints."""

    def run(self) -> None:
        """Run the whole pipeline and write how long each part took."""
        from icrl_agents.training.memory import keep_freed_memory
        from icrl_agents.training.pipeline import reproduce

        keep_freed_memory()
        times = reproduce(
            self.env,
            backbone=self.backbone,
            preset=self.preset,
            method=self.method,
            head=self.head,
            mask_rewards=self.mask_rewards,
            seed=self.seed,
            data=self.data,
            out=self.out,
            device=self.device,
        )
        table = Table("part", "minutes")
        for part, seconds in times.items():
            table.add_row(part, f"{seconds / 60:.1f}")
        console.print(table)


@dataclass(frozen=True)
class Presets:
    """What a preset has in an environment: the settings of collecting, training and fine-tuning, as JSON."""

    env: Positional[str]
    """Environment, e.g. reacher-goal."""
    preset: Preset = "laptop"
    """Which preset."""
    source: Source | None = None
    """Of the histories; default: the method's."""
    method: Method = "on-policy"
    """How to distil."""
    backbone: str = "mamba"
    """Registered sequence model."""

    def run(self) -> None:
        """Print them."""
        from icrl_agents.config import to_dict
        from icrl_agents.envs import resolve_env_id
        from icrl_agents.training.pipeline import source_of
        from icrl_agents.training.presets import distillation_preset, is_finetuned, reinforcement_preset
        from icrl_agents.training.sources.planned import PLANNED, PlannedConfig
        from icrl_agents.training.sources.presets import collection_preset, sb3_preset

        env_id = resolve_env_id(self.env)
        source = self.source or source_of(self.method, env_id)
        collection = collection_preset(env_id, self.preset, source)
        collect = to_dict(collection)
        if source == PLANNED or source.startswith("sb3-"):  # of the preset only the amount of data
            amount = ("env_id", "split", "subset", "steps_per_task", "streams", "shard_steps")
            own = to_dict(PlannedConfig()) if source == PLANNED else dict(sb3_preset(source, collection, self.preset))
            collect = {name: collect[name] for name in amount} | {"options": own}
        train = to_dict(distillation_preset(env_id, self.preset, self.backbone, self.method))
        told = {"collect": collect, "train": train, "finetune": to_dict(reinforcement_preset(env_id))}
        print(json.dumps(told, indent=2))
        if not (self.method == "on-policy" and is_finetuned(env_id, self.preset)):
            print("(reproduce does not fine-tune here)", file=sys.stderr)


@dataclass(frozen=True)
class ImportMamba:
    """Import the blocks of a Mamba language model (mamba-ssm or transformers), to train an agent from."""

    source: Positional[Path]
    """The model's directory: config.json and safetensors."""
    out: Path
    """Folder of the backbone."""

    def run(self) -> None:
        """Import and say what it is."""
        from icrl_agents.backbones.mamba_weights import import_mamba

        config = import_mamba(self.source, self.out)
        console.print(f"backbone: {self.out}, {config.n_layers} blocks of width {config.d_model}", soft_wrap=True)

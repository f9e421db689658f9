"""The whole way, once: collect, train, fine-tune, evaluate. What ``icrl-agents reproduce`` runs."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from icrl_agents.agent import InContextAgent
from icrl_agents.atomic import write_text_atomically
from icrl_agents.config import Head
from icrl_agents.envs import env_definition, resolve_env_id, short_name
from icrl_agents.errors import ConfigError, UnknownNameError
from icrl_agents.evaluation import evaluate
from icrl_agents.hub import load_checkpoint, resolve, save_checkpoint
from icrl_agents.plots import plot_results
from icrl_agents.training.collection import make_rows
from icrl_agents.training.distillation import DistillationConfig, TrainingResult, train
from icrl_agents.training.histories import HistoryDataset
from icrl_agents.training.lock import writing
from icrl_agents.training.manifest import MANIFEST_FILE
from icrl_agents.training.parallel import Processes
from icrl_agents.training.presets import Method, distillation_preset, is_finetuned, reinforcement_preset
from icrl_agents.training.reinforcement import ReinforcementResult, finetune, require_finetuning
from icrl_agents.training.run_state import IDENTITY_FILE, require_free_for_run
from icrl_agents.training.sources.planned import PLANNED
from icrl_agents.training.sources.policies import SnapshotPolicies, sees_privileged
from icrl_agents.training.sources.presets import run_collection

EVALUATION_SEEDS = (0, 1, 2)
TIMES_FILE = "times.json"

_SOURCES: Mapping[Method, str] = {"ad": "task-parallel", "on-policy": "task-informed"}
_TEACHERS: Mapping[str, str] = {"icrl/ReacherGoal-v0": PLANNED}


def source_of(method: Method, env_id: str) -> str:
    """What a method distils: independent learning histories, or a teacher that is told the task.

    Independent teachers disagree where a task has two solutions (the arm's elbow left or right), and between two goals
    that were taught differently a student learns the mean of both, which is neither.

    Args:
        method: ``"ad"`` or ``"on-policy"``.
        env_id: Gymnasium id.
    """
    return _TEACHERS.get(env_id, _SOURCES[method]) if method == "on-policy" else _SOURCES[method]


def reproduce(
    env: str,
    *,
    backbone: str = "mamba",
    preset: str = "laptop",
    method: Method = "on-policy",
    head: Head | None = None,
    mask_rewards: bool = False,
    seed: int = 0,
    data: Path = Path("data"),
    out: Path = Path("runs"),
    device: str = "auto",
    quiet: bool = False,
    **training_options: Any,
) -> dict[str, float]:
    """Collect, train and evaluate one agent; each part is skipped where it is done and resumed where it was cut off.

    Where the preset fine-tunes by reinforcement what was distilled on policy, that is a part of its own.

    Args:
        env: short name or id.
        backbone: registered sequence model.
        preset: ``"laptop"`` or ``"paper"``.
        method: ``"on-policy"``, as the shipped agents, or ``"ad"``, as the paper.
        head: ``"deterministic"``, as the paper, ``"gaussian"`` or ``"mixture"``; None is the preset's.
        mask_rewards: the control agent, which never sees a reward.
        seed: of everything.
        data: folder of datasets; the histories go to ``data/ENV/SOURCE``.
        out: folder of checkpoints; the agent goes to ``out/ENV-BACKBONE[-ad][-HEAD][-masked]``, and what is
            fine-tuned later to a folder of that name and ``-distilled``.
        device: of what is trained and evaluated; ``"auto"`` is the GPU if there is one.
        quiet: no progress bars.
        **training_options: instead of the preset's.

    Returns:
        Seconds that each part took, over all runs of this command: ``collect, train, (finetune,) evaluate``.

    Raises:
        UnknownNameError: no such environment, preset, backbone, method or setting.
        ConfigError: no such device, settings that cannot be, or a folder that holds what this would not go on with.
    """
    env_id = resolve_env_id(env)
    short = short_name(env_id)
    source = source_of(method, env_id)
    histories = data / short / source
    name = agent_name(short, backbone, method, head, mask_rewards)
    checkpoint = out / name
    finetuned = method == "on-policy" and head is None and is_finetuned(env_id, preset)
    distilled = out / f"{name}-distilled" if finetuned else checkpoint
    # What can be known is known before hours of work
    training_config(
        env_id, backbone=backbone, preset=preset, method=method, seed=seed, head=head, name=name, **training_options
    )
    Processes().device(device)
    if finetuned:
        require_finetuning(checkpoint)
    _require_its_run(distilled, histories)

    def collecting() -> None:
        run_collection(env_id, histories, preset=preset, source=source, seed=seed, quiet=quiet)

    times = {"collect": _timed(histories, "collect", collecting)}
    times["train"] = _timed(
        distilled,
        "train",
        lambda: run_training(
            env_id,
            histories,
            distilled,
            name=distilled.name,
            backbone=backbone,
            preset=preset,
            method=method,
            head=head,
            mask_rewards=mask_rewards,
            seed=seed,
            device=device,
            quiet=quiet,
            **training_options,
        ),
    )
    if finetuned:
        times["finetune"] = _timed(
            checkpoint,
            "finetune",
            lambda: run_finetuning(distilled, checkpoint, name=name, seed=seed, device=device, quiet=quiet),
        )
    times["evaluate"] = _timed(checkpoint, "evaluate", lambda: evaluate_checkpoint(checkpoint, device))
    return times


def _require_its_run(distilled: Path, histories: Path) -> None:
    """Raise where a folder holds what training from these histories could not go on with."""
    require_free_for_run(distilled)
    if (distilled / IDENTITY_FILE).is_file() and not (histories / MANIFEST_FILE).is_file():
        raise ConfigError(
            f"{distilled} holds a run, and its dataset is not in {histories}; choose another directory, or go on with "
            "it by train --data"
        )


def agent_name(env: str, backbone: str, method: Method, head: Head | None, mask_rewards: bool) -> str:
    """``ENV-BACKBONE[-ad][-HEAD][-masked]``: the plain name is the shipped recipe's, whose head is the preset's."""
    parts = (("-ad", method == "ad"), (f"-{head}", head is not None), ("-masked", mask_rewards))
    return f"{env}-{backbone}" + "".join(word for word, holds in parts if holds)


def training_config(
    env_id: str,
    *,
    backbone: str,
    preset: str,
    method: Method,
    task_changes: float | None = None,
    **changes: Any,
) -> DistillationConfig:
    """What a preset says, and what is given instead.

    Args:
        env_id: Gymnasium id.
        backbone: registered sequence model.
        preset: ``"laptop"`` or ``"paper"``.
        method: ``"ad"`` from the histories, or ``"on-policy"``.
        task_changes: of :class:`OnPolicyConfig`, instead of the preset's.
        **changes: fields of :class:`DistillationConfig` instead of the preset's; None leaves the preset's.

    Raises:
        UnknownNameError: no such environment, preset, backbone, method or field.
        ConfigError: values that cannot be, or tasks that change in lives that are not the student's own.
    """
    config = distillation_preset(env_id, preset, backbone, method)
    known = [field.name for field in fields(config)]
    for name in changes:
        if name not in known:
            raise UnknownNameError("setting of a distillation", name, known)
    config = replace(config, **{name: value for name, value in changes.items() if value is not None})
    if task_changes is None:
        return config
    if config.on_policy is None:
        raise ConfigError("tasks change in lives of the student's own: distil with method on-policy")
    return replace(config, on_policy=replace(config.on_policy, task_changes=task_changes))


def run_training(
    env_id: str,
    histories: Path,
    checkpoint: Path,
    *,
    backbone: str = "mamba",
    preset: str = "laptop",
    method: Method = "ad",
    task_changes: float | None = None,
    device: str = "auto",
    quiet: bool = False,
    **changes: Any,
) -> TrainingResult:
    """Distil by preset.

    Args:
        env_id: Gymnasium id.
        histories: a complete dataset.
        checkpoint: folder of the run.
        backbone: registered sequence model.
        preset: ``"laptop"`` or ``"paper"``.
        method: ``"ad"`` from the histories, or ``"on-policy"``.
        task_changes: as of :func:`training_config`.
        device: ``"auto"`` is the GPU if there is one.
        quiet: no progress bar.
        **changes: as of :func:`training_config`.

    Raises:
        ConfigError: as of :func:`training_config`, or final policies as the target of histories that do not hold what
            those policies saw.
    """
    config = training_config(
        env_id, backbone=backbone, preset=preset, method=method, task_changes=task_changes, **changes
    )
    if config.target != "final_policy":
        return train(config, histories, checkpoint, device=device, quiet=quiet)
    dataset = HistoryDataset(histories)
    space = make_rows(env_id, dataset.manifest.tasks[:1], 1).single_action_space
    teachers = SnapshotPolicies(dataset.snapshot(), space.low, space.high)  # type: ignore[attr-defined]
    if config.on_policy is None and sees_privileged(teachers.seen_dim, env_definition(env_id)):
        raise ConfigError(
            f"{histories}: its final policies saw what histories do not hold; distil from them with method on-policy, "
            "or take the target source_mean"
        )
    return train(config, histories, checkpoint, teachers.act_as, teachers=teachers, device=device, quiet=quiet)


def run_finetuning(
    agent: str | Path, checkpoint: Path, *, device: str = "auto", quiet: bool = False, **changes: Any
) -> ReinforcementResult:
    """Fine-tune by preset.

    Args:
        agent: directory, bundled name or Hub id of what to begin with.
        checkpoint: folder of the run.
        device: ``"auto"`` is the GPU if there is one.
        quiet: no progress bar.
        **changes: fields of :class:`ReinforcementConfig` instead of the preset's; None leaves the preset's. In a run of
            few rounds fewer are the critic's alone.

    Raises:
        UnknownNameError: no such agent or environment.
    """
    _, of = load_checkpoint(resolve(agent))
    given = {name: value for name, value in changes.items() if value is not None}
    config = reinforcement_preset(of.env_id)
    rounds = given.get("rounds", config.rounds)
    fixed = {"split": of.split, "critic_rounds": max(0, min(config.critic_rounds, rounds - 1))}
    config = replace(config, **fixed | given)
    return finetune(config, agent, checkpoint, device=device, quiet=quiet)


def evaluate_checkpoint(checkpoint: Path, device: str = "auto") -> None:
    """Evaluate a checkpoint on the test tasks and write result, figure and card into it, unless that was done."""
    if _evaluated(checkpoint):
        return
    result = evaluate(InContextAgent.from_pretrained(checkpoint, device=device), seeds=EVALUATION_SEEDS)
    plot_results([result], checkpoint / "curve.png")
    model, config = load_checkpoint(checkpoint)
    save_checkpoint(checkpoint, model, config, evaluation=asdict(result))


def _evaluated(checkpoint: Path) -> bool:
    """Whether the checkpoint's evaluation is of its weights as they are."""
    evaluation, weights = checkpoint / "evaluation.json", checkpoint / "model.safetensors"
    return evaluation.is_file() and evaluation.stat().st_mtime >= weights.stat().st_mtime


def _timed(directory: Path, part: str, work: Callable[[], object]) -> float:
    """Do one part and add its time to the directory's record, also when it is cut off."""
    path = directory / TIMES_FILE
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    started = time.perf_counter()
    try:
        work()
    finally:
        record[part] = round(record.get(part, 0.0) + time.perf_counter() - started, 1)
        record["machine"] = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"
        with writing(directory):
            write_text_atomically(path, json.dumps(record, indent=1) + "\n")
    return float(record[part])

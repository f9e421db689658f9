"""Source algorithms by preset: ``laptop`` is ours, ``paper`` has the paper's tables (arXiv 2506.13892, appendix A)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from icrl_agents.envs import default_split, env_definition
from icrl_agents.errors import ConfigError, MissingExtraError, UnknownNameError
from icrl_agents.training.collection import CollectionConfig, Engine, LocalEngine, collect
from icrl_agents.training.histories import HistoryDataset
from icrl_agents.training.sources.consolidation import ConsolidationConfig
from icrl_agents.training.sources.paper import (
    PAPER_ALGORITHMS,
    PAPER_DROQ,
    PAPER_PPO,
    PAPER_SAC,
    PAPER_SB3,
    PAPER_STEPS_PER_TASK,
    sb3_options,
)
from icrl_agents.training.sources.planned import PLANNED, PlannedConfig, collect_planned
from icrl_agents.training.sources.ppo import PPOConfig
from icrl_agents.training.sources.sac import DroQConfig, SACConfig

_SPECIALISED = PPOConfig(log_std_init=-2.0, hidden=(256, 256))
"""For learners that begin from an informed one: less noise than at the start, more than it has left."""

_COLLECTIONS: Mapping[tuple[str, str], CollectionConfig] = {
    ("icrl/ReacherGoal-v0", "laptop"): CollectionConfig("icrl/ReacherGoal-v0"),
    ("icrl/PusherGoal-v0", "laptop"): CollectionConfig(
        "icrl/PusherGoal-v0", steps_per_task=500_000, ppo=PPOConfig(gamma=0.97)
    ),
    ("icrl/HalfCheetahVel-v0", "laptop"): CollectionConfig(
        "icrl/HalfCheetahVel-v0",
        steps_per_task=800_000,
        ppo=PPOConfig(n_steps=200, n_minibatches=8, gamma=0.99, log_std_init=-0.5),
    ),
    # With roll-outs of 200 steps and gamma 0.99 it learns at half the speed: see docs/results.md.
    ("icrl/AntDir-v0", "laptop"): CollectionConfig(
        "icrl/AntDir-v0",
        steps_per_task=800_000,
        ppo=PPOConfig(n_minibatches=8, gamma=0.97, log_std_init=-0.5),
    ),
    **{
        (env_id, "paper"): CollectionConfig(env_id, steps_per_task=steps, ppo=PAPER_PPO)
        for env_id, steps in PAPER_STEPS_PER_TASK.items()
    },
}
"""(environment, preset) -> task-parallel PPO."""

_LAPTOP_SAC = SACConfig(learning_starts=1_000, learning_rate=1e-3, hidden=(64, 64))
_LAPTOP_DROQ = DroQConfig(learning_starts=1_000, learning_rate=1e-3, hidden=(64, 64), gradient_steps=4, policy_delay=4)


_LAPTOP_GAMMAS: Mapping[str, float] = {
    "icrl/ReacherGoal-v0": 0.95,
    "icrl/PusherGoal-v0": 0.97,
    "icrl/HalfCheetahVel-v0": 0.99,
    "icrl/AntDir-v0": 0.99,
}
"""Of SAC and DroQ. What a reach needs to foresee is near; what a run pays comes later."""

_OFF_POLICY: Mapping[tuple[str, str, str], CollectionConfig] = {
    **{
        (env_id, "laptop", algorithm): CollectionConfig(
            env_id,
            steps_per_task=steps_per_task,
            streams=2,
            shard_steps=shard_steps,
            sac=replace(sac, gamma=_LAPTOP_GAMMAS[env_id]),
        )
        for env_id, algorithm, sac, steps_per_task, shard_steps in (
            ("icrl/ReacherGoal-v0", "sac", _LAPTOP_SAC, 40_000, 500),
            ("icrl/PusherGoal-v0", "sac", _LAPTOP_SAC, 100_000, 1_000),
            ("icrl/HalfCheetahVel-v0", "sac", _LAPTOP_SAC, 100_000, 1_000),
            ("icrl/AntDir-v0", "sac", _LAPTOP_SAC, 100_000, 1_000),
            ("icrl/ReacherGoal-v0", "droq", _LAPTOP_DROQ, 10_000, 100),
            ("icrl/PusherGoal-v0", "droq", _LAPTOP_DROQ, 25_000, 200),
            ("icrl/HalfCheetahVel-v0", "droq", _LAPTOP_DROQ, 50_000, 400),
            ("icrl/AntDir-v0", "droq", _LAPTOP_DROQ, 50_000, 200),
        )
    },
    **{
        (env_id, "paper", algorithm): CollectionConfig(env_id, steps_per_task=steps, shard_steps=200, sac=sac)
        for env_id, steps in PAPER_STEPS_PER_TASK.items()
        for algorithm, sac in (("sac", PAPER_SAC), ("droq", PAPER_DROQ))
    },
}
"""(environment, preset, algorithm) -> task-parallel SAC or DroQ."""

_TASK_INFORMED: Mapping[str, CollectionConfig] = {
    "icrl/ReacherGoal-v0": CollectionConfig(
        "icrl/ReacherGoal-v0",
        subset="train+sampled:140",
        steps_per_task=20_000,
        streams=2,
        task_informed=True,
        ppo=PPOConfig(n_minibatches=16, hidden=(256, 256)),
        specialise_steps_per_task=30_000,
        specialise=replace(_SPECIALISED, n_minibatches=2),
    ),
    "icrl/PusherGoal-v0": CollectionConfig(
        "icrl/PusherGoal-v0",
        subset="train+sampled:175",  # 35 places of object and goal are few to learn what lies between them
        steps_per_task=40_000,
        streams=1,
        task_informed=True,
        ppo=PPOConfig(n_minibatches=16, gamma=0.97, hidden=(256, 256)),
        specialise=replace(_SPECIALISED, gamma=0.97),
    ),
    "icrl/HalfCheetahVel-v0": CollectionConfig(
        "icrl/HalfCheetahVel-v0",
        subset="train+sampled:45",  # from the split's 15 speeds alone it does not learn what lies between them
        steps_per_task=150_000,
        streams=3,
        task_informed=True,
        ppo=PPOConfig(
            n_steps=200, n_minibatches=32, learning_rate=5e-4, gamma=0.99, log_std_init=-0.5, hidden=(256, 256)
        ),
        specialise=replace(_SPECIALISED, n_steps=200, gamma=0.99),
    ),
    "icrl/AntDir-v0": CollectionConfig(
        "icrl/AntDir-v0",
        steps_per_task=300_000,
        task_informed=True,
        symmetric=True,
        ppo=PPOConfig(n_minibatches=16, learning_rate=5e-4, gamma=0.97, log_std_init=-0.5, hidden=(256, 256)),
        specialise=replace(_SPECIALISED, gamma=0.97),
    ),
}
"""One learner has the samples of all tasks, and more to tell apart: a wider network, fewer steps a task."""

_PRIVILEGED: Mapping[str, CollectionConfig] = {
    "icrl/PusherGoal-v0": replace(
        _TASK_INFORMED["icrl/PusherGoal-v0"],
        privileged=True,
        steps_per_task=50_000,
        ppo=PPOConfig(n_minibatches=32, gamma=0.97, hidden=(256, 256)),
    ),
}
"""Better by far, and harder to follow for who is not told: see docs/results.md."""

_TASK_INFORMED_SAC: Mapping[str, CollectionConfig] = {
    env_id: CollectionConfig(
        env_id,
        steps_per_task=steps_per_task,
        streams=1,
        shard_steps=500,
        task_informed=True,
        sac=SACConfig(
            learning_starts=5_000, batch_size=512, gradient_steps=4, learning_rate=5e-4, gamma=_LAPTOP_GAMMAS[env_id]
        ),
    )
    for env_id, steps_per_task in (
        ("icrl/ReacherGoal-v0", 10_000),
        ("icrl/PusherGoal-v0", 30_000),
        ("icrl/HalfCheetahVel-v0", 50_000),
        ("icrl/AntDir-v0", 50_000),
    )
}

_ANY: Mapping[str, CollectionConfig] = {
    "ppo": CollectionConfig("", steps_per_task=500_000, ppo=PPOConfig(n_minibatches=8, gamma=0.99, log_std_init=-0.5)),
    "sac": CollectionConfig("", steps_per_task=100_000, streams=2, sac=replace(_LAPTOP_SAC, gamma=0.99)),
    "droq": CollectionConfig(
        "", steps_per_task=50_000, streams=2, shard_steps=400, sac=replace(_LAPTOP_DROQ, gamma=0.99)
    ),
    "task-informed": CollectionConfig(
        "",
        steps_per_task=150_000,
        task_informed=True,
        ppo=PPOConfig(n_minibatches=16, learning_rate=5e-4, gamma=0.99, log_std_init=-0.5, hidden=(256, 256)),
        specialise=replace(_SPECIALISED, gamma=0.99),
    ),
    "task-informed-sac": CollectionConfig(
        "",
        steps_per_task=50_000,
        streams=1,
        shard_steps=500,
        task_informed=True,
        sac=SACConfig(learning_starts=5_000, batch_size=512, gradient_steps=4, learning_rate=5e-4),
    ),
}
"""algorithm -> a setting to begin with in environments that have none of their own."""

_PLANNED: Mapping[str, CollectionConfig] = {
    # Nothing is learned from these steps; they show what the teacher does.
    "icrl/ReacherGoal-v0": CollectionConfig(
        "icrl/ReacherGoal-v0", subset="train+sampled:140", steps_per_task=1_000, streams=1
    ),
}

_INFORMED: Mapping[str, Mapping[str, CollectionConfig]] = {
    "task-informed": _TASK_INFORMED,
    "task-informed-privileged": _PRIVILEGED,
    "task-informed-sac": _TASK_INFORMED_SAC,
    PLANNED: _PLANNED,
}

SOURCES = (
    "task-parallel",
    "task-parallel-ppo",
    "task-parallel-sac",
    "task-parallel-droq",
    "task-informed",
    "task-informed-privileged",
    "task-informed-sac",
    PLANNED,
    *PAPER_SB3,
)
"""What histories can be collected from. ``task-parallel`` is what the preset has: PPO, or in ``paper`` what the paper
assigns to the environment. ``task-informed-privileged`` is there where the environment calls something privileged,
``planned`` in Reacher-Goal."""


def collection_preset(env_id: str, preset: str, source: str = "task-parallel") -> CollectionConfig:
    """What a preset collects; change what you like with ``dataclasses.replace``.

    Of an sb3 source it is the amount of data.

    Args:
        env_id: Gymnasium id. Environments of your own have the preset ``"laptop"``, a setting to begin with.
        preset: ``"laptop"`` or ``"paper"``; task-informed and planned sources have one setting for both.
        source: one of :data:`SOURCES`.

    Raises:
        UnknownNameError: no such environment or source, or it has no such preset.
    """
    if source not in SOURCES:
        raise UnknownNameError("source", source, SOURCES)
    env_definition(env_id)
    if (env_id, "laptop") not in _COLLECTIONS and source != PLANNED:
        return _any_collection(env_id, preset, source)
    if source in _INFORMED:
        if env_id not in _INFORMED[source]:
            raise UnknownNameError(f"environment with a {source} source", env_id, _INFORMED[source])
        return _INFORMED[source][env_id]
    algorithm = source.rpartition("-")[2]
    if source == "task-parallel":
        algorithm = PAPER_ALGORITHMS.get(env_id, "ppo") if preset == "paper" else "ppo"
    elif algorithm in ("tqc", "crossq"):
        algorithm = "sac"  # as much data
    known: dict[str, CollectionConfig]
    if algorithm == "ppo":
        known = {p: config for (e, p), config in _COLLECTIONS.items() if e == env_id}
    else:
        known = {p: config for (e, p, a), config in _OFF_POLICY.items() if (e, a) == (env_id, algorithm)}
    if preset not in known:
        raise UnknownNameError(f"{source} preset of {env_id}", preset, known)
    return known[preset]


def _any_collection(env_id: str, preset: str, source: str) -> CollectionConfig:
    """What an environment collects that has no settings of its own."""
    if preset != "laptop":
        raise UnknownNameError(f"preset of {env_id}", preset, ("laptop",))
    if source in _INFORMED:
        algorithm = source.removesuffix("-privileged")
    else:
        kind = source.rpartition("-")[2]
        algorithm = {"parallel": "ppo", "tqc": "sac", "crossq": "sac"}.get(kind, kind)
    privileged = source == "task-informed-privileged"
    return replace(_ANY[algorithm], env_id=env_id, split=default_split(env_id), privileged=privileged)


def oracle_collection(
    env_id: str, split: str | None, steps_per_task: int, informed: str | Path | None, seed: int
) -> CollectionConfig:
    """How the oracles of an environment learn: on their own, or from the learner of a task-informed dataset.

    Raises:
        UnknownNameError: no such environment, or it has no split.
        DatasetError: ``informed`` is no dataset.
    """
    split = split or default_split(env_id)
    if informed is None:
        return CollectionConfig(env_id, split, steps_per_task=steps_per_task, seed=seed)
    known = HistoryDataset(informed).manifest.hyperparameters
    return replace(
        collection_preset(env_id, "laptop", "task-informed"),
        split=split,
        seed=seed,
        steps_per_task=0,
        informed=str(informed),
        privileged=known.get("privileged", False),
        symmetric=known.get("symmetric", False),
        specialise_steps_per_task=steps_per_task,
        consolidate=ConsolidationConfig(),  # each is the oracle of its own task
    )


def run_collection(
    env_id: str,
    directory: Path,
    *,
    preset: str = "laptop",
    source: str = "task-parallel",
    task: int | None = None,
    jobs: int | None = None,
    steps_per_task: int | None = None,
    specialise_steps_per_task: int | None = None,
    consolidate: int | None = None,
    symmetric: bool | None = None,
    split: str | None = None,
    subset: str | None = None,
    seed: int = 0,
    engine: Engine | None = None,
    device: torch.device | str = "cpu",
    quiet: bool = False,
) -> HistoryDataset:
    """Collect by preset, with the named source.

    Args:
        env_id: Gymnasium id.
        directory: of the dataset.
        preset: ``"laptop"`` or ``"paper"``.
        source: one of :data:`SOURCES`.
        task: index of the one task that an sb3 source learns; None is the first.
        jobs: let an sb3 source learn all tasks of the subset instead, so many at a time, into one dataset.
        steps_per_task: instead of the preset's.
        specialise_steps_per_task: of a task-informed source, instead of the preset's.
        consolidate: rounds in which its specialised policies become one again; None is the preset's, none.
        symmetric: whether a task-informed PPO sees and acts through the symmetry of its tasks; None is the preset's.
        split: named task split; None is ``"paper"``, or an environment's own first.
        subset: part of it, as :class:`CollectionConfig` says; None is the preset's.
        seed: of everything.
        engine: where the learners work; None is this process, on ``device``.
        device: that task-parallel and task-informed SAC and DroQ learn on.
        quiet: no progress bar.

    Raises:
        UnknownNameError: no such source, or the environment has no such preset of it.
        ConfigError: jobs or one task for a source that learns all in one, one task of many jobs, or a device for a
            source that knows only the CPU.
        MissingExtraError: an sb3 source without the extra ``train``.
    """
    preset_config = collection_preset(env_id, preset, source)
    config = replace(
        preset_config, split=split or preset_config.split, subset=subset or preset_config.subset, seed=seed
    )
    if steps_per_task is not None:
        config = replace(config, steps_per_task=steps_per_task)
    if specialise_steps_per_task is not None:
        config = replace(config, specialise_steps_per_task=specialise_steps_per_task)
    if consolidate is not None:
        config = replace(config, consolidate=replace(config.consolidate, rounds=consolidate))
    if symmetric is not None:
        if symmetric and source not in ("task-informed", "task-informed-privileged"):
            raise ConfigError(f"symmetric is for a task-informed PPO, not for {source}")
        config = replace(config, symmetric=symmetric)
    if (specialise_steps_per_task or consolidate) and not source.startswith("task-informed"):
        raise ConfigError(f"policies specialise from a task-informed learner, and are consolidated; {source} has none")
    engine = engine or LocalEngine(device)
    sb3 = source.startswith("sb3-")
    if not sb3 and jobs is not None:
        raise ConfigError(f"jobs are processes of an sb3 source; {source} learns all tasks in one")
    if not sb3 and task is not None:
        raise ConfigError(f"one task is what an sb3 source learns; {source} learns all of the subset, got task {task}")
    if not sb3 and source != PLANNED:
        return collect(config, directory, engine=engine, quiet=quiet)
    if not isinstance(engine, LocalEngine):
        raise ConfigError(f"{source} learns on one machine: collect it with --engine local")
    if engine.device != "cpu":
        raise ConfigError(f"{source} learns on the CPU, got device {engine.device!r}")
    if not sb3:
        return collect_planned(PlannedConfig(), config, directory, quiet=quiet)
    try:
        from icrl_agents.training.sources.sb3 import collect_sb3, collect_sb3_tasks
    except ImportError as error:
        raise MissingExtraError(str(error.name), "train") from error
    options = sb3_preset(source, config, preset)
    if jobs is not None and task is not None:
        raise ConfigError(f"jobs learn all tasks of the subset, got task {task} beside them")
    if jobs is not None:
        return collect_sb3_tasks(source, config, directory, options, jobs=jobs, quiet=quiet)
    return collect_sb3(source, config, directory, task or 0, options, quiet=quiet)


def sb3_preset(source: str, config: CollectionConfig, preset: str) -> Mapping[str, Any]:
    """Keyword arguments of an sb3 source's algorithm; those that are not given are its own defaults."""
    if preset == "paper":
        return PAPER_SB3[source]
    if config.sac is None:
        return {}
    return {**sb3_options(config.sac), "policy_kwargs": {"net_arch": list(config.sac.hidden)}}

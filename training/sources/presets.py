"""Source algorithms by preset: ``laptop`` is ours, ``paper`` has the paper's tables (arXiv 2506.13892, appendix A)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from icrl_agents.errors import ConfigError, MissingExtraError, UnknownNameError
from icrl_agents.training.collection import CollectionConfig, Engine, LocalEngine, collect
from icrl_agents.training.histories import HistoryDataset
from icrl_agents.training.sources.ppo import PPOConfig

PAPER_PPO = PPOConfig(
    n_steps=500,
    n_epochs=10,
    n_minibatches=39,  # batches of 64 out of 5 x 500 samples
    learning_rate=1e-4,
    anneal=False,
    gamma=0.99,
    gae_lambda=0.95,
    clip_range=0.2,
    ent_coef=5e-3,
    vf_coef=0.5,
    log_std_init=0.0,
)
"""Table 1."""

PAPER_SB3: Mapping[str, Mapping[str, Any]] = {
    "sb3-ppo": {
        "n_steps": 500,
        "n_epochs": 10,
        "batch_size": 64,
        "learning_rate": 1e-4,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "clip_range": 0.2,
        "ent_coef": 5e-3,
        "vf_coef": 0.5,
    },
    "sb3-sac": {
        "buffer_size": 1_000_000,
        "learning_starts": 400,
        "learning_rate": 1e-4,
        "batch_size": 256,
        "gamma": 0.99,
        "gradient_steps": -1,  # as many as environment steps
    },
}
"""Tables 1 and 2, as stable-baselines3 names them."""

_SPECIALISED = PPOConfig(learning_rate=3e-4, hidden=(256, 256))
"""For learners that begin from an informed one, with the little noise that it has left: small steps."""

_RUNNING_PPO = PPOConfig(n_steps=200, n_minibatches=32, learning_rate=5e-4, gamma=0.99, log_std_init=-0.5)
"""For the two that run: what pays comes later than in a reach."""

_COLLECTIONS: Mapping[tuple[str, str], CollectionConfig] = {
    ("icrl/ReacherGoal-v0", "laptop"): CollectionConfig("icrl/ReacherGoal-v0"),
    ("icrl/ReacherGoal-v0", "paper"): CollectionConfig("icrl/ReacherGoal-v0", ppo=PAPER_PPO),
}

_TASK_INFORMED: Mapping[str, CollectionConfig] = {
    "icrl/ReacherGoal-v0": CollectionConfig(
        "icrl/ReacherGoal-v0",
        subset="train+sampled:140",
        steps_per_task=20_000,
        streams=2,
        task_informed=True,
        ppo=PPOConfig(n_minibatches=16, hidden=(256, 256)),
        specialise=_SPECIALISED,
    ),
    "icrl/PusherGoal-v0": CollectionConfig(
        "icrl/PusherGoal-v0",
        steps_per_task=200_000,
        task_informed=True,
        ppo=PPOConfig(n_minibatches=16, gamma=0.97, hidden=(256, 256)),
        specialise=replace(_SPECIALISED, gamma=0.97),
    ),
    "icrl/HalfCheetahVel-v0": CollectionConfig(
        "icrl/HalfCheetahVel-v0",
        steps_per_task=400_000,
        streams=10,
        task_informed=True,
        ppo=replace(_RUNNING_PPO, hidden=(256, 256)),
        specialise=replace(_SPECIALISED, n_steps=200, gamma=0.99),
    ),
    "icrl/AntDir-v0": CollectionConfig(
        "icrl/AntDir-v0",
        steps_per_task=300_000,
        task_informed=True,
        ppo=replace(_RUNNING_PPO, hidden=(256, 256)),
        specialise=replace(_SPECIALISED, n_steps=200, gamma=0.99),
    ),
}
"""One learner has the samples of all tasks, and more to tell apart: a wider network, fewer steps a task."""


def collection_preset(env_id: str, preset: str) -> CollectionConfig:
    """What a preset collects.

    Raises:
        UnknownNameError: the environment has no such preset.
    """
    if (env_id, preset) not in _COLLECTIONS:
        raise UnknownNameError(f"collection preset of {env_id}", preset, [p for e, p in _COLLECTIONS if e == env_id])
    return _COLLECTIONS[env_id, preset]


def oracle_collection(
    env_id: str, split: str, steps_per_task: int, informed: str | Path | None, seed: int
) -> CollectionConfig:
    """How the oracles of an environment learn: on their own, or from the learner of a task-informed dataset.

    Raises:
        UnknownNameError: the environment has no task-informed source.
    """
    if informed is None:
        return CollectionConfig(env_id, split, steps_per_task=steps_per_task, seed=seed)
    if env_id not in _TASK_INFORMED:
        raise UnknownNameError("environment with a task-informed source", env_id, _TASK_INFORMED)
    return replace(
        _TASK_INFORMED[env_id],
        split=split,
        seed=seed,
        steps_per_task=0,
        informed=str(informed),
        specialise_steps_per_task=steps_per_task,
    )


def run_collection(
    env_id: str,
    directory: Path,
    *,
    preset: str = "laptop",
    source: str = "task-parallel",
    task: int = 0,
    steps_per_task: int | None = None,
    split: str = "paper",
    subset: str | None = None,
    seed: int = 0,
    engine: Engine | None = None,
    quiet: bool = False,
) -> HistoryDataset:
    """Collect by preset, with the named source.

    Args:
        env_id: Gymnasium id.
        directory: of the dataset.
        preset: ``"laptop"`` or ``"paper"``.
        source: ``"task-parallel"``, ``"task-informed"``, ``"sb3-ppo"`` or ``"sb3-sac"``.
        task: index of the one task that an sb3 source learns.
        steps_per_task: instead of the preset's.
        split: named task split.
        subset: part of it, as :class:`CollectionConfig` says; None is the preset's.
        seed: of everything.
        engine: where the learners work; None is this process.
        quiet: no progress bar.
    """
    if source == "task-informed":
        if env_id not in _TASK_INFORMED:
            raise UnknownNameError("environment with a task-informed source", env_id, _TASK_INFORMED)
        config = _TASK_INFORMED[env_id]
    else:
        config = collection_preset(env_id, preset)
    config = replace(config, split=split, subset=subset or config.subset, seed=seed)
    if steps_per_task is not None:
        config = replace(config, steps_per_task=steps_per_task)
    if source in ("task-parallel", "task-informed"):
        return collect(config, directory, engine=engine, quiet=quiet)
    if source not in PAPER_SB3:
        raise UnknownNameError("source", source, ("task-parallel", "task-informed", *PAPER_SB3))
    if not isinstance(engine, LocalEngine | None):
        raise ConfigError(
            f"{source} is one learner of one task, which cannot be divided: collect it with --engine local"
        )
    try:
        from icrl_agents.training.sources.sb3 import collect_sb3
    except ImportError as error:
        raise MissingExtraError(str(error.name), "train") from error
    options = PAPER_SB3[source] if preset == "paper" else {}
    return collect_sb3(source, config, directory, task, options, quiet=quiet)

"""Measuring an environment's anchors: what doing nothing, acting at random, acting blind and being told are worth."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from icrl_agents.atomic import write_text_atomically
from icrl_agents.envs import Anchors, env_definition, task_split
from icrl_agents.envs.anchors import ANCHOR_NAMES
from icrl_agents.errors import ConfigError, DatasetError
from icrl_agents.training.collection import (
    EVALUATION_EPISODES,
    CollectionConfig,
    check_informed,
    collect,
    evaluate_policies,
    informed_snapshot,
    learner_seed,
    make_rows,
)
from icrl_agents.training.histories import HistoryDataset
from icrl_agents.training.lock import writing
from icrl_agents.training.sources.policies import SnapshotPolicies, snapshot_by_task, symmetries_of, turned_back
from icrl_agents.training.sources.ppo import TaskParallelPPO
from icrl_agents.training.sources.rollouts import RolloutCollector

ORACLE_FLOOR = {
    "icrl/ReacherGoal-v0": -6.5,
    "icrl/PusherGoal-v0": -50.0,
    "icrl/HalfCheetahVel-v0": -70.0,
    "icrl/AntDir-v0": 500.0,
}
"""Return below which a task's oracle has not been learned and is no anchor."""

BLIND_ROWS_PER_TASK = 2
BLIND_ITERATIONS = 400


def measure_anchors(
    config: CollectionConfig,
    directory: str | Path,
    command: str,
    *,
    only: Sequence[str] = ANCHOR_NAMES,
    floor: float | None = None,
    blind_iterations: int = BLIND_ITERATIONS,
    quiet: bool = False,
) -> Anchors:
    """Measure anchors on the val and test tasks of a split.

    Args:
        config: of the oracle's learners, one a val or test task; its subset is ignored. Where they begin from an
            ``informed`` learner, each task's oracle is its specialised policy or the informed one, whichever is better
            on initial states of their own; the informed one where they take no steps.
        directory: where the oracle's learning histories go; an interrupted run resumes there.
        command: what reproduces this, for the record.
        only: the anchors to measure; ``blind`` needs ``zero`` and ``random``, of which it may be the best.
        floor: return below which an oracle has not been learned; None is the known one of the environment.
        blind_iterations: roll-outs that the blind policy learns from.
        quiet: no progress bars.

    Returns:
        Anchors, each the mean return of every task over 20 episodes.

    Raises:
        ConfigError: ``blind`` without ``zero`` and ``random`` or roll-outs, ``oracle`` without a floor in an
            environment of which none is known, or an ``informed`` learner of another environment or shape.
        DatasetError: an oracle stayed below the floor: train it longer.
    """
    env_id, seed = config.env_id, config.seed
    if "blind" in only and not {"zero", "random"} <= set(only):
        raise ConfigError(f"blind is the best of zero, random and a trained policy: name all three, got {list(only)}")
    if blind_iterations < 1:
        raise ConfigError(f"blind_iterations: expected at least 1, got {blind_iterations}")
    floor = ORACLE_FLOOR.get(env_id) if floor is None else floor
    if "oracle" in only and floor is None:
        raise ConfigError(f"no return is known below which an oracle of {env_id} has not been learned: give a floor")
    if "oracle" in only:
        check_informed(config)
    split = task_split(env_id, config.split)
    tasks = [*split.val, *split.test]
    space = make_rows(env_id, tasks[:1], 1).single_action_space
    low, high = space.low, space.high  # type: ignore[attr-defined]
    rng = np.random.default_rng(seed)
    acting: dict[str, Any] = {
        "zero": lambda obs: np.zeros((*obs.shape[:2], len(low))),
        "random": lambda obs: rng.uniform(low, high, (*obs.shape[:2], len(low))),
    }
    acting = {name: act for name, act in acting.items() if name in only}
    returns: dict[str, np.ndarray] = {}

    def measure(name: str, act: Any) -> None:
        privileged = config.privileged and name == "oracle"
        returns[name] = evaluate_policies(act, env_id, tasks, seed, privileged=privileged).mean(1)

    if "oracle" in only:  # first: it may be refused
        assert floor is not None
        measure("oracle", _oracle(config, directory, tasks, low, high, quiet))
        reached = returns["oracle"].min()
        if reached < floor:
            raise DatasetError(
                f"an oracle reached only {reached:.2f}, below {floor}: train it longer, in another folder"
            )
    for name, act in acting.items():
        measure(name, act)
    if "blind" in only:
        measure("blind", train_blind(config, blind_iterations, quiet=quiet))
    returns = {name: returns[name] for name in ANCHOR_NAMES if name in returns}
    val = slice(0, len(split.val))
    details: dict[str, Any] = {"episodes_per_task": EVALUATION_EPISODES, "seed": seed}
    if "oracle" in only:
        details["floor"] = floor
        if config.privileged:
            details["privileged"] = "the oracle sees what the environment calls so"
        details["oracle"] = (
            f"task-parallel PPO, one learner a task, {config.steps_per_task} steps each, mean action"
            if config.informed is None
            else f"{_informed_by(config.informed)}, mean action"
            if not config.specialise_steps_per_task
            else f"{_informed_by(config.informed)}, then one learner a task for "
            f"{config.specialise_steps_per_task} steps, the better of both, mean action"
        )
        if config.informed is not None:
            details["informed"] = HistoryDataset(config.informed).manifest.digest()
    if "blind" in only:
        best = max(("zero", "random", "blind"), key=lambda name: float(returns[name][val].mean()))
        returns["blind"] = returns[best]
        details["blind_is"] = "a PPO policy trained over all train tasks" if best == "blind" else best
    if {"blind", "oracle"} & set(only):
        details["ppo"] = asdict(config.ppo)
    if "blind" in only:
        details["blind_iterations"] = blind_iterations
    subsets = {"val": val, "test": slice(len(split.val), None)}
    return Anchors(
        env_id=env_id,
        split=split.name,
        split_hash=split.content_hash,
        command=command,
        returns={
            subset: {name: [round(float(r), 4) for r in values[rows]] for name, values in returns.items()}
            for subset, rows in subsets.items()
        },
        details=details,
    )


def _informed_by(directory: str) -> str:
    """Whose learner it is, in words."""
    manifest = HistoryDataset(directory).manifest
    return f"task-informed PPO over {manifest.subset} of split {manifest.split}"


def _oracle(
    config: CollectionConfig, directory: str | Path, tasks: list[Any], low: np.ndarray, high: np.ndarray, quiet: bool
) -> Any:
    """The best known policy of each task: what it sees ``[tasks, episodes, N_s]`` to actions."""
    if config.informed is None:
        return SnapshotPolicies(
            collect(replace(config, subset="val+test"), directory, quiet=quiet).snapshot(), low, high
        ).act
    definition = env_definition(config.env_id)
    vectors = np.stack([definition.task_vector(task) for task in tasks])
    of_all = informed_snapshot(config.ppo, HistoryDataset(config.informed))
    if config.symmetric:
        symmetries, turned = symmetries_of(definition, vectors)
        by_task = turned_back(snapshot_by_task(of_all, turned), symmetries)
    else:
        by_task = snapshot_by_task(of_all, vectors)
    informed = SnapshotPolicies(by_task, low, high)
    if not config.specialise_steps_per_task:
        return informed.act
    learned = collect(replace(config, subset="val+test"), directory, quiet=quiet)
    special = SnapshotPolicies(learned.snapshot(), low, high)
    choosing = config.seed + 2_000_000  # far away: row i is seeded with i more, and those that count are others
    before, after = (
        evaluate_policies(p.act, config.env_id, tasks, choosing, privileged=config.privileged).mean(1)
        for p in (informed, special)
    )
    better = (after >= before)[:, None, None]
    return lambda observations: np.where(better, special.act(observations), informed.act(observations))


def train_blind(config: CollectionConfig, iterations: int, *, quiet: bool = False) -> Any:
    """One PPO learner over all train tasks at once; its policy sees neither task nor reward.

    Returns:
        Observations ``[tasks, episodes, N_o]`` to actions ``[tasks, episodes, A]``.
    """
    definition = env_definition(config.env_id)
    train = task_split(config.env_id, config.split).train
    env = make_rows(config.env_id, train, BLIND_ROWS_PER_TASK)
    space = env.single_action_space
    learner = TaskParallelPPO(
        config.ppo,
        definition.observation_dim,
        int(np.prod(space.shape or ())),
        [learner_seed(config.seed, 0)],
        env.num_envs,
        iterations,
    )
    observations, _ = env.reset(seed=config.seed)
    collector = RolloutCollector(env, learner, observations)
    for _ in track(range(iterations), "blind policy", disable=quiet):
        learner.update(collector.collect()[0])
    policy = SnapshotPolicies(learner.snapshot(), space.low, space.high)  # type: ignore[attr-defined]

    def act(observations: np.ndarray) -> np.ndarray:
        together = torch.as_tensor(observations).flatten(0, 1).numpy()
        return policy.act_as(0, together).reshape(*observations.shape[:2], -1)

    return act


def save_anchors(anchors: Anchors, path: Path) -> None:
    """Write as the JSON that :func:`icrl_agents.envs.load_anchors` reads.

    Raises:
        DatasetError: nothing can be written there.
    """
    with writing(path.parent):
        write_text_atomically(path, json.dumps(asdict(anchors), indent=1) + "\n")

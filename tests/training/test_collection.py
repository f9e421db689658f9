"""Collecting histories: what is recorded happened, and an interrupted collection ends as an uninterrupted one."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from icrl_agents.envs import env_definition, task_split
from icrl_agents.errors import ConfigError, DatasetError, TaskError, UnknownNameError
from icrl_agents.training.collection import (
    CollectionConfig,
    collect,
    collection_manifest,
    evaluate_policies,
    tasks_of_subset,
)
from icrl_agents.training.histories import HistoryDataset, HistoryWriter
from icrl_agents.training.shards import as_half
from icrl_agents.training.sources.consolidation import ConsolidationConfig
from icrl_agents.training.sources.policies import SnapshotPolicies, snapshot_by_task
from icrl_agents.training.sources.ppo import PPOConfig, TaskParallelPPO
from icrl_agents.training.sources.presets import PAPER_SB3, run_collection
from icrl_agents.training.sources.sac import SACConfig, TaskParallelSAC

ENV_ID = "icrl/ReacherGoal-v0"
TINY = CollectionConfig(
    ENV_ID,
    subset="val",
    steps_per_task=600,
    streams=2,
    shard_steps=100,
    snapshots=3,
    ppo=PPOConfig(n_steps=50, hidden=(8,)),
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> HistoryDataset:
    return collect(TINY, tmp_path_factory.mktemp("histories"), quiet=True)


def test_recorded_actions_replayed_give_the_recorded_experience(dataset: HistoryDataset) -> None:
    h = 3
    history = dataset.history(h)
    assert history.actions.shape == (300, 2)
    env = gymnasium.make(ENV_ID, task=dataset.task(h))
    seed = int(np.random.SeedSequence([0, h // 2, h % 2]).generate_state(1)[0])
    observation, _ = env.reset(seed=seed)
    episode = 0
    for t in range(len(history.rewards)):
        np.testing.assert_array_equal(history.observations[t], observation.astype(np.float32))
        observation, reward, terminated, truncated, _ = env.step(history.actions[t])
        assert history.rewards[t] == np.float32(reward)
        assert (history.terminated[t], history.truncated[t]) == (terminated, truncated)
        if terminated or truncated:
            np.testing.assert_array_equal(history.final_observations[episode], observation.astype(np.float32))
            episode += 1
            observation, _ = env.reset()
    assert episode == 6


def test_actions_scatter_around_the_mean(dataset: HistoryDataset) -> None:
    history = dataset.history(0)
    noise = history.actions - history.mean_actions
    assert np.abs(history.actions).max() <= 1
    assert 0.2 < noise.std() < 0.6  # exp(-0.7) = 0.5, clipped by the bounds


def test_interrupted_collection_ends_as_an_uninterrupted_one(dataset: HistoryDataset, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(steps: int) -> None:
        raise Killed

    for _ in range(2):  # two intervals of one shard each, then the rest
        with pytest.raises(Killed):
            collect(TINY, tmp_path, on_shard=kill, quiet=True)
    resumed = collect(TINY, tmp_path, quiet=True)
    assert resumed.manifest == dataset.manifest  # it holds the hash of every file
    resumed.verify()


def test_snapshots_are_policies_of_the_tasks(dataset: HistoryDataset) -> None:
    assert dataset.snapshot_steps == (100, 200, 300)
    policies = SnapshotPolicies(dataset.snapshot(), -np.ones(2, np.float32), np.ones(2, np.float32))
    assert len(policies) == 10
    assert policies.act_as(0, np.zeros((4, 8), np.float32)).shape == (4, 2)


def test_another_collection_in_the_same_folder_is_refused(dataset: HistoryDataset, tmp_path: Path) -> None:
    collect(replace(TINY, steps_per_task=200), tmp_path, quiet=True)
    with pytest.raises(DatasetError, match="seed"):
        collect(replace(TINY, steps_per_task=200, seed=1), tmp_path, quiet=True)


def test_a_collection_that_recorded_nothing_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HistoryWriter, "append", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        collect(TINY, tmp_path, quiet=True)
    monkeypatch.undo()
    assert (tmp_path / "manifest.json").exists()
    made = collect(replace(TINY, steps_per_task=200, seed=1), tmp_path, quiet=True)
    assert (made.manifest.seed, made.manifest.progress.steps) == (1, 100)


@pytest.mark.parametrize("sac", [None, SACConfig(learning_starts=20, hidden=(8,))])
def test_a_learner_that_diverges_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sac: SACConfig | None
) -> None:
    def lost(self: Any, *given: Any) -> torch.Tensor:
        found = whole(self, *given)
        actions = found if isinstance(found, torch.Tensor) else found[0]
        actions[3] = torch.nan
        return found

    cls, name = (TaskParallelPPO, "mean_action") if sac is None else (TaskParallelSAC, "act")
    whole = getattr(cls, name)
    monkeypatch.setattr(cls, name, lost)
    third = task_split(ENV_ID).val[3]["goal"]
    with pytest.raises(ConfigError, match=rf"diverged.*{re.escape(str(third))}.*lower learning_rate"):
        collect(replace(TINY, sac=sac, shard_steps=100), tmp_path, quiet=True)


def test_more_tasks_than_the_splits_own() -> None:
    config = replace(TINY, subset="train+sampled:5", seed=3)
    tasks = collection_manifest(config).tasks
    assert list(tasks[:70]) == list(task_split(ENV_ID).train)
    assert len(tasks) == 75
    everywhere = [json.dumps(task) for task in tasks]
    assert len(set(everywhere)) == 75
    assert collection_manifest(config).tasks == tasks
    assert collection_manifest(replace(config, seed=4)).tasks[70:] != tasks[70:]
    split = task_split(ENV_ID)
    assert not set(everywhere) & {json.dumps(task) for task in (*split.val, *split.test)}
    for subset in ("sampled:", "sampled:0", "sampled:-1", "sampled:x", "sampled"):
        with pytest.raises((ConfigError, UnknownNameError), match="sampled"):
            collection_manifest(replace(config, subset=subset))


def test_each_row_by_its_own_policy() -> None:
    """In one product where the policies share their weights, one after the other where they do not."""
    rng = np.random.default_rng(0)
    alone = TaskParallelPPO(PPOConfig(hidden=(16, 8)), 8, 2, [0, 1, 2], 1, 1).snapshot()
    told = TaskParallelPPO(PPOConfig(hidden=(16, 8)), 10, 2, [0], 3, 1)
    shared = snapshot_by_task(told.snapshot(), rng.uniform(-9, 9, (3, 2)))
    learners, observations = np.array([2, 0, 2, 1, 1]), rng.normal(size=(5, 8)).astype(np.float32)
    for snapshot in (alone, shared):
        policies = SnapshotPolicies(snapshot, -np.ones(2, np.float32), np.ones(2, np.float32))
        of_all = policies.act(np.repeat(observations[None], 3, 0))  # [3, 5, 2]
        expected = of_all[learners, np.arange(5)]
        np.testing.assert_allclose(policies.act_each(learners, observations), expected, atol=1e-6)
        assert policies.act_each(learners[:0], observations[:0]).shape == (0, 2)
        for k in range(3):
            np.testing.assert_allclose(policies.act_as(k, observations), of_all[k], atol=1e-6)
    assert not np.allclose(of_all[0], of_all[1])


@pytest.mark.parametrize(
    "change",
    [{"specialise_steps_per_task": -5}, {"streams": 0}, {"shard_steps": 0}, {"snapshots": 0}, {"seed": 2**63}],
    ids=str,
)
def test_amounts_that_make_no_sense_are_refused(change: dict[str, int], tmp_path: Path) -> None:
    config = replace(TINY, task_informed=True, specialise=TINY.ppo, **change)
    with pytest.raises(ConfigError, match=next(iter(change))):
        collect(config, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_steps_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple"):
        collect(replace(TINY, shard_steps=70), tmp_path, quiet=True)
    with pytest.raises(ConfigError, match="less than one shard"):
        collect(replace(TINY, steps_per_task=10), tmp_path, quiet=True)


@pytest.mark.filterwarnings(
    "ignore:You have specified a mini-batch size of 64"
)  # the paper's 2500 / 64 is no whole number
@pytest.mark.parametrize("source", ["sb3-ppo", "sb3-sac"])
def test_sb3_run_through_the_same_recorder(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {**PAPER_SB3[source], "policy_kwargs": {"net_arch": [8]}}  # as they are, SAC's networks take minutes
    monkeypatch.setitem(PAPER_SB3, source, small)  # type: ignore[arg-type]
    dataset = run_collection(
        ENV_ID,
        tmp_path,
        preset="paper",
        source=source,
        task=2,
        steps_per_task=5_000,
        subset="val",
        quiet=True,
    )
    assert len(dataset) == 5
    assert dataset.manifest.progress.steps == 1000
    assert "gae_lambda" in dataset.manifest.hyperparameters or "tau" in dataset.manifest.hyperparameters
    history = dataset.history(4)
    env = gymnasium.make(ENV_ID, task=dataset.task(4))
    env.reset()
    for t in range(200):  # the physics is deterministic: the next observation follows from state and action
        if t % 50 == 0:
            cosine, sine = history.observations[t, :2], history.observations[t, 2:4]
            assert np.allclose(cosine**2 + sine**2, 1, atol=1e-6)
        assert history.truncated[t] == (t % 50 == 49)
    distance = np.hypot(*(history.observations[1:50, 6:8] - dataset.task(4)["goal"]).T)
    effort = np.square(history.actions[:49]).sum(1)
    np.testing.assert_allclose(history.rewards[:49], -distance - effort, atol=1e-3)
    with pytest.raises(TaskError, match="0 to 9"):
        run_collection(ENV_ID, tmp_path / "other", source=source, task=10, subset="val", quiet=True)
    with pytest.raises(UnknownNameError, match="sb3-sac"):
        run_collection(ENV_ID, tmp_path / "other", source="sb3-ddpg")


def test_task_informed_source_is_stored_as_one_policy_a_task(tmp_path: Path) -> None:
    config = replace(TINY, task_informed=True, ppo=replace(TINY.ppo, n_epochs=2))
    dataset = collect(config, tmp_path, quiet=True)
    assert dataset.manifest.source == "task-informed PPO"
    policies = SnapshotPolicies(dataset.snapshot(), -np.ones(2, np.float32), np.ones(2, np.float32))
    assert len(policies) == 10
    same = np.zeros((10, 1, 8), np.float32)
    assert len(np.unique(policies.act(same)[:, 0, 0])) == 10  # one network, told ten different tasks


def test_a_task_folded_into_the_bias_acts_as_if_it_were_seen() -> None:
    rng = np.random.default_rng(0)
    tasks = rng.uniform(-0.2, 0.2, (3, 2))
    learner = TaskParallelPPO(PPOConfig(hidden=(16,)), 10, 2, [0], 3, 1)
    observations = rng.normal(size=(3, 8)).astype(np.float32)
    seen = np.concatenate([observations, tasks], 1, dtype=np.float32)
    learner.observation_moments.update(torch.from_numpy(seen[None]))
    expected = learner.mean_action(torch.from_numpy(seen[None]))[0].clamp(-1, 1).numpy()
    by_task = SnapshotPolicies(snapshot_by_task(learner.snapshot(), tasks), -np.ones(2), np.ones(2))
    np.testing.assert_allclose(by_task.act(observations[:, None])[:, 0], expected, atol=1e-5)


SPECIAL = replace(
    TINY,
    steps_per_task=400,
    task_informed=True,
    specialise_steps_per_task=400,
    specialise=PPOConfig(n_steps=50, hidden=(8,), log_std_init=0.0),
)


@pytest.fixture(scope="module")
def specialised(tmp_path_factory: pytest.TempPathFactory) -> HistoryDataset:
    return collect(SPECIAL, tmp_path_factory.mktemp("specialised") / "data", quiet=True)


def test_specialised_learners_begin_as_the_informed_one(specialised: HistoryDataset) -> None:
    tasks = specialised.manifest.tasks
    vectors = np.array([task["goal"] for task in tasks])
    informed = TaskParallelPPO(SPECIAL.ppo, 10, 2, [0], 2 * len(tasks), 1)
    informed.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in specialised.learner().items()})
    assert SPECIAL.specialise is not None
    special = informed.specialised(SPECIAL.specialise, vectors, list(range(len(tasks))), 1)
    observations = torch.randn(len(tasks), 2, 8)
    told = torch.cat([observations, torch.from_numpy(vectors).float()[:, None].expand(-1, 2, -1)], -1).flatten(0, 1)
    torch.testing.assert_close(special.mean_action(observations).flatten(0, 1), informed.mean_action(told[None])[0])
    torch.testing.assert_close(
        special.critic(special._normalized(observations)).flatten(0, 1),
        informed.critic(informed._normalized(told[None]))[0],
    )
    assert (special.std() == 1).all()
    assert (informed.std() < 0.9).all()  # the noise begins anew
    with pytest.raises(ConfigError, match="as wide"):
        informed.specialised(PPOConfig(hidden=(9,)), vectors, list(range(len(tasks))), 1)


def test_specialising_is_interrupted_and_goes_on(specialised: HistoryDataset, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(steps: int) -> None:
        raise Killed

    for _ in range(3):  # before, at and after the moment when they specialise
        with pytest.raises(Killed):
            collect(SPECIAL, tmp_path, on_shard=kill, quiet=True)
    assert collect(SPECIAL, tmp_path, quiet=True).manifest == specialised.manifest
    first, last = specialised.snapshot(0), specialised.snapshot()
    assert (first["weight_1"] == first["weight_1"][:1]).all()
    assert (last["weight_1"] != last["weight_1"][:1]).any()


def test_specialised_policies_are_consolidated(specialised: HistoryDataset, tmp_path: Path) -> None:
    config = replace(SPECIAL, consolidate=ConsolidationConfig(rounds=3, n_steps=25))
    made = collect(config, tmp_path / "data", quiet=True)
    assert made.snapshot_steps == (*specialised.snapshot_steps, config.steps + 1)
    one, many = made.snapshot(), made.snapshot(-2)
    for name, tensor in specialised.snapshot().items():
        np.testing.assert_array_equal(many[name], tensor)
    assert (one["weight_0"] == one["weight_0"][:1]).all()  # tasks differ by a bias, as of a policy that is told them
    assert (one["bias_0"] != one["bias_0"][:1]).any()
    informed = TaskParallelPPO(SPECIAL.ppo, 10, 2, [0], 20, 1)
    informed.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in made.learner().items()})
    assert (one["weight_1"][:1] != as_half(np.asarray(informed.snapshot()["weight_1"])).astype(np.float32)).any()
    policies = SnapshotPolicies(one, -np.ones(2, np.float32), np.ones(2, np.float32))
    returns = evaluate_policies(policies.act, ENV_ID, list(made.manifest.tasks), config.seed).mean(1)
    assert made.manifest.progress.final_returns == tuple(returns.tolist())  # of what is stored


def test_consolidating_is_interrupted_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(SPECIAL, consolidate=ConsolidationConfig(rounds=3, n_steps=10))
    whole = collect(config, tmp_path / "whole", quiet=True)
    finish = HistoryWriter.finish
    monkeypatch.setattr(HistoryWriter, "finish", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # its snapshot is written, and not committed
        collect(config, tmp_path / "killed", quiet=True)
    monkeypatch.setattr(HistoryWriter, "finish", finish)
    assert collect(config, tmp_path / "killed", quiet=True).manifest == whole.manifest
    with pytest.raises(ConfigError, match="that had specialised"):
        collect(replace(TINY, consolidate=config.consolidate), tmp_path / "no", quiet=True)
    for wrong in ({"rounds": -1}, {"n_steps": 0}, {"learning_rate": 0.0}, {"teacher_fraction": 1.5}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ConsolidationConfig(**wrong)  # type: ignore[arg-type]


def test_the_learner_of_one_dataset_is_specialised_in_another(specialised: HistoryDataset, tmp_path: Path) -> None:
    parent = str(specialised._directory)
    config = replace(SPECIAL, steps_per_task=0, informed=parent, subset="test", seed=1)
    other = collect(config, tmp_path, quiet=True)
    assert other.snapshot_steps == (50, 100, 150, 200)
    assert other.manifest.hyperparameters["informed"] == specialised.manifest.digest()
    with pytest.raises(DatasetError, match="holds no learner"):
        other.learner()
    with pytest.raises(ConfigError, match="specialise from one task-informed"):
        collect(replace(config, task_informed=False), tmp_path / "no", quiet=True)
    with pytest.raises(ConfigError, match="as many steps as the informed one's 50, got 70"):
        collect(replace(config, specialise=replace(SPECIAL.ppo, n_steps=70)), tmp_path / "no", quiet=True)
    wide = replace(SPECIAL.ppo, hidden=(9,))
    with pytest.raises(ConfigError, match=r"as wide as the informed one's .* got \(9,\)"):
        collect(replace(config, specialise=wide), tmp_path / "no", quiet=True)
    with pytest.raises(ConfigError, match=r"'hidden': \[9\]"):
        collect(replace(config, ppo=wide, specialise=wide), tmp_path / "no", quiet=True)
    assert not (tmp_path / "no").exists()


def test_one_task_is_specialised_as_well(tmp_path: Path) -> None:
    config = replace(SPECIAL, subset="sampled:1")
    dataset = collect(config, tmp_path, quiet=True)
    first, last = dataset.snapshot(0), dataset.snapshot()
    assert last["weight_0"].shape == first["weight_0"].shape
    assert np.isfinite(dataset.manifest.progress.final_returns).all()


def test_sampled_tasks_are_none_that_are_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there are few different tasks."""
    split = task_split(ENV_ID)
    few = [*split.val[:2], *split.train[:3]]
    monkeypatch.setattr(type(env_definition(ENV_ID)), "sample_task", lambda self, rng: few[int(rng.integers(len(few)))])
    tasks = tasks_of_subset(split, "train+sampled:9", seed=0)
    assert len(tasks) == 70 + 9
    assert not any(task in split.val for task in tasks)
    del few[2:]
    with pytest.raises(ConfigError, match=r"gave 0 that split 'paper' does not hold out .* expected 9"):
        tasks_of_subset(split, "sampled:9", seed=0)
    with pytest.raises(ConfigError, match="sampled once"):
        tasks_of_subset(split, "sampled:5+sampled:5", seed=0)

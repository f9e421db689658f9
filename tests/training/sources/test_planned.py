"""Plans of the best reaches against MuJoCo, and the teacher that is drawn to them."""

from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl_agents.envs import load_anchors, task_split
from icrl_agents.errors import ConfigError, DatasetError, UnknownNameError
from icrl_agents.training.collection import CollectionConfig, evaluate_policies, make_rows
from icrl_agents.training.histories import HistoryDataset
from icrl_agents.training.regeneration import RegenerationConfig, regenerate
from icrl_agents.training.sources.planned import PlannedConfig, collect_planned, draw_to_plans
from icrl_agents.training.sources.policies import SnapshotPolicies, snapshot_by_task
from icrl_agents.training.sources.presets import run_collection
from icrl_agents.training.sources.reach_planner import STEPS, observe_arm, plan, step_arm

ENV_ID = "icrl/ReacherGoal-v0"
TINY = PlannedConfig(rounds=2, plans=60, updates=20, batch_size=256, hidden=(16, 16))
COLLECTION = CollectionConfig(ENV_ID, subset="train", steps_per_task=100, streams=2, shard_steps=50)


def lived(goals: np.ndarray, seed: int, torques: np.ndarray | None = None):
    """Angles and speeds that episodes begin with, and what MuJoCo makes of torques: returns and observations."""
    env = gymnasium.make_vec(ENV_ID, num_envs=len(goals), tasks=[{"goal": goal.tolist()} for goal in goals])
    first, _ = env.reset(seed=seed)
    angles, speeds = np.arctan2(first[:, 2:4], first[:, :2]), first[:, 4:6]
    returns, seen = np.zeros(len(goals)), [first.copy()]
    for t in range(STEPS if torques is not None else 0):
        observations, rewards, *_ = env.step(torques[:, t].astype(np.float32))
        returns += rewards
        seen.append(observations.copy())
    env.close()
    return angles, speeds, returns, np.stack(seen, 1)


def some_goals(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    radius, turn = 0.2 * rng.random(count), 2 * np.pi * rng.random(count)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn)], 1)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_mujoco_pays_what_a_plan_promises(seed: int) -> None:
    goals = some_goals(8, seed)
    angles, speeds, *_ = lived(goals, seed)
    plans = plan(angles, speeds, goals)
    assert np.abs(plans.torques).max() <= 1
    _, _, returns, seen = lived(goals, seed, plans.torques)
    np.testing.assert_allclose(returns, plans.returns, atol=0.02)
    np.testing.assert_allclose(observe_arm(plans.angles, plans.speeds), seen[:, :-1], atol=0.05)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_the_arm_moves_as_in_mujoco(seed: int) -> None:
    torques = np.random.default_rng(seed).uniform(-0.1, 0.1, (4, STEPS, 2))
    angles, speeds, _, seen = lived(some_goals(4, seed), seed, torques)
    for t in range(10):
        np.testing.assert_allclose(observe_arm(angles, speeds), seen[:, t], atol=0.02)
        angles, speeds = step_arm(angles, speeds, torques[:, t])


def test_no_small_change_makes_a_plan_better() -> None:
    goals, rng = some_goals(6, 1), np.random.default_rng(2)
    angles, speeds, *_ = lived(goals, 3)
    plans = plan(angles, speeds, goals, iterations=80)
    for size in (1e-3, 1e-2):
        for _ in range(5):
            change = size * rng.standard_normal(plans.torques.shape)
            both = [lived(goals, 3, plans.torques + sign * change)[2] for sign in (-1, 1)]
            assert (np.max(both, 0) < plans.returns + 0.02).all()


def test_plans_are_better_than_the_oracles_that_learned() -> None:
    """Those are PPO with 200,000 steps on each goal alone; initial states differ, so only the mean is compared."""
    goals = np.array([task["goal"] for task in task_split(ENV_ID).val])
    returns = [plan(*lived(goals, seed)[:2], goals).returns for seed in range(6)]
    assert np.mean(returns) > np.mean(load_anchors(ENV_ID, "paper").of("val")["oracle"])


def test_a_plan_depends_on_no_other() -> None:
    goals = some_goals(120, 4)  # more than are solved at a time
    angles, speeds = np.zeros((2, 120, 2))
    together = plan(angles, speeds, goals, iterations=8)
    for part in (slice(0, 3), slice(100, 120)):
        alone = plan(angles[part], speeds[part], goals[part], iterations=8)
        np.testing.assert_allclose(together.returns[part], alone.returns, atol=1e-6)


def test_a_policy_learns_to_reach() -> None:
    """Goals that it was not trained on, after seconds: far better than who is blind, -8."""
    split = task_split(ENV_ID)
    train, val = (np.array([task["goal"] for task in tasks], np.float32) for tasks in (split.train, split.val))
    errors: list[tuple[int, float]] = []
    config = replace(TINY, plans=300, updates=300, hidden=(64, 64))
    one = draw_to_plans(config, train, 0, on_round=lambda *told: errors.append(told))
    assert [number for number, _ in errors] == [1, 2]
    policies = SnapshotPolicies(snapshot_by_task(one, val), np.full(2, -1.0), np.full(2, 1.0))
    assert evaluate_policies(policies.act, ENV_ID, list(split.val), 0, 5).mean() > -5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> HistoryDataset:
    return collect_planned(TINY, COLLECTION, tmp_path_factory.mktemp("planned"), quiet=True)


def test_it_is_a_dataset_like_others(dataset: HistoryDataset) -> None:
    manifest = dataset.manifest
    assert (manifest.source, manifest.progress.complete, dataset.snapshot_steps) == ("planned policy", True, (50,))
    assert manifest.hyperparameters["plans"] == 60
    assert len(dataset) == 140
    space = make_rows(ENV_ID, manifest.tasks[:1], 1).single_action_space
    policies = SnapshotPolicies(dataset.snapshot(), space.low, space.high)  # type: ignore[attr-defined]
    returns = evaluate_policies(policies.act, ENV_ID, list(manifest.tasks), COLLECTION.seed).mean(1)
    np.testing.assert_allclose(manifest.progress.final_returns, returns)
    history = dataset.history(3)
    acted = policies.act_as(1, history.observations)  # stored in half precision, as the policy was not when it acted
    np.testing.assert_allclose(history.actions, acted, atol=0.01)
    np.testing.assert_array_equal(history.actions, history.mean_actions)


def test_the_seed_decides(dataset: HistoryDataset, tmp_path: Path) -> None:
    again = collect_planned(TINY, COLLECTION, tmp_path / "again", quiet=True)
    other = collect_planned(TINY, replace(COLLECTION, seed=1), tmp_path / "other", quiet=True)
    for name, tensor in dataset.snapshot().items():
        np.testing.assert_array_equal(again.snapshot()[name], tensor)
    assert np.abs(other.snapshot()["weight_1"] - dataset.snapshot()["weight_1"]).max() > 0.01


def test_what_is_complete_stays(dataset: HistoryDataset) -> None:
    before = dataset.manifest
    assert collect_planned(TINY, COLLECTION, dataset._directory, quiet=True).manifest == before
    with pytest.raises(DatasetError, match="another collection"):
        collect_planned(replace(TINY, plans=61), COLLECTION, dataset._directory, quiet=True)


def test_an_interrupted_one_begins_again(dataset: HistoryDataset, tmp_path: Path, monkeypatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("icrl_agents.training.sources.planned._episodes", interrupt)
        with pytest.raises(KeyboardInterrupt):
            collect_planned(TINY, COLLECTION, tmp_path, quiet=True)
    again = collect_planned(TINY, COLLECTION, tmp_path, quiet=True)
    assert again.manifest.progress.final_returns == dataset.manifest.progress.final_returns


def test_it_can_do_other_goals(dataset: HistoryDataset, tmp_path: Path) -> None:
    made = regenerate(
        dataset._directory, tmp_path, RegenerationConfig(noise="none", sampled_tasks=3, streams=1), quiet=True
    )
    assert len(made.manifest.tasks) == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"env_id": "icrl/AntDir-v0"}, UnknownNameError, "environment with a planned source"),
        ({"jobs": 2}, ConfigError, "planned learns all tasks in one"),
        ({"task": 3}, ConfigError, "planned learns all of the subset"),
        ({"device": "cuda"}, ConfigError, "planned learns on the CPU"),
        ({"consolidate": 3}, ConfigError, "planned has none"),
        ({"steps_per_task": 10}, ConfigError, "less than one shard"),
        ({"seed": -1}, ConfigError, "at least 0"),
    ],
)
def test_what_cannot_be_is_refused(options: dict, error: type, message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        run_collection(directory=tmp_path / "out", source="planned", quiet=True, **{"env_id": ENV_ID} | options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        *({name: 0} for name in ("rounds", "plans", "updates", "batch_size", "learning_rate")),
        *({"wild": 1.5}, {"wrong_goal": -0.1}, {"noise": ()}, {"noise": (-1.0,)}),
    ],
)
def test_settings_that_cannot_be(options: dict) -> None:
    with pytest.raises(ConfigError):
        PlannedConfig(**options)

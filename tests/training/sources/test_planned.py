"""Plans of the best reaches against MuJoCo, and the teacher that is drawn to them."""

from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl_agents.envs import load_anchors, task_split
from icrl_agents.errors import ConfigError, DatasetError, UnknownNameError
from icrl_agents.training.collection import CollectionConfig, evaluate_policies, make_rows
from icrl_agents.training.histories import HistoryDataset
from icrl_agents.training.regeneration import RegenerationConfig, regenerate
from icrl_agents.training.sources import planned, reach_planner
from icrl_agents.training.sources.planned import PlannedConfig, collect_planned, draw_to_plans
from icrl_agents.training.sources.policies import SnapshotPolicies, snapshot_by_task
from icrl_agents.training.sources.presets import run_collection
from icrl_agents.training.sources.reach_planner import BENT, STEPS, observe_arm, plan, step_arm

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
    np.testing.assert_allclose(observe_arm(plans.angles, plans.speeds), seen[:, :-1], atol=0.02)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_the_arm_moves_as_in_mujoco(seed: int) -> None:
    torques = np.random.default_rng(seed).uniform(-0.1, 0.1, (4, STEPS, 2))
    angles, speeds, _, seen = lived(some_goals(4, seed), seed, torques)
    for t in range(10):
        np.testing.assert_allclose(observe_arm(angles, speeds), seen[:, t], atol=0.02)
        angles, speeds = step_arm(angles, speeds, torques[:, t])


@pytest.mark.parametrize("radius", [1e-3, 0.03])
def test_derivatives_are_those_of_the_cost(radius: float) -> None:
    rng = np.random.default_rng(0)
    torques, start, speeds, goals = (
        torch.from_numpy(rng.normal(0, size, shape))
        for size, shape in ((0.05, (6, 2, STEPS)), (0.5, (6, 2)), (0.1, (6, 2)), (0.1, (6, 2)))
    )
    at = torch.complex(*goals.T)
    by_hand = reach_planner._cost(torques, start, speeds, at, radius)[1] @ reach_planner._OF_TORQUES + 2 * torques
    torques.requires_grad_()
    reach_planner._cost(torques, start, speeds, at, radius)[0].sum().backward()
    torch.testing.assert_close(by_hand, torques.grad)


def test_more_iterations_find_little_more() -> None:
    """Near the base, where reaches are hardest; elsewhere they find nothing."""
    for scale, most, mean in ((1.0, 1e-3, 1e-4), (0.25, 0.02, 0.002)):
        goals = scale * some_goals(40, 1)
        angles, speeds, *_ = lived(goals, 3)
        found, best = (plan(angles, speeds, goals, iterations=iterations).returns for iterations in (50, 160))
        assert (best - found).max() < most
        assert (best - found).mean() < mean


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
    told: list[tuple[int, str]] = []
    config = replace(TINY, plans=300, updates=300, hidden=(64, 64))
    one = draw_to_plans(config, train, 0, on_progress=lambda *now: told.append(now))
    assert [done for done, _ in told] == [0, *range(30, 301, 30), 300, *range(330, 601, 30)]
    assert [doing for _, doing in told if "squared error" not in doing] == ["planning 300 episodes"] * 2
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


class Interruption(Exception):
    pass


def interrupted(monkeypatch, directory: Path, function: str, call: int) -> None:
    """A collection that ends as that call of one of its functions begins."""
    calls, original = [0], getattr(planned, function)

    def until(*args: object) -> object:
        calls[0] += 1
        if calls[0] == call:
            raise Interruption
        return original(*args)

    with monkeypatch.context() as patched:
        patched.setattr(planned, function, until)
        with pytest.raises(Interruption):
            collect_planned(TINY, COLLECTION, directory, quiet=True)


def test_an_interrupted_one_goes_on(dataset: HistoryDataset, tmp_path: Path, monkeypatch) -> None:
    interrupted(monkeypatch, tmp_path, "plan", 2)  # in the second round
    assert [path.name for path in tmp_path.glob("state-*")] == ["state-00000.safetensors"]
    interrupted(monkeypatch, tmp_path, "_episodes", 1)  # once it is drawn
    assert [path.name for path in tmp_path.glob("state-*")] == ["state-00001.safetensors"]
    interrupted(monkeypatch, tmp_path, "evaluate_policies", 1)  # once that is recorded
    again = collect_planned(TINY, COLLECTION, tmp_path, quiet=True)
    assert again.manifest == dataset.manifest  # checksums of all files among it
    assert not list(tmp_path.glob("state-*"))


def test_a_damaged_state_is_refused(tmp_path: Path, monkeypatch) -> None:
    interrupted(monkeypatch, tmp_path, "plan", 2)
    (tmp_path / "state-00000.safetensors").write_bytes(b"no state")
    with pytest.raises(DatasetError, match="damaged"):
        collect_planned(TINY, COLLECTION, tmp_path, quiet=True)


def test_it_can_do_other_goals(dataset: HistoryDataset, tmp_path: Path) -> None:
    made = regenerate(
        dataset._directory, tmp_path, RegenerationConfig(noise="none", sampled_tasks=3, streams=1), quiet=True
    )
    assert len(made.manifest.tasks) == 3
    with pytest.raises(DatasetError, match="do not tell how widely"):
        regenerate(dataset._directory, tmp_path / "other", RegenerationConfig(), quiet=True)
    assert not (tmp_path / "other").exists()


def test_where_plans_begin() -> None:
    rng, config = np.random.default_rng(0), PlannedConfig(plans=4_000, wild=0.3)
    train = some_goals(5, 1)
    goals = planned._drawn_goals(train, 4_000, rng)
    assert sum((goals == goal).all(1).sum() for goal in train) == 2_000
    others = np.hypot(*goals[1::2].T)
    assert others.max() < 0.2
    assert (others < 0.05).mean() == pytest.approx((1 / 4 + 1 / 16) / 2, abs=0.02)
    angles, speeds = planned._anywhere(config, rng)
    assert ((np.abs(angles) > 0.1) | (np.abs(speeds) > 0.005)).any(1).sum() == 1_200
    told: list[np.ndarray] = []

    def act(angles: np.ndarray, speeds: np.ndarray, of: np.ndarray) -> np.ndarray:
        told.append(of)
        return np.full((len(of), 2), 0.2)  # until the elbow is as bent as it can be

    angles, speeds = planned._visited(replace(config, noise=(0.0,)), act, goals, rng)
    right = (told[0] == goals).all(1).mean()
    assert 0.75 <= right < 0.8  # of the wrong ones some have the same training goal
    assert (np.abs(angles) <= [np.pi, BENT]).all()
    assert (speeds[angles[:, 1] == BENT, 1] == 0).all()
    assert (angles[:, 1] == BENT).mean() > 0.3


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
        *(
            {"wild": 1.5},
            {"wrong_goal": -0.1},
            {"noise": ()},
            {"noise": (-1.0,)},
            {"noise": (0.0, np.nan)},
            {"learning_rate": np.inf},
            {"hidden": (0,)},
        ),
    ],
)
def test_settings_that_cannot_be(options: dict) -> None:
    with pytest.raises(ConfigError):
        PlannedConfig(**options)

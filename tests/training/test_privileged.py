"""What an environment calls privileged: teachers see it, agents and what is stored do not."""

from dataclasses import replace
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

from icrl_agents.envs import MetaVectorEnv, env_definition
from icrl_agents.envs.pusher_goal import PusherGoalDefinition
from icrl_agents.errors import ConfigError
from icrl_agents.model import InContextModel
from icrl_agents.training.collection import CollectionConfig, collect, evaluate_policies, make_rows
from icrl_agents.training.distillation import DistillationConfig, agent_config
from icrl_agents.training.histories import HistoryDataset
from icrl_agents.training.on_policy import OnPolicyConfig, OnPolicySampler
from icrl_agents.training.pipeline import run_training
from icrl_agents.training.regeneration import RegenerationConfig, regenerate
from icrl_agents.training.sources.consolidation import ConsolidationConfig
from icrl_agents.training.sources.policies import SnapshotPolicies
from icrl_agents.training.sources.ppo import PPOConfig, TaskParallelPPO
from icrl_agents.training.sources.rollouts import RolloutCollector
from icrl_agents.training.sources.sac import SACConfig

ENV_ID = "icrl/PusherGoal-v0"
TASKS = [{"object": [-0.2, -0.15], "goal": [0.1, -0.05]}, {"object": [0.2, -0.1], "goal": [-0.05, 0.0]}]
LOW, HIGH = -2 * np.ones(7, np.float32), 2 * np.ones(7, np.float32)
TINY = CollectionConfig(
    ENV_ID,
    subset="val",
    steps_per_task=400,
    streams=2,
    shard_steps=100,
    snapshots=2,
    task_informed=True,
    privileged=True,
    ppo=PPOConfig(n_steps=50, hidden=(8,), log_std_init=0.5),
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> HistoryDataset:
    return collect(TINY, tmp_path_factory.mktemp("privileged"), quiet=True)


@pytest.fixture
def moving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained arms hit nothing: let something be privileged that moves by itself."""
    monkeypatch.setattr(PusherGoalDefinition, "privileged", lambda self, state: 3 * state.qvel[:, :2])


def push(env: MetaVectorEnv) -> None:
    """Let the objects slide as if hit."""
    state = env.get_state()
    state["qvel"][:, -4:-2] = 1.0
    env.set_state(state)


def objects(env: MetaVectorEnv) -> np.ndarray:
    """Where MuJoCo has the objects of the rows, ``[n, 2]`` in m from v5's goal in the world."""
    data = mujoco.MjData(env._model)
    places = []
    for qpos in env.get_state()["qpos"]:
        data.qpos[:] = qpos
        mujoco.mj_forward(env._model, data)
        places.append(data.body("object").xpos[:2] - (0.45, -0.05))
    return np.array(places)


def test_pusher_tells_where_the_object_is_now() -> None:
    env = make_rows(ENV_ID, TASKS, 1)
    env.reset(seed=0)
    np.testing.assert_allclose(env.privileged, [task["object"] for task in TASKS], atol=1e-12)
    push(env)
    for _ in range(99):
        env.step(np.zeros((2, 7)))
    np.testing.assert_allclose(env.privileged, objects(env), atol=1e-12)
    np.testing.assert_array_equal(env.following_privileged, env.privileged)
    assert np.abs(env.privileged - [task["object"] for task in TASKS]).min() > 0.01
    env.step(np.zeros((2, 7)))  # the last step
    np.testing.assert_allclose(env.privileged, [task["object"] for task in TASKS], atol=1e-12)
    assert np.abs(env.following_privileged - env.privileged).min() > 0.01


@pytest.mark.parametrize("env_id", sorted(e for e in gymnasium.registry if e.startswith("icrl/")))
def test_every_environment_says_how_much_it_calls_privileged(env_id: str) -> None:
    env = gymnasium.make_vec(env_id, num_envs=2).unwrapped
    assert isinstance(env, MetaVectorEnv)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    for values in (env.privileged, env.following_privileged):
        assert values.shape == (2, env_definition(env_id).privileged_dim)
        assert np.isfinite(values).all()


def test_where_only_it_is_not_finite_the_simulation_diverged(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_rows(ENV_ID, TASKS, 1)
    env.reset(seed=0)
    step = env._batch.step

    def spoil(**options: int) -> None:
        step(**options)
        env._state.qpos[1, -4] = np.nan  # in the last substep: neither observation nor reward shows it

    monkeypatch.setattr(env._batch, "step", spoil)
    _, _, terminated, _, info = env.step(np.zeros((2, 7)))
    assert terminated.tolist() == info["diverged"].tolist() == [False, True]
    for values in (env.privileged, env.following_privileged):
        np.testing.assert_allclose(values, [task["object"] for task in TASKS], atol=1e-12)


def test_a_roll_out_has_it_between_observation_and_task() -> None:
    env = make_rows(ENV_ID, TASKS, 1)
    observations, _ = env.reset(seed=0)
    push(env)
    tasks = np.array([[*task["object"], *task["goal"]] for task in TASKS])
    learner = TaskParallelPPO(replace(TINY.ppo, n_steps=120), 17 + 2 + 4, 7, [0], 2, 1)
    rollout, recording = RolloutCollector(env, learner, observations, tasks, privileged=True).collect()
    now, following = (x[0].numpy() for x in (rollout.observations, rollout.next_observations))
    starts = np.float32(tasks[:, :2])
    np.testing.assert_array_equal(now[..., 19:], np.broadcast_to(np.float32(tasks)[:, None], (2, 120, 4)))
    np.testing.assert_array_equal(now[..., :17], recording.arrays["observations"])
    np.testing.assert_array_equal(now[:, 0, 17:19], starts)
    np.testing.assert_array_equal(now[:, 100, 17:19], starts)  # the second episode
    within = np.r_[0:99, 100:119]
    np.testing.assert_array_equal(following[:, within], now[:, within + 1])
    # What follows an episode's last step is of that episode
    np.testing.assert_allclose(following[:, 99, 17:19], now[:, 99, 17:19], atol=0.1)
    assert np.abs(following[:, 99, 17:19] - starts).min() > 0.01


def test_policies_are_told_it_and_histories_hold_observations_alone(dataset: HistoryDataset) -> None:
    assert dataset.manifest.hyperparameters["privileged"] is True
    assert dataset.history(0).observations.shape[1] == 17
    policies = SnapshotPolicies(dataset.snapshot(), LOW, HIGH)
    assert policies.seen_dim == 19
    tasks = list(dataset.manifest.tasks)
    returns = evaluate_policies(policies.act, ENV_ID, tasks, TINY.seed, privileged=True).mean(1)
    np.testing.assert_allclose(dataset.manifest.progress.final_returns, returns)


def test_specialised_learners_go_on_seeing_it(tmp_path: Path) -> None:
    config = replace(TINY, specialise_steps_per_task=200, specialise=TINY.ppo)
    policies = SnapshotPolicies(collect(config, tmp_path / "many", quiet=True).snapshot(), LOW, HIGH)
    assert policies.seen_dim == 19
    config = replace(config, consolidate=ConsolidationConfig(rounds=2, n_steps=10))
    one = collect(config, tmp_path / "one", quiet=True).snapshot()
    assert SnapshotPolicies(one, LOW, HIGH).seen_dim == 19
    assert (one["weight_0"] == one["weight_0"][:1]).all()


@pytest.mark.usefixtures("moving")
def test_snapshots_that_are_told_it_make_histories(dataset: HistoryDataset, tmp_path: Path) -> None:
    config = RegenerationConfig(policy="final", noise="none", steps=100, streams=1, shard_steps=50)
    made = regenerate(dataset._directory, tmp_path, config, quiet=True)
    histories = [made.history(h) for h in range(len(made))]
    policies = SnapshotPolicies(dataset.snapshot(), LOW, HIGH)
    env = make_rows(ENV_ID, made.manifest.tasks, 1)
    env.reset(seed=[int(np.random.SeedSequence([0, 0, k, 0]).generate_state(1)[0]) for k in range(len(made))])
    for t in range(100):  # replayed, to see what the policies were told
        observations = np.stack([history.observations[t] for history in histories])
        seen = np.concatenate([observations, env.privileged], 1, dtype=np.float32)
        actions = np.stack([history.actions[t] for history in histories])
        np.testing.assert_allclose(actions, policies.act(seen[:, None])[:, 0], atol=1e-5)
        env.step(actions)
    assert histories[0].observations.shape == (100, 17)


class Telling:
    """Teachers whose actions are what they are told, again and again."""

    seen_dim = 19

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def act(self, observations: np.ndarray) -> np.ndarray:
        return np.tile(observations[..., 17:19], 4)[..., :7]

    def act_each(self, learners: np.ndarray, observations: np.ndarray) -> np.ndarray:
        return self.act(observations)


def distillation(dataset: HistoryDataset) -> DistillationConfig:
    return DistillationConfig(
        name="tiny",
        env_id=ENV_ID,
        backbone="mamba",
        backbone_options={"d_model": 8, "n_layers": 1, "d_state": 4},
        episodes=1,
        target="final_policy",
        val_fraction=0.0,
        on_policy=OnPolicyConfig(round_updates=1, short_fraction=0.0, teacher=(0.0,), noise=(0.3,)),
    )


@pytest.mark.usefixtures("moving")
def test_labels_are_of_teachers_that_are_told_it_and_students_are_not(dataset: HistoryDataset, tmp_path: Path) -> None:
    config = distillation(dataset)
    assert config.on_policy is not None
    student = agent_config(config, dataset.manifest)
    torch.manual_seed(0)
    model = InContextModel(student.model)
    sampler = OnPolicySampler(
        config.on_policy,
        dataset.manifest,
        student,
        Telling(len(dataset.manifest.tasks)),
        tmp_path,
        updates=1,
        batch_size=2,
        episodes=1,
        seed=7,
    )
    env = sampler._env
    told: list[np.ndarray] = []
    step = env.step

    def watched(actions: np.ndarray):  # type: ignore[no-untyped-def]
        told.append(env.privileged)
        return step(actions)

    env.step = watched  # type: ignore[method-assign]
    assert sampler.prepare(1, model)
    assert sampler.sample().tokens.shape[2] == model.layout.size
    labels = sampler._kept[0]["targets"]
    np.testing.assert_allclose(labels[..., :2], np.stack(told, 1), atol=1e-6)


def test_what_does_not_go_together_is_refused(
    dataset: HistoryDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for config, message in (
        (replace(TINY, env_id="icrl/ReacherGoal-v0"), "calls nothing privileged"),
        (replace(TINY, task_informed=False), "of a task-informed PPO"),
        (replace(TINY, sac=SACConfig()), "of a task-informed PPO"),
        (
            replace(TINY, privileged=False, informed=str(dataset._directory)),
            "'privileged': True, .* this has .*'privileged': False",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            collect(config, tmp_path / "no", quiet=True)
    with pytest.raises(ConfigError, match="saw what histories do not hold"):
        run_training(ENV_ID, dataset._directory, tmp_path / "run", target="final_policy", quiet=True)
    teachers = Telling(len(dataset.manifest.tasks))
    teachers.seen_dim = 18
    config = distillation(dataset)
    assert config.on_policy is not None
    with pytest.raises(ConfigError, match="see 18 entries; icrl/PusherGoal-v0 shows 17, and 2 that are privileged"):
        OnPolicySampler(
            config.on_policy,
            dataset.manifest,
            agent_config(config, dataset.manifest),
            teachers,
            tmp_path,
            updates=1,
            batch_size=1,
            episodes=1,
            seed=0,
        )
    monkeypatch.setattr(PusherGoalDefinition, "privileged_dim", 3)
    with pytest.raises(ConfigError, match="see 19 entries; icrl/PusherGoal-v0 shows 17, and 3 that are privileged"):
        regenerate(dataset._directory, tmp_path / "made", RegenerationConfig(), quiet=True)
    assert not (tmp_path / "made").exists()

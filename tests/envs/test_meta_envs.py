"""The contract of every registered meta-environment, single and vector."""

import pickle
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl_agents.envs import (
    MetaEnv,
    MetaVectorEnv,
    env_definition,
    env_ids,
    resolve_env_id,
    sample_tasks,
    short_name,
    task_split,
)
from icrl_agents.errors import TaskError, UnknownNameError

pytestmark = pytest.mark.parametrize("env_id", env_ids())


def single(env_id: str, **options: Any) -> MetaEnv:
    env = gymnasium.make(env_id, **options).unwrapped
    assert isinstance(env, MetaEnv)
    return env


def vector(env_id: str, num_envs: int, **options: Any) -> MetaVectorEnv:
    env = gymnasium.make_vec(env_id, num_envs=num_envs, **options).unwrapped
    assert isinstance(env, MetaVectorEnv)
    return env


@pytest.mark.filterwarnings("ignore:.*A Box observation space m.*value is .*infinity")  # Gymnasium's v5 gives it too
@pytest.mark.filterwarnings("ignore:.*For Box action spaces, we recommend using a symmetric")
def test_gymnasium_checker_finds_nothing(env_id: str) -> None:
    check_env(gymnasium.make(env_id).unwrapped, skip_render_check=True)


def test_rows_equal_single_environments_bit_for_bit(env_id: str) -> None:
    rows, horizon = 5, env_definition(env_id).horizon
    envs, many = [gymnasium.make(env_id) for _ in range(rows)], vector(env_id, rows)
    observations, _ = many.reset(seed=11)
    for row, env in enumerate(envs):
        np.testing.assert_array_equal(observations[row], env.reset(seed=11 + row)[0])
    rng = np.random.default_rng(0)
    for _ in range(2 * horizon + 3):
        actions = rng.uniform(-1, 1, many.action_space.shape).astype(np.float32)
        observations, rewards, terminated, truncated, info = many.step(actions)
        for row, env in enumerate(envs):
            one, reward, ended, cut, _ = env.step(actions[row])
            assert (reward, ended, cut) == (rewards[row], terminated[row], truncated[row])
            if ended or cut:
                np.testing.assert_array_equal(info["final_obs"][row], one)
                one, _ = env.reset()
            np.testing.assert_array_equal(observations[row], one)


def test_initial_states_and_dynamics_do_not_betray_the_task(env_id: str) -> None:
    tasks = sample_tasks(env_id, 2, seed=3)
    many = vector(env_id, 2, tasks=tasks)
    observations, _ = many.reset(seed=[5, 5])
    np.testing.assert_array_equal(observations[0], observations[1])
    rng = np.random.default_rng(1)
    rewards_differ = False
    for _ in range(env_definition(env_id).horizon):
        action = rng.uniform(-1, 1, many.single_action_space.shape)
        observations, rewards, *_ = many.step(np.stack([action, action]))
        np.testing.assert_array_equal(observations[0], observations[1])
        rewards_differ |= bool(rewards[0] != rewards[1])
    assert rewards_differ


def test_plain_reset_keeps_the_task_and_seed_draws_one(env_id: str) -> None:
    env = single(env_id)
    _, info = env.reset(seed=1)
    drawn = env.task
    assert info["new_task"]
    _, info = env.reset()
    assert env.task == drawn
    assert not info["new_task"]
    env.reset(seed=2)
    assert env.task != drawn
    env.reset(seed=1)
    assert env.task == drawn


def test_precedence_of_tasks(env_id: str) -> None:
    constructed, given_task = sample_tasks(env_id, 2, seed=0)
    env = single(env_id, task=constructed)
    _, info = env.reset(seed=9)
    assert env.task == constructed  # the constructor's is before the seed's
    assert info["new_task"]
    _, info = env.reset(seed=10)
    assert not info["new_task"]  # it still holds
    env.task[next(iter(constructed))] = "changed by the caller"
    assert env.task == constructed
    _, info = env.reset(seed=9, options={"task": given_task})
    assert env.task == given_task  # options are before the constructor's
    assert info["new_task"]
    env.reset()
    assert env.task == given_task  # a plain reset keeps whatever holds
    env.set_task(constructed)
    assert env.task == given_task  # not before the next reset
    env.reset()
    assert env.task == constructed


def test_task_is_exposed_only_on_request(env_id: str) -> None:
    for expose in (False, True):
        env = single(env_id, expose_task=expose)
        _, info = env.reset(seed=0)
        *_, step_info = env.step(np.zeros(env.action_space.shape))
        assert ("task" in info) == ("task" in step_info) == expose
        many = vector(env_id, 2, expose_task=expose)
        _, infos = many.reset(seed=0)
        assert ("task" in infos) == expose


def test_task_survives_pickling(env_id: str) -> None:
    env = single(env_id)
    env.reset(seed=4)
    copy = pickle.loads(pickle.dumps(env))
    copy.reset()
    assert copy.task == env.task
    (later,) = sample_tasks(env_id, 1, seed=77)
    env.set_task(later)
    copy = pickle.loads(pickle.dumps(env))
    copy.reset()
    assert copy.task == later


def test_vector_tasks_are_kept_across_autoreset(env_id: str) -> None:
    tasks = sample_tasks(env_id, 3, seed=8)
    env = vector(env_id, 3, tasks=tasks)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    env.reset(seed=0)
    for _ in range(env.horizon):
        *_, truncated, info = env.step(np.zeros(env.action_space.shape))
    assert truncated.all()
    assert not info["new_task"].any()
    assert env.tasks == tasks


def test_reset_mask_touches_only_its_rows(env_id: str) -> None:
    tasks = sample_tasks(env_id, 4, seed=8)
    env = vector(env_id, 2, tasks=tasks[:2])
    env.reset(seed=0)
    for _ in range(7):
        before, *_ = env.step(np.full(env.action_space.shape, 0.3))
    mask = np.array([False, True])
    after, info = env.reset(seed=5, options={"tasks": tasks[2:], "reset_mask": mask})
    assert info["new_task"].tolist() == [False, True]
    assert env.tasks == [tasks[0], tasks[3]]
    np.testing.assert_array_equal(after[0], before[0])
    fresh = single(env_id, task=tasks[3])
    np.testing.assert_array_equal(after[1], fresh.reset(seed=6)[0])


def test_saved_state_continues_bit_for_bit(env_id: str) -> None:
    env, other = vector(env_id, 3), vector(env_id, 3)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(env.horizon + 5):
        env.step(rng.uniform(-1, 1, env.action_space.shape))
    other.reset(seed=0)
    other.set_state(env.get_state())
    for _ in range(env.horizon + 5):
        action = rng.uniform(-1, 1, env.action_space.shape)
        for ours, theirs in zip(env.step(action)[:4], other.step(action)[:4], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_bad_tasks_and_options_are_refused_and_change_nothing(env_id: str) -> None:
    good = sample_tasks(env_id, 2, seed=0)
    key = next(iter(good[0]))
    for bad in ({}, {"nonsense": 1.0}, {**good[0], "more": 1}, {key: "text"}, {key: float("nan")}, [1, 2]):
        with pytest.raises(TaskError, match="task of"):
            single(env_id, task=bad)  # type: ignore[arg-type]
    env = vector(env_id, 2, tasks=good)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(env.action_space.shape))
    env.reset(seed=0)
    for options in (
        {"tasks": good[:1]},
        {"tasks": good[0]},
        {"tasks": [good[1], {"nonsense": 1}]},
        {"typo": 1},
        {"reset_mask": [1, 0]},
        {"reset_mask": np.array([True])},
        {"task": good[0], "tasks": good},
    ):
        with pytest.raises(TaskError):
            env.reset(options=options)
        assert env.tasks == good
    with pytest.raises(TaskError, match="not both"):
        vector(env_id, 2, task=good[0], tasks=good)
    with pytest.raises(TaskError, match="before the first reset"):
        _ = single(env_id).task
    with pytest.raises(ValueError, match="shape"):
        env.step(np.zeros((3, 2)))


def test_rendering_shows_the_hidden_task(env_id: str) -> None:
    tasks = sample_tasks(env_id, 2, seed=1)
    pictures = []
    for task in tasks:
        env = gymnasium.make(env_id, task=task, render_mode="rgb_array", width=96, height=96)
        env.reset(seed=0)
        pictures.append(np.asarray(env.render()))
        env.close()
    assert pictures[0].shape == (96, 96, 3)
    assert (pictures[0] != pictures[1]).any()  # same initial state: only the marker moved
    many = vector(env_id, 2, tasks=tasks, render_mode="rgb_array", width=96, height=96)
    many.reset(seed=[0, 0])
    rows = many.render()
    many.close()
    assert rows is not None
    assert (rows[0] != rows[1]).any()


def test_splits_are_disjoint_valid_and_frozen(env_id: str) -> None:
    split = task_split(env_id, "paper")
    assert (len(split.val), len(split.test)) == (10, 30)
    everything = [str(task) for name in ("train", "val", "test") for task in split.subset(name)]
    assert len(set(everything)) == len(everything)
    definition = env_definition(env_id)
    for task in split.test:
        definition.task_vector(task)
    with pytest.raises(UnknownNameError, match="paper"):
        task_split(env_id, "papper")
    with pytest.raises(UnknownNameError, match="train"):
        split.subset("tests")


def test_names(env_id: str) -> None:
    assert resolve_env_id(short_name(env_id)) == resolve_env_id(env_id) == env_id
    with pytest.raises(UnknownNameError, match=short_name(env_id)):
        resolve_env_id(short_name(env_id) + "x")
    assert gymnasium.make(env_id).spec is not None
    assert env_id in gymnasium.spec(env_id).to_json()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_sampled_tasks_depend_on_the_seed_alone(env_id: str, seed: int) -> None:
    tasks = sample_tasks(env_id, 3, seed)
    assert tasks == sample_tasks(env_id, 3, seed)
    assert tasks[:2] == sample_tasks(env_id, 2, seed)
    for task in tasks:
        env_definition(env_id).task_vector(task)

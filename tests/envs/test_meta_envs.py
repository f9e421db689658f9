"""The contract of every registered meta-environment, single and vector."""

import json
import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

from icrl_agents.envs import (
    MetaEnv,
    MetaVectorEnv,
    env_definition,
    env_ids,
    resolve_env_id,
    sample_tasks,
    short_name,
)
from icrl_agents.errors import ConfigError, InputError, TaskError, UnknownNameError

pytestmark = pytest.mark.parametrize("env_id", env_ids())


def single(env_id: str, **options: Any) -> MetaEnv:
    env = gymnasium.make(env_id, **options).unwrapped
    assert isinstance(env, MetaEnv)
    return env


def vector(env_id: str, num_envs: int, **options: Any) -> MetaVectorEnv:
    env = gymnasium.make_vec(env_id, num_envs=num_envs, **options).unwrapped
    assert isinstance(env, MetaVectorEnv)
    return env


V5 = {
    "icrl/ReacherGoal-v0": "Reacher-v5",
    "icrl/PusherGoal-v0": "Pusher-v5",
    "icrl/HalfCheetahVel-v0": "HalfCheetah-v5",
    "icrl/AntDir-v0": "Ant-v5",
}


CHECKERS: dict[str, Callable[..., None]] = {"gymnasium": check_env, "stable-baselines3": check_env_for_sb3}


def checker_warnings(checker: str, env_id: str) -> set[str]:
    """What a checker warns of, without colours."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CHECKERS[checker](gymnasium.make(env_id).unwrapped, skip_render_check=True)
    return {re.sub(r"\x1b\[\d+m", "", str(warning.message)) for warning in caught}


@pytest.mark.parametrize("checker", CHECKERS)
def test_checkers_find_nothing_that_they_do_not_find_in_v5(checker: str, env_id: str) -> None:
    assert checker_warnings(checker, env_id) <= checker_warnings(checker, V5[env_id])


def test_rows_equal_single_environments_bit_for_bit(env_id: str) -> None:
    """Eight of 64 rows into the second episode, among them the outermost; where episodes end early they do so apart."""
    rows, horizon = (0, 1, 2, 21, 22, 40, 62, 63), 80
    envs = {row: gymnasium.make(env_id, max_episode_steps=horizon) for row in rows}
    many = vector(env_id, 64, max_episode_steps=horizon)
    low, high = many.single_action_space.low, many.single_action_space.high  # type: ignore[attr-defined]
    observations, _ = many.reset(seed=11)
    for row, env in envs.items():
        np.testing.assert_array_equal(observations[row], env.reset(seed=11 + row)[0])
    rng = np.random.default_rng(0)
    early: set[int] = set()
    for step in range(horizon + 20):
        actions = rng.uniform(low, high, many.action_space.shape).astype(np.float32)
        observations, rewards, terminated, truncated, info = many.step(actions)
        for row, env in envs.items():
            one, reward, ended, cut, told = env.step(actions[row])
            assert (reward, ended, cut) == (rewards[row], terminated[row], truncated[row])
            assert {name: info[name][row] for name in told} == told
            if ended or cut:
                np.testing.assert_array_equal(info["final_obs"][row], one)
                one, _ = env.reset()
            np.testing.assert_array_equal(observations[row], one)
        if terminated.any():
            early.add(step)
    assert (len(early) > 8) == (env_id == "icrl/AntDir-v0")


def test_rewards_are_the_sum_of_their_parts(env_id: str) -> None:
    env = vector(env_id, 4)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(30):
        _, rewards, _, _, info = env.step(rng.uniform(-1, 1, env.action_space.shape))
        np.testing.assert_allclose(rewards, sum(part for name, part in info.items() if name.startswith("reward_")))


def test_task_error_of_an_episode_is_finite_also_after_an_early_end(env_id: str) -> None:
    rows, definition = 12, env_definition(env_id)
    tasks = sample_tasks(env_id, rows, seed=0)
    env = vector(env_id, rows, tasks=tasks)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    running = np.ones(rows, bool)
    parts: dict[str, np.ndarray] = {}
    for step in range(definition.horizon):
        _, _, terminated, truncated, info = env.step(rng.uniform(-1, 1, env.action_space.shape))
        for name, told in info.items():
            if name.startswith("reward_") or name.endswith("_velocity"):
                parts.setdefault(name, np.full((rows, definition.horizon), np.nan))[running, step] = told[running]
        running &= ~(terminated | truncated)
    error = definition.task_error(parts, np.stack([definition.task_vector(task) for task in tasks]))
    assert error.shape == (rows,)
    assert np.isfinite(error).all()
    assert (error > 0).all()


def test_initial_states_and_dynamics_do_not_betray_the_task(env_id: str) -> None:
    """Where the task is something to bump into, the environment's own test says more."""
    tasks = sample_tasks(env_id, 2, seed=3)
    many = vector(env_id, 2, tasks=tasks)
    observations, _ = many.reset(seed=[5, 5])
    np.testing.assert_array_equal(observations[0], observations[1])
    rng = np.random.default_rng(1)
    rewards_differ = False
    steps = 1 if many.definition.task_in_physics else env_definition(env_id).horizon
    for _ in range(steps):
        action = rng.uniform(-1, 1, many.single_action_space.shape)
        observations, rewards, terminated, *_ = many.step(np.stack([action, action]))
        assert terminated[0] == terminated[1]
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
    assert copy.task == env.task
    _, info = copy.reset()
    assert copy.task == env.task
    assert info["new_task"]  # whoever acts in a copy has seen nothing of it
    assert not copy.reset()[1]["new_task"]
    copy.reset(seed=5)
    env.reset(seed=5)
    assert copy.task == env.task
    (later,) = sample_tasks(env_id, 1, seed=77)
    env.set_task(later)
    copy = pickle.loads(pickle.dumps(env))
    copy.reset()
    assert copy.task == later


def test_pickling_keeps_the_precedence_of_tasks(env_id: str) -> None:
    constructed, given_task, pending = sample_tasks(env_id, 3, seed=0)
    env = single(env_id, task=constructed)
    assert env.task == constructed  # before any reset
    env.reset(options={"task": given_task})
    copy = pickle.loads(pickle.dumps(env))
    assert copy.task == given_task
    copy.reset(seed=0)
    assert copy.task == constructed
    env.set_task(pending)
    copy = pickle.loads(pickle.dumps(env))
    assert copy.task == given_task
    copy.reset(seed=0)
    assert copy.task == pending


def test_a_last_step_tells_the_task_that_it_was_paid_under(env_id: str) -> None:
    tasks = sample_tasks(env_id, 4, seed=8)
    env = vector(env_id, 2, tasks=tasks[:2], expose_task=True, max_episode_steps=2)
    _, info = env.reset(seed=0)
    assert info["task"].tolist() == tasks[:2]
    assert info["_new_task"].all()
    env.set_tasks([None, tasks[3]])
    for _ in range(2):
        *_, info = env.step(np.zeros(env.action_space.shape))
    assert info["final_info"]["task"].tolist() == tasks[:2]
    assert info["final_info"]["_task"].all()
    assert info["task"].tolist() == [tasks[0], tasks[3]]


@pytest.mark.parametrize(
    "seed", [-1, 1.5, True, "12", "3", [1], [0, -1], [0, 1.0], np.array(2.0), np.zeros((2, 2), int)]
)
def test_seeds_that_are_none_are_refused_and_change_nothing(env_id: str, seed: Any) -> None:
    task = sample_tasks(env_id, 1, seed=0)[0]
    for env, other in ((single(env_id), single(env_id)), (vector(env_id, 2), vector(env_id, 2))):
        for each in (env, other):
            each.reset(seed=np.int64(3))
        with pytest.raises(InputError, match="seed"):
            env.reset(seed=seed, options={"task": task})
        np.testing.assert_array_equal(env.reset()[0], other.reset()[0])
        held = [each.task if isinstance(each, MetaEnv) else each.tasks for each in (env, other)]
        assert held[0] == held[1]


def test_seeds_of_numpy_are_as_good_as_pythons(env_id: str) -> None:
    env = vector(env_id, 2)
    expected, _ = env.reset(seed=3)
    for seed in (np.int64(3), np.arange(3, 5), [np.int32(3), 4]):
        np.testing.assert_array_equal(env.reset(seed=seed)[0], expected)  # type: ignore[arg-type]
    np.testing.assert_array_equal(single(env_id).reset(seed=np.uint8(3))[0], expected[0])  # type: ignore[arg-type]


def test_numbers_and_actions_without_meaning_are_refused(env_id: str) -> None:
    for option in (
        {"max_episode_steps": 0},
        {"max_episode_steps": 2.5},
        {"num_threads": -1},
        {"num_envs": 0},
    ):
        with pytest.raises(ConfigError, match=next(iter(option))):
            type(vector(env_id, 1))(**option)
    one, many = single(env_id), vector(env_id, 2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        one.step(np.zeros(one.action_space.shape))
    one.reset(seed=0)
    many.reset(seed=0)
    for env in (one, many):
        for action in ("left", np.full(env.action_space.shape, "1"), [[1], [1, 2]], None):
            with pytest.raises(InputError, match="shape"):
                env.step(action)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rows"):
        many.set_state(vector_state(env_id, 3))


def vector_state(env_id: str, rows: int) -> dict[str, np.ndarray]:
    env = vector(env_id, rows)
    env.reset(seed=0)
    return env.get_state()


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


def unfit(task: dict[str, Any]) -> list[dict[str, Any]]:
    """A task's numbers as text, as truth values, as complex ones and in a list too many."""
    ways: tuple[Callable[[Any], Any], ...] = (
        lambda value: np.asarray(value).astype(str).tolist(),
        lambda value: np.ones(np.shape(value), bool).tolist(),
        lambda value: np.asarray(value, complex),
        lambda value: [np.atleast_1d(value).tolist()],
    )
    return [{key: way(value) for key, value in task.items()} for way in ways]


def test_bad_tasks_and_options_are_refused_and_change_nothing(env_id: str) -> None:
    good = sample_tasks(env_id, 2, seed=0)
    key = next(iter(good[0]))
    for bad in (
        {},
        {"nonsense": 1.0},
        {**good[0], "more": 1},
        {key: "text"},
        {key: float("nan")},
        [1, 2],
        *unfit(good[0]),
    ):
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
    for new, name in ((single(env_id), "task"), (vector(env_id, 2), "tasks")):
        assert not hasattr(new, name)
        with pytest.raises(TaskError, match="before the first reset"):
            getattr(new, name)
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
    definition = env_definition(env_id)
    for task in tasks:
        assert definition.canonical_task(task) == json.loads(json.dumps(task)) == task
        assert definition.task_vector(task).shape == (definition.task_vector_dim,)

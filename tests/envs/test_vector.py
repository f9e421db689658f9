"""The native vector environment: against Gymnasium's own vectorisation, over threads, snapshots and divergence."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from mujoco.batch import SimulationError as BatchSimulationError

from icrl_agents.envs import MetaEnv, MetaVectorEnv, env_definition, env_ids, sample_tasks
from icrl_agents.envs.definition import PhysicsState
from icrl_agents.envs.outcome import View, outcome
from icrl_agents.envs.reacher_goal import ReacherGoalDefinition
from icrl_agents.errors import InputError

ENDS_EARLY = "icrl/AntDir-v0"

over_envs = pytest.mark.parametrize("env_id", env_ids())


def vector(env_id: str, num_envs: int, **options: Any) -> MetaVectorEnv:
    env = gymnasium.make_vec(env_id, num_envs=num_envs, **options).unwrapped
    assert isinstance(env, MetaVectorEnv)
    return env


def single(env_id: str, **options: Any) -> MetaEnv:
    env = gymnasium.make(env_id, **options).unwrapped
    assert isinstance(env, MetaEnv)
    return env


def actions_for(env: MetaVectorEnv, steps: int, seed: int = 0) -> np.ndarray:
    """Random actions ``[steps, n, A]``."""
    high = env.single_action_space.high
    return np.random.default_rng(seed).uniform(-high, high, (steps, *env.action_space.shape))


def assert_same_steps(one: Any, other: Any, actions: np.ndarray) -> None:
    """Two environments give the same for ``actions [steps, n, A]``, last observations included."""
    for action in actions:
        *ours, our_info = one.step(action)
        *theirs, their_info = other.step(action)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
        assert ("final_obs" in our_info) == ("final_obs" in their_info)
        if "final_obs" in our_info:
            done = our_info["_final_obs"]
            np.testing.assert_array_equal(done, their_info["_final_obs"])
            np.testing.assert_array_equal(our_info["final_obs"][done], np.stack(their_info["final_obs"][done]))


def assert_same_as_gymnasium(env_id: str, mode: str, steps: int, **options: Any) -> None:
    """Gymnasium's vectorisation of the single environment behaves as the native one, with a task given by ``call``."""
    (task,) = sample_tasks(env_id, 1, seed=3)
    native = vector(env_id, 3)
    options = {"autoreset_mode": AutoresetMode.SAME_STEP, **options}
    theirs = gymnasium.make_vec(env_id, num_envs=3, vectorization_mode=mode, vector_kwargs=options)
    native.set_tasks([task] * 3)
    theirs.call("set_task", task)
    np.testing.assert_array_equal(native.reset(seed=4)[0], theirs.reset(seed=4)[0])
    assert list(theirs.get_attr("task")) == native.tasks == [task] * 3
    assert_same_steps(native, theirs, actions_for(native, steps).astype(np.float32))
    theirs.close()


@over_envs
def test_native_rows_are_gymnasiums_sync_rows(env_id: str) -> None:
    assert_same_as_gymnasium(env_id, "sync", env_definition(env_id).horizon + 3)


def test_native_rows_are_gymnasiums_async_rows() -> None:
    assert_same_as_gymnasium(ENDS_EARLY, "async", 50, context="spawn")


@over_envs
def test_specs_survive_json(env_id: str) -> None:
    tasks = sample_tasks(env_id, 2, seed=1)
    one = gymnasium.make(env_id, task=tasks[0])
    assert one.spec is not None
    again = gymnasium.make(EnvSpec.from_json(one.spec.to_json()))
    np.testing.assert_array_equal(again.reset(seed=2)[0], one.reset(seed=2)[0])
    assert again.unwrapped.task == tasks[0]  # type: ignore[attr-defined]
    many = gymnasium.make_vec(env_id, num_envs=2, tasks=tasks)
    assert many.spec is not None
    others = gymnasium.make_vec(EnvSpec.from_json(many.spec.to_json()), num_envs=2)
    np.testing.assert_array_equal(others.reset(seed=2)[0], many.reset(seed=2)[0])
    assert others.unwrapped.tasks == tasks  # type: ignore[attr-defined]


@over_envs
def test_results_do_not_depend_on_the_number_of_threads(env_id: str) -> None:
    one, three = vector(env_id, 7, num_threads=1), vector(env_id, 7, num_threads=3)
    np.testing.assert_array_equal(one.reset(seed=0)[0], three.reset(seed=0)[0])
    assert_same_steps(one, three, actions_for(one, 60))


@over_envs
def test_what_an_environment_returned_is_the_callers_own(env_id: str) -> None:
    env, other = vector(env_id, 2), vector(env_id, 2)
    for observations in (env.reset(seed=0)[0], other.reset(seed=0)[0]):
        kept = observations.copy()
    returned: list[tuple[np.ndarray, np.ndarray]] = []
    for action in actions_for(env, env.horizon + 2):
        observations, rewards, *_ = env.step(action)
        expected, *_ = other.step(action)
        np.testing.assert_array_equal(observations, expected)
        returned.append((expected, expected.copy()))
        observations[:] = np.nan  # nothing comes back of what a caller does to it
        rewards[:] = np.nan
    assert np.isfinite(kept).all()
    for array, copied in returned:
        np.testing.assert_array_equal(array, copied)


# Snapshots


@over_envs
@settings(deadline=None, max_examples=5)
@given(steps=st.integers(0, 70), seed=st.integers(0, 2**16))
def test_a_saved_state_continues_as_if_nothing_had_happened(env_id: str, steps: int, seed: int) -> None:
    options: dict[str, Any] = {"max_episode_steps": 30, "tasks": sample_tasks(env_id, 3, seed)}
    env, other = vector(env_id, 3, **options), vector(env_id, 3, **options)
    env.reset(seed=seed)
    other.reset(seed=seed + 100)
    actions = actions_for(env, steps + 35, seed)
    for action in actions[:steps]:
        env.step(action)
    for action in actions[: seed % 5]:
        other.step(action)
    state = pickle.loads(pickle.dumps(env.get_state()))
    other.set_state(state)
    for name, saved in other.get_state().items():
        np.testing.assert_array_equal(saved, state[name])
    assert_same_steps(env, other, actions[steps:])


class DrawsWords(ReacherGoalDefinition):
    """Draws 32-bit numbers, of which a generator keeps every second one for later."""

    def initial_state(
        self, init_qpos: np.ndarray, init_qvel: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        return init_qpos + rng.integers(0, 1000, dtype=np.uint32) / 10_000, init_qvel


class DrawsWordsVectorEnv(MetaVectorEnv):
    definition = DrawsWords()


def test_a_saved_state_has_the_half_used_word_of_its_generators() -> None:
    env, other = (DrawsWordsVectorEnv(2, max_episode_steps=3) for _ in range(2))
    env.reset(seed=0)
    other.reset(seed=1)
    other.set_tasks(env.tasks)
    other.reset()
    other.set_state(env.get_state())
    assert_same_steps(env, other, actions_for(env, 20))


@over_envs
def test_rows_that_no_reset_has_begun_are_refused(env_id: str) -> None:
    env = vector(env_id, 2)
    for use in (
        lambda: env.reset(options={"reset_mask": np.array([True, False])}),
        lambda: env.step(np.zeros(env.action_space.shape)),
        env.get_state,
        lambda: env.set_state({}),
        lambda: env.privileged,
        lambda: env.following_privileged,
    ):
        with pytest.raises(gymnasium.error.ResetNeeded, match="before the first reset of all rows"):
            use()


# Divergence: MuJoCo stumbles over what is injected within the step

INJECTIONS = (1e9, np.nan, np.inf)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """MuJoCo writes its warnings into a file in the current folder."""
    monkeypatch.chdir(tmp_path)


def check_divergence(env_id: str, row: int, disturb: Callable[[MetaVectorEnv], None]) -> None:
    """What ``disturb`` does to a row ends that row's episode and nothing else."""
    tasks = sample_tasks(env_id, 3, seed=0)
    env, calm = (vector(env_id, 3, tasks=tasks, max_episode_steps=15) for _ in range(2))
    env.reset(seed=0)
    calm.reset(seed=0)
    actions = actions_for(env, 40)
    for action in actions[:4]:
        last, *_ = env.step(action)
        calm.step(action)
    told = env.privileged
    disturb(env)
    others = np.arange(3) != row
    for t, action in enumerate(actions[4:]):
        observations, rewards, terminated, truncated, info = env.step(action)
        expected = calm.step(action)
        for ours, theirs in zip((observations, rewards, terminated, truncated), expected[:4], strict=True):
            np.testing.assert_array_equal(ours[others], theirs[others])
            assert np.isfinite(ours).all()
        assert ("diverged" in info) == (t == 0)
        if t == 0:
            for record in (info, info["final_info"]):
                assert record["diverged"].tolist() == (~others).tolist()
            assert terminated[row]
            assert not truncated[row]
            assert rewards[row] == 0.0
            assert all(info[name][row] == 0.0 for name in info if name.startswith("reward_"))
            np.testing.assert_array_equal(info["final_obs"][row], last[row])
            np.testing.assert_array_equal(env.following_privileged[row], told[row])
            assert not info["new_task"][row]
    assert env.tasks == tasks


@pytest.mark.usefixtures("elsewhere")
@over_envs
@pytest.mark.parametrize("value", INJECTIONS)
def test_a_row_that_diverges_ends_its_episode_and_no_other(env_id: str, value: float) -> None:
    def disturb(env: MetaVectorEnv) -> None:
        env._state.qvel[1] = value

    check_divergence(env_id, 1, disturb)


@over_envs
def test_an_engine_error_in_a_row_ends_its_episode_and_no_other(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def disturb(env: MetaVectorEnv) -> None:
        step, calls = env._batch.step, []

        def fail_once(*args: Any, **options: Any) -> None:
            step(*args, **options)
            if not calls:
                calls.append(1)
                raise BatchSimulationError(np.array([2]), "out of memory")

        monkeypatch.setattr(env._batch, "step", fail_once)

    check_divergence(env_id, 2, disturb)


@pytest.mark.usefixtures("elsewhere")
@over_envs
@pytest.mark.parametrize("value", INJECTIONS)
def test_a_single_environment_that_diverges_ends_its_episode(env_id: str, value: float) -> None:
    env, fresh = single(env_id), single(env_id)
    env.reset(seed=0)
    actions = actions_for(vector(env_id, 1), 20)[:, 0]
    for action in actions[:4]:
        last, *_ = env.step(action)
    env.data.qvel[:] = value
    observation, reward, terminated, truncated, info = env.step(actions[4])
    np.testing.assert_array_equal(observation, last)
    assert (reward, terminated, truncated, info["diverged"]) == (0.0, True, False, True)
    fresh.reset(seed=0)
    np.testing.assert_array_equal(env.reset()[0], fresh.reset()[0])  # and the next episode is what it would have been
    for action in actions[5:]:
        ours, theirs = env.step(action), fresh.step(action)
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1:] == theirs[1:]
        assert "diverged" not in ours[4]


@over_envs
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_the_last_substep_did_is_seen_too(env_id: str, value: float) -> None:
    definition, rows = env_definition(env_id), vector(env_id, 2)
    last, _ = rows.reset(seed=0)
    state = PhysicsState(*(np.array(x) for x in (rows._state.qpos, rows._state.qvel, rows._state.xpos)))
    tasks = np.stack([definition.task_vector(task) for task in rows.tasks])
    before = definition.remember(state)
    for array in (state.qpos, state.qvel, state.xpos):
        array[1] = value
    actions, failed = np.zeros(rows.action_space.shape), np.zeros(2, bool)
    seen = View(last, rows.privileged)
    after = outcome(definition, before, state, actions, tasks, seen, failed)
    assert after.infos["diverged"].tolist() == [False, True]
    assert after.terminated.tolist() == [False, True]
    np.testing.assert_array_equal(after.view.observations, last)
    np.testing.assert_array_equal(after.view.privileged, rows.privileged)
    assert all(np.isfinite(info).all() for info in (after.rewards, *after.infos.values()))


def test_an_engine_error_ends_a_single_environments_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise mujoco.FatalError("out of memory")

    env = single(ENDS_EARLY)
    first, _ = env.reset(seed=0)
    monkeypatch.setattr(mujoco, "mj_step", fail)
    observation, reward, terminated, _, info = env.step(np.zeros(8))
    np.testing.assert_array_equal(observation, first)
    assert (reward, terminated, info["diverged"]) == (0.0, True, True)


@pytest.mark.usefixtures("elsewhere")
def test_single_and_vector_agree_on_an_end_at_the_horizon() -> None:
    one, many = gymnasium.make(ENDS_EARLY, max_episode_steps=2), vector(ENDS_EARLY, 1, max_episode_steps=2)
    one.reset(seed=0)
    many.reset(seed=0)
    one.step(np.zeros(8))
    many.step(np.zeros((1, 8)))
    one.unwrapped.data.qvel[:] = np.nan  # type: ignore[attr-defined]
    many._state.qvel[:] = np.nan
    _, _, terminated, truncated, _ = one.step(np.zeros(8))
    _, _, all_terminated, all_truncated, _ = many.step(np.zeros((1, 8)))
    assert (terminated, truncated) == (all_terminated[0], all_truncated[0]) == (True, True)


@over_envs
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_actions_that_are_not_finite_are_refused_and_change_nothing(env_id: str, value: float) -> None:
    env, other, alone = vector(env_id, 3), vector(env_id, 3), single(env_id)
    env.reset(seed=0)
    other.reset(seed=0)
    alone.reset(seed=0)
    bad = np.zeros(env.action_space.shape)
    bad[1, 0] = value
    with pytest.raises(InputError, match="row 1"):
        env.step(bad)
    with pytest.raises(InputError, match="finite"):
        alone.step(bad[1])
    assert_same_steps(env, other, actions_for(env, 5))

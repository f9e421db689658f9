"""stable-baselines3 on the native vector environment sees what it sees on single ones, bit for bit."""

import re
import subprocess
import sys
import warnings
from contextlib import closing

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from icrl_agents import ExperienceObservation, TrialWrapper, VectorExperienceObservation, VectorTrialWrapper, sb3
from icrl_agents.envs import env_ids, sample_tasks
from icrl_agents.errors import ConfigError, TaskError
from icrl_agents.sb3 import MetaVecEnv

REACHER = "icrl/ReacherGoal-v0"
V5 = {
    "icrl/ReacherGoal-v0": "Reacher-v5",
    "icrl/PusherGoal-v0": "Pusher-v5",
    "icrl/HalfCheetahVel-v0": "HalfCheetah-v5",
    "icrl/AntDir-v0": "Ant-v5",
}


def native(env_id=REACHER, num_envs=2, **options):
    return MetaVecEnv(gymnasium.make_vec(env_id, num_envs=num_envs, **options))


def single(env_id=REACHER, num_envs=2, wrap=lambda env: env, **options):
    return DummyVecEnv([lambda: wrap(gymnasium.make(env_id, **options)) for _ in range(num_envs)])


def assert_same_infos(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(ours[name], value)
                assert ours[name].dtype == value.dtype
            else:
                assert (ours[name], type(ours[name])) == (value, type(value)), name


def assert_same_transitions(ours, theirs, steps, seed=7):
    """From the same seeds by the same actions; how many episodes ended by themselves and how many by the limit."""
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    for env in (ours, theirs):
        env.seed(seed)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    assert_same_infos(ours.reset_infos, theirs.reset_infos)
    rng, ends = np.random.default_rng(0), [0, 0]
    low, high = ours.action_space.low, ours.action_space.high
    for _ in range(steps):
        actions = rng.uniform(low, high, (ours.num_envs, *low.shape)).astype(np.float32)
        (*found, infos), (*expected, their_infos) = ours.step(actions), theirs.step(actions)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
        assert_same_infos(infos, their_infos)
        assert_same_infos(ours.reset_infos, theirs.reset_infos)
        for row in np.flatnonzero(found[2]):
            ends[infos[row]["TimeLimit.truncated"]] += 1
    np.testing.assert_array_equal(ours.reset(), theirs.reset())  # plain: tasks and random streams go on
    return ends


@pytest.mark.parametrize("env_id", env_ids())
def test_transitions_equal_those_of_single_environments(env_id):
    steps = 120 if env_id == "icrl/AntDir-v0" else 12
    limit = 50 if env_id == "icrl/AntDir-v0" else 5
    with closing(native(env_id, 3, max_episode_steps=limit)) as ours:
        ends = assert_same_transitions(ours, single(env_id, 3, max_episode_steps=limit), steps)
    assert ends[True] > 0
    assert (ends[False] > 0) == (env_id == "icrl/AntDir-v0")  # alone falls


def test_wrapped_transitions_equal_those_of_wrapped_single_environments():
    options = {"max_episode_steps": 4, "expose_task": True}
    vector = VectorTrialWrapper(VectorExperienceObservation(gymnasium.make_vec(REACHER, num_envs=2, **options)), 2)
    theirs = single(wrap=lambda env: TrialWrapper(ExperienceObservation(env), 2), **options)
    with closing(MetaVecEnv(vector)) as ours:
        ours.seed(1), theirs.seed(1)
        np.testing.assert_array_equal(ours.reset(), theirs.reset())
        for _ in range(20):
            actions = np.full((2, 2), 0.3, np.float32)
            (*found, infos), (*expected, their_infos) = ours.step(actions), theirs.step(actions)
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)
            assert_same_infos(ours.reset_infos, theirs.reset_infos)
            for one, other in zip(infos, their_infos, strict=True):
                assert one.keys() == other.keys()
                for name in {"terminal_observation", "final_obs"} & one.keys():
                    np.testing.assert_array_equal(one[name], other[name])


def test_tasks_of_rows():
    first, second, third = sample_tasks(REACHER, 3, seed=0)
    with closing(native(task=first, max_episode_steps=2)) as env:
        env.reset()
        assert env.get_attr("task") == [first, first]
        env.env_method("set_task", second, indices=1)
        assert env.get_attr("task", [1]) == [first]  # holds from the next reset on
        for _ in range(2):
            env.step(np.zeros((2, 2)))
        assert env.get_attr("task") == [first, second]
        assert [info["new_task"] for info in env.reset_infos] == [False, True]
        env.set_options([{"task": third}, {}])
        env.reset()
        assert env.get_attr("task") == [third, second]
        env.reset()  # options are used once, and tasks kept
        assert env.get_attr("task") == [third, second]
        env.set_options({"task": first})
        env.reset()
        assert env.get_attr("task") == [first, first]
        with pytest.raises(TaskError, match="goal"):
            env.env_method("set_task", {"gaol": 1})
        env.set_options({"tsak": first})
        with pytest.raises(TaskError, match="tsak"):
            env.reset()


def test_tasks_given_to_rows_within_trials_wait_for_the_next_one():
    first, second = sample_tasks(REACHER, 2, seed=0)
    vector = VectorTrialWrapper(gymnasium.make_vec(REACHER, num_envs=2, task=first, max_episode_steps=1), 2)
    with closing(MetaVecEnv(vector)) as env:
        env.reset()
        env.env_method("set_task", second, indices=[0])
        env.step(np.zeros((2, 2)))
        assert env.get_attr("task") == [first, first]
        env.step(np.zeros((2, 2)))
        assert env.get_attr("task") == [second, first]


def test_what_rows_share():
    with closing(native(num_envs=3, max_episode_steps=7)) as env:
        assert env.get_attr("horizon") == [7, 7, 7]
        assert env.get_attr("action_space", [0, 2]) == [env.action_space] * 2
        env.set_attr("horizon", 3)
        assert env.get_attr("horizon", 1) == [3]
        env.reset()
        dones = [env.step(np.zeros((3, 2)))[2].all() for _ in range(3)]
        assert dones == [False, False, True]
        assert not env.has_attr("no_such_attribute")
        with pytest.raises(AttributeError, match="share one batch"):
            env.set_attr("horizon", 3, indices=0)
        with pytest.raises(AttributeError, match="set_task"):
            env.set_attr("task", {})
        with pytest.raises(AttributeError, match="set_task alone"):
            env.env_method("render")
        assert env.env_is_wrapped(Monitor) == [False] * 3
        assert env.env_is_wrapped(VectorExperienceObservation, [0]) == [False]
        wrapped = MetaVecEnv(VectorExperienceObservation(env.env))
        assert wrapped.env_is_wrapped(VectorExperienceObservation) == [True] * 3


def test_other_autoreset_modes_are_refused():
    vector = SyncVectorEnv([lambda: gymnasium.make(REACHER)], autoreset_mode=AutoresetMode.NEXT_STEP)
    with closing(vector), pytest.raises(ConfigError, match="SAME_STEP"):
        MetaVecEnv(vector)


def test_single_environments_side_by_side_are_refused():
    vector = SyncVectorEnv([lambda: gymnasium.make(REACHER)], autoreset_mode=AutoresetMode.SAME_STEP)
    with closing(vector), pytest.raises(ConfigError, match=r"native vector meta-environment.* DummyVecEnv"):
        MetaVecEnv(vector)


def test_an_episodes_last_info_has_the_task_it_was_paid_under():
    first, second = sample_tasks(REACHER, 2, seed=0)
    options = {"task": first, "max_episode_steps": 2, "expose_task": True}
    with closing(native(**options)) as ours:
        for env in (ours, theirs := single(**options)):
            env.seed(0)
            env.reset()
            env.env_method("set_task", second, indices=[1])
            env.step(np.zeros((2, 2)))
        infos, expected = (env.step(np.zeros((2, 2)))[3] for env in (ours, theirs))
        assert [info["task"] for info in infos] == [info["task"] for info in expected] == [first, first]
        assert_same_infos(ours.reset_infos, theirs.reset_infos)
        assert [info["task"] for info in ours.reset_infos] == [first, second]


def test_pictures_are_tiled():
    with closing(native(num_envs=4, render_mode="rgb_array", width=32, height=24)) as env:
        env.reset()
        assert env.render().shape == (48, 64, 3)


@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_algorithms_learn_on_many_rows(algorithm):
    options = {"n_steps": 4, "batch_size": 64} if algorithm is PPO else {"learning_starts": 64, "buffer_size": 1000}
    env = VecMonitor(native(num_envs=64, max_episode_steps=4))
    model = algorithm("MlpPolicy", env, seed=0, device="cpu", policy_kwargs={"net_arch": [8]}, **options)
    before = [weight.clone() for weight in model.policy.parameters()]
    model.learn(64 * 8)
    assert any((old != new).any() for old, new in zip(before, model.policy.parameters(), strict=True))
    assert {info["l"] for info in model.ep_info_buffer} == {4}
    env.close()


def test_the_same_policy_is_learned_as_on_single_environments():
    learned = []
    for make in (native, single):
        model = PPO("MlpPolicy", make(max_episode_steps=5), n_steps=16, batch_size=16, seed=3, device="cpu")
        learned.append([weight.tolist() for weight in model.learn(64).policy.parameters()])
    assert learned[0] == learned[1]


@pytest.mark.parametrize("rows", [3, 4])
def test_infos_within_infos_are_those_of_the_row(rows):
    """As Gymnasium's statistics of episodes have them: all rows end at once, and some."""
    statistics = gymnasium.wrappers.vector.RecordEpisodeStatistics
    env = MetaVecEnv(statistics(gymnasium.make_vec(REACHER, num_envs=rows, max_episode_steps=3)))
    env.reset()
    for _ in range(3):
        _, _, dones, infos = env.step(np.zeros((rows, 2), np.float32))
    assert dones.all()
    assert [info["episode"]["l"] for info in infos] == [3] * rows
    assert all(isinstance(info["episode"]["r"], float) for info in infos)
    assert sb3._by_row({"episode": {"r": np.arange(2.0)}, "_episode": np.array([False, True])}, 2) == [
        {},
        {"episode": {"r": 1.0}},
    ]


def test_agents_are_evaluated(make_agent):
    agent, task = make_agent(), {"goal": [0.1, 0.05]}
    options = {"task": task, "max_episode_steps": 5}
    vector = VectorExperienceObservation(gymnasium.make_vec(REACHER, num_envs=3, **options))
    theirs = make_vec_env(REACHER, n_envs=3, wrapper_class=ExperienceObservation, env_kwargs=options)
    results = []
    for env in (VecMonitor(MetaVecEnv(vector)), theirs):
        env.seed(0)
        results.append(evaluate_policy(agent, env, n_eval_episodes=6, return_episode_rewards=True))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)  # Monitor sums float64, VecMonitor float32
    assert results[0][1] == results[1][1] == [5] * 6


def checker_warnings(env_id):
    """What stable-baselines3's checker warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(gymnasium.make(env_id).unwrapped, skip_render_check=True)
    return {re.sub(r"\x1b\[\d+m", "", str(warning.message)) for warning in caught}


@pytest.mark.parametrize("env_id", env_ids())
def test_stable_baselines_checker_finds_nothing_that_it_does_not_find_in_v5(env_id):
    assert checker_warnings(env_id) <= checker_warnings(V5[env_id])


def test_without_stable_baselines_the_error_names_the_extra():
    code = "import sys; sys.modules['stable_baselines3'] = None; import icrl_agents.sb3"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingExtraError: stable_baselines3 is needed for this: pip install 'icrl-agents[train]'" in done.stderr

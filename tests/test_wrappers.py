"""The observation wrapper shows a stateless caller the very tokens that the agent makes for itself.

A trial is K episodes of one task as one episode, in either order with it, single and vector alike.
"""

from contextlib import closing

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from icrl_agents import ExperienceObservation, TrialWrapper, VectorExperienceObservation, VectorTrialWrapper
from icrl_agents.envs import sample_tasks
from icrl_agents.errors import ConfigError, InputError, TaskError
from icrl_agents.sb3 import MetaVecEnv
from icrl_agents.tokens import TokenLayout

REACHER = "icrl/ReacherGoal-v0"
GOAL = {"goal": [0.1, 0.05]}
AT = TokenLayout(8, 2)


class Counter(gymnasium.Env):
    """Counts steps: observation n, reward 10 n, episodes of 2; a new task where reset is given a seed."""

    observation_space = spaces.Box(1, 100, (1,), np.float32)
    action_space = spaces.Box(-0.5, 0.5, (1,), np.float32)

    def __init__(self):
        self.n = 0

    def _observation(self):
        self.n += 1
        return np.array([self.n], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {"new_task": seed is not None}

    def step(self, action):
        self.steps += 1
        return self._observation(), 10.0 * self.n, False, self.steps == 2, {}


def test_tokens_worked_by_hand():
    env = ExperienceObservation(Counter())
    tokens = [env.reset(seed=0)[0]]
    tokens += [env.step(np.array([a]))[0] for a in (0.1, 9.0)]
    tokens.append(env.reset()[0])
    tokens.append(env.step(np.array([0.3]))[0])
    tokens.append(env.reset(seed=1)[0])
    expected = [  # observation, previous: observation, action (clipped), reward; episode start
        [1, 0, 0, 0, 1],
        [2, 1, 0.1, 20, 0],
        [3, 2, 0.5, 30, 0],
        [4, 2, 0.5, 30, 1],  # the next episode of the same task: the terminal transition is still there
        [5, 4, 0.3, 50, 0],
        [6, 0, 0, 0, 1],  # a new task: nothing is
    ]
    np.testing.assert_array_equal(tokens, np.array(expected, np.float32))
    assert all(env.observation_space.contains(token) for token in tokens)


def test_forget_for_environments_that_do_not_say_when_the_task_is_new():
    env = ExperienceObservation(gymnasium.wrappers.TransformObservation(Counter(), lambda o: o, None))
    env.reset()
    env.step(np.array([0.1]))
    env.forget()
    np.testing.assert_array_equal(env.reset()[0], np.float32([3, 0, 0, 0, 1]))


def test_the_space_has_zero_for_what_did_not_happen_yet():
    env = ExperienceObservation(Counter())
    np.testing.assert_array_equal(env.observation_space.low, np.float32([1, 0, -0.5, -np.inf, 0]))
    np.testing.assert_array_equal(env.observation_space.high, np.float32([100, 100, 0.5, np.inf, 1]))


@pytest.mark.parametrize("rows", [1, 4])
def test_rows_of_the_vector_wrapper_equal_the_single_wrapper(rows):
    tasks = [{"goal": [0.01 * i, 0.05]} for i in range(rows)]
    rng = np.random.default_rng(0)
    with closing(gymnasium.make_vec(REACHER, num_envs=rows, tasks=tasks, max_episode_steps=4)) as vector:
        env = VectorExperienceObservation(vector)
        singles = [ExperienceObservation(gymnasium.make(REACHER, task=task, max_episode_steps=4)) for task in tasks]
        tokens, _ = env.reset(seed=5)
        assert env.observation_space.contains(tokens)
        expected = [single.reset(seed=5 + i)[0] for i, single in enumerate(singles)]
        for _ in range(10):
            np.testing.assert_array_equal(tokens, expected)
            actions = rng.uniform(-1.5, 1.5, (rows, 2)).astype(np.float32)
            tokens, _, _, truncated, info = env.step(actions)
            for i, single in enumerate(singles):
                expected[i], _, _, ended, _ = single.step(actions[i])
                if ended:
                    np.testing.assert_array_equal(info["final_obs"][i], expected[i])
                    expected[i], _ = single.reset()
                assert ended == truncated[i]


def test_vector_rows_with_new_tasks_forget():
    with closing(gymnasium.make_vec(REACHER, num_envs=3, max_episode_steps=3)) as vector:
        env = VectorExperienceObservation(vector)
        env.reset(seed=0)
        for _ in range(2):
            env.step(np.full((3, 2), 0.5, np.float32))
        mask = np.array([False, True, True])
        tokens, _ = env.reset(options={"tasks": [None, GOAL, None], "reset_mask": mask})
        np.testing.assert_array_equal(tokens[:, AT.episode_start], [0, 1, 1])
        np.testing.assert_array_equal(tokens[:, AT.previous_action], [[0.5, 0.5], [0, 0], [0.5, 0.5]])
        # a task given while an episode runs holds from the next episode on, which autoreset begins
        vector.unwrapped.set_tasks([GOAL, None, None])
        tokens, _, _, _, info = env.step(np.full((3, 2), 0.25, np.float32))
        np.testing.assert_array_equal(tokens[:, AT.episode_start], [1, 0, 0])
        np.testing.assert_array_equal(tokens[:, AT.previous_action], [[0, 0], [0.25, 0.25], [0.25, 0.25]])
        np.testing.assert_array_equal(info["final_obs"][0, AT.previous_action], [0.25, 0.25])


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_gymnasiums_own_vector_env(mode):
    with closing(SyncVectorEnv([Counter, Counter], autoreset_mode=mode)) as vector:
        env = VectorExperienceObservation(vector)
        env.reset(seed=0)
        env.step(np.array([[0.1], [0.2]]))
        tokens, _, _, truncated, info = env.step(np.array([[0.3], [0.4]]))
        if mode is AutoresetMode.DISABLED:
            tokens, _ = env.reset(options={"reset_mask": truncated})
        else:
            np.testing.assert_array_equal(info["final_obs"][1], np.float32([3, 2, 0.4, 30, 0]))
        np.testing.assert_array_equal(tokens, np.float32([[4, 2, 0.3, 30, 1], [4, 2, 0.4, 30, 1]]))


def test_what_cannot_be_wrapped_is_refused():
    with (
        closing(SyncVectorEnv([Counter], autoreset_mode=AutoresetMode.NEXT_STEP)) as vector,
        pytest.raises(ConfigError, match="SAME_STEP"),
    ):
        VectorExperienceObservation(vector)
    with pytest.raises(ConfigError, match="Discrete"):
        ExperienceObservation(gymnasium.make("CartPole-v1"))


def test_stable_baselines_measures_what_the_agents_own_loop_measures(agent):
    episodes, horizon = 3, 10

    def make():
        env = gymnasium.make(REACHER, task=GOAL, max_episode_steps=horizon)
        env.reset(seed=7)  # evaluate_policy gives no seed
        return env

    wrapped = Monitor(ExperienceObservation(make()))
    returns, lengths = evaluate_policy(agent, wrapped, n_eval_episodes=episodes, return_episode_rewards=True)
    env, own = make(), []
    agent.reset(env=env)
    for _ in range(episodes):
        obs, _ = env.reset()
        own.append(0.0)
        done = False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(agent.act(obs))
            agent.observe(reward, terminated, truncated)
            own[-1] += reward
            done = terminated or truncated
    assert lengths == [horizon] * episodes
    np.testing.assert_allclose(returns, own, rtol=1e-5)


def test_stable_baselines_vec_env_of_several_rows(make_agent):
    agent = make_agent()
    env = make_vec_env(
        REACHER,
        n_envs=3,
        seed=0,
        wrapper_class=ExperienceObservation,
        env_kwargs={"task": GOAL, "max_episode_steps": 5},
    )
    returns, lengths = evaluate_policy(agent, env, n_eval_episodes=6, return_episode_rewards=True)
    assert lengths == [5] * 6
    assert len(set(returns)) == 6  # rows and episodes differ


# Trials


def test_a_trial_worked_by_hand():
    env = TrialWrapper(Counter(), episodes=2)
    observation, info = env.reset()
    assert (observation, info["new_task"]) == (1, True)
    expected = [  # observation, reward, truncated, an episode ended, its last observation
        [2, 20, False, False, None],
        [4, 30, False, True, 3],  # the second episode's first observation beside the first's last reward
        [5, 50, False, False, None],
        [6, 60, True, True, None],
    ]
    for row in expected:
        observation, reward, terminated, truncated, info = env.step(np.zeros(1))
        assert [observation, reward, truncated, info["episode_end"], info.get("final_obs")] == row
        assert not terminated


def test_tokens_of_a_trial_worked_by_hand():
    env = TrialWrapper(ExperienceObservation(Counter()), episodes=2)
    tokens = [env.reset(seed=0)[0]]
    tokens += [env.step(np.array([a]))[0] for a in (0.1, 0.2, 0.3, 0.4)]
    tokens.append(env.reset()[0])
    expected = [
        [1, 0, 0, 0, 1],
        [2, 1, 0.1, 20, 0],
        [4, 2, 0.2, 30, 1],  # the next episode of the trial
        [5, 4, 0.3, 50, 0],
        [6, 5, 0.4, 60, 0],
        [7, 0, 0, 0, 1],  # the next trial
    ]
    np.testing.assert_array_equal(tokens, np.array(expected, np.float32))


def inside(env, episodes):
    return TrialWrapper(ExperienceObservation(env), episodes)


def outside(env, episodes):
    return ExperienceObservation(TrialWrapper(env, episodes))


def vector_inside(env, episodes):
    return VectorTrialWrapper(VectorExperienceObservation(env), episodes)


def vector_outside(env, episodes):
    return VectorExperienceObservation(VectorTrialWrapper(env, episodes))


@settings(deadline=None, max_examples=8)
@given(
    seed=st.integers(0, 2**31 - 4),
    episodes=st.integers(1, 3),
    horizon=st.integers(1, 4),
    given_task=st.sampled_from([None, GOAL]),
)
def test_both_orders_single_and_vector_are_the_same_trials(seed, episodes, horizon, given_task):
    """Four environments, three trials: tokens, rewards, flags and infos."""
    rows, options = 2, {"max_episode_steps": horizon, "task": given_task}
    singles = [[wrap(gymnasium.make(REACHER, **options), episodes) for wrap in (inside, outside)] for _ in range(rows)]
    vectors = [
        wrap(gymnasium.make_vec(REACHER, num_envs=rows, **options), episodes)
        for wrap in (vector_inside, vector_outside)
    ]
    resets = [vector.reset(seed=seed) for vector in vectors]
    shown = [[env.reset(seed=seed + row)[0] for env in pair] for row, pair in enumerate(singles)]
    for tokens, info in resets:
        assert info["new_task"].all()
        np.testing.assert_array_equal(tokens, [pair[0] for pair in shown])
    rng, tasks = np.random.default_rng(seed), []
    for step in range(3 * episodes * horizon):
        actions = rng.uniform(-1.5, 1.5, (rows, 2)).astype(np.float32)
        outcomes = [vector.step(actions) for vector in vectors]
        last = (step + 1) % (episodes * horizon) == 0
        for row, pair in enumerate(singles):
            if step % (episodes * horizon) == 0:
                tasks.append(pair[0].unwrapped.task)
            for env in pair:
                token, reward, terminated, truncated, info = env.step(actions[row])
                assert env.unwrapped.task == tasks[row + step // (episodes * horizon) * rows]  # kept within a trial
                assert truncated == last
                for _, rewards, terms, truncs, infos in outcomes:
                    assert (rewards[row], terms[row], truncs[row]) == (reward, terminated, truncated)
                    assert infos["episode_end"][row] == info["episode_end"] == ((step + 1) % horizon == 0)
                    if info["episode_end"]:
                        assert infos["new_task"][row] == truncated
                        final = token if truncated else info["final_obs"]
                        np.testing.assert_array_equal(infos["final_obs"][row], final)
                if truncated:
                    token, info = env.reset()
                    assert info["new_task"]
                    assert not token[AT.observation_dim : -1].any()  # it began anew, also on the task of before
                for tokens, *_ in outcomes:
                    np.testing.assert_array_equal(tokens[row], token)
    distinct = {str(task) for task in tasks}
    assert len(distinct) == (1 if given_task else 3 * rows)


def test_rows_whose_episodes_end_early_go_through_trials_of_their_own():
    rows, episodes, ant = 4, 2, "icrl/AntDir-v0"
    vector = VectorTrialWrapper(gymnasium.make_vec(ant, num_envs=rows, expose_task=True), episodes)
    singles = [TrialWrapper(gymnasium.make(ant, expose_task=True), episodes) for _ in range(rows)]
    observations, info = vector.reset(seed=3)
    for row, single in enumerate(singles):
        observation, one = single.reset(seed=3 + row)
        np.testing.assert_array_equal(observations[row], observation)
        assert info["task"][row] == one["task"]
    rng, ends = np.random.default_rng(0), []
    for step in range(300):
        actions = rng.uniform(-1, 1, (rows, 8)).astype(np.float32)
        observations, rewards, terminated, truncated, info = vector.step(actions)
        for row, single in enumerate(singles):
            observation, reward, *flags, _ = single.step(actions[row])
            assert [rewards[row], terminated[row], truncated[row]] == [reward, *flags]
            if any(flags):
                ends.append(step)
                observation, one = single.reset()
                assert info["task"][row] == one["task"]
            np.testing.assert_array_equal(observations[row], observation)
    assert len(set(ends)) > 2


def test_given_tasks_hold_for_whole_trials():
    own, later, other = sample_tasks(REACHER, 3, seed=0)
    env = TrialWrapper(gymnasium.make(REACHER, task=own, max_episode_steps=2), episodes=2)
    env.reset(seed=0)
    env.step(np.zeros(2))
    env.set_task(later)
    for _ in range(2):
        env.step(np.zeros(2))
        assert env.unwrapped.task == own  # the trial goes on with its task
    for options, expected in ((None, later), (None, own), ({"task": other}, other), (None, own)):
        env.reset(options=options)
        assert env.unwrapped.task == expected
    with pytest.raises(TaskError, match="goal"):
        env.set_task({"gaol": [0, 0]})
    env.set_task(later)
    env.reset(options={"task": other})  # options are before set_task
    assert env.unwrapped.task == other
    env.set_task(later)
    env.reset(options={"task": None})  # which gives none
    assert env.unwrapped.task == later


def test_given_tasks_of_rows_hold_for_whole_trials():
    own, later, other = sample_tasks(REACHER, 3, seed=0)
    inner = gymnasium.make_vec(REACHER, num_envs=2, task=own, max_episode_steps=2)
    env, zero = VectorTrialWrapper(inner, episodes=2), np.zeros((2, 2))
    env.reset(seed=0)
    env.step(zero)
    env.reset(options={"reset_mask": np.array([False, True])})  # row 1 is a step behind from now on
    env.set_tasks([later, later])
    held = []
    for _ in range(6):
        *_, truncated, _ = env.step(zero)
        held.append((truncated.tolist(), inner.unwrapped.tasks))
    assert held[1][1] == [own, own]
    assert held[2] == ([True, False], [later, own])
    assert held[3] == ([False, True], [later, later])
    env.set_tasks([None, other])
    env.reset(options={"tasks": [other, None]})
    assert inner.unwrapped.tasks == [other, other]
    for bad in ([own], [own, {"gaol": [0, 0]}]):
        with pytest.raises(TaskError):
            env.set_tasks(bad)
    for mask in ([True], np.array([0, 1]), np.zeros(2, bool)):
        with pytest.raises(TaskError, match="reset_mask"):
            env.reset(options={"reset_mask": mask})
    with pytest.raises(ValueError, match="seeds"):
        env.reset(seed=[1])


def test_a_task_given_past_the_wrapper_within_a_trial_is_refused():
    own, other = sample_tasks(REACHER, 2, seed=0)
    env = TrialWrapper(gymnasium.make(REACHER, task=own, max_episode_steps=1), episodes=2)
    env.reset(seed=0)
    env.unwrapped.set_task(other)
    with pytest.raises(TaskError, match=r"TrialWrapper\.set_task\b"):
        env.step(np.zeros(2))
    rows = VectorTrialWrapper(gymnasium.make_vec(REACHER, num_envs=2, task=own, max_episode_steps=1), episodes=2)
    rows.reset(seed=0)
    rows.unwrapped.set_tasks([None, other])
    with pytest.raises(TaskError, match=r"VectorTrialWrapper\.set_tasks\b"):
        rows.step(np.zeros((2, 2)))


def test_tasks_of_environments_without_a_definition_are_given_as_they_are():
    class Told(Counter):
        def reset(self, *, seed=None, options=None):
            self.told = options
            return super().reset(seed=seed)

    env, task = TrialWrapper(Told(), episodes=2), {"level": 3}
    env.set_task(task)
    task["level"] = 4
    env.reset()
    assert env.unwrapped.told == {"task": {"level": 3}}


def test_what_a_reset_of_trials_refuses_changes_nothing():
    tasks = sample_tasks(REACHER, 2, seed=0)
    env, other = (VectorTrialWrapper(gymnasium.make_vec(REACHER, num_envs=2), episodes=2) for _ in range(2))
    for each in (env, other):
        each.reset(seed=0, options={"reset_mask": None})
    for options in ({"tasks": tasks[:1]}, {"tasks": dict(enumerate(tasks))}, {"tasks": [tasks[0], {"gaol": 1}]}):
        with pytest.raises(TaskError):
            env.reset(seed=5, options=options)
        with pytest.raises(TaskError):
            env.set_tasks(options["tasks"])
    for seed in (-1, 1.5, "12", [1], [0, -1]):
        with pytest.raises(InputError, match="seed"):
            env.reset(seed=seed)
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])
    assert env.unwrapped.tasks == other.unwrapped.tasks


def test_one_seed_determines_all_trials_to_come():
    def tasks(seed):
        env = TrialWrapper(gymnasium.make(REACHER, max_episode_steps=1), episodes=1)
        return [env.reset(seed=s) and env.unwrapped.task for s in (seed, None, None)]

    assert tasks(1) == tasks(1)
    assert len({str(task) for seed in (1, 2, None) for task in tasks(seed)}) == 9


@pytest.mark.parametrize("episodes", [0, 1.5, None])
def test_trials_of_no_whole_number_of_episodes_are_refused(episodes):
    with pytest.raises(ConfigError, match="at least 1"):
        TrialWrapper(Counter(), episodes)
    with pytest.raises(ConfigError, match="at least 1"):
        VectorTrialWrapper(gymnasium.make_vec(REACHER, num_envs=1), episodes)


def test_trials_need_autoreset_in_the_same_step():
    with (
        closing(SyncVectorEnv([Counter], autoreset_mode=AutoresetMode.DISABLED)) as vector,
        pytest.raises(ConfigError, match="SAME_STEP"),
    ):
        VectorTrialWrapper(vector, 2)


def test_wrapped_environments_are_made_again_from_their_spec():
    env = gymnasium.make(inside(gymnasium.make(REACHER, task=GOAL), 3).spec)
    assert (type(env), env.episodes, type(env.env)) == (TrialWrapper, 3, ExperienceObservation)
    env.reset(seed=0)
    assert env.unwrapped.task == GOAL


@pytest.mark.parametrize("native", [False, True])
def test_a_recurrent_policy_of_another_library_meta_learns(native):
    """A few updates: its memory is reset where a trial ends, which is every 3 * 5 steps, and nowhere else."""
    options = {"max_episode_steps": 5}
    if native:
        env = MetaVecEnv(vector_inside(gymnasium.make_vec(REACHER, num_envs=2, **options), 3))
    else:
        env = make_vec_env(lambda: inside(gymnasium.make(REACHER, **options), 3), n_envs=2)
    small = {"lstm_hidden_size": 8, "net_arch": [8]}
    learner = RecurrentPPO("MlpLstmPolicy", env, n_steps=32, batch_size=16, n_epochs=1, seed=0, policy_kwargs=small)
    before = [weight.clone() for weight in learner.policy.parameters()]
    learner.learn(2 * 64)
    assert any((old != new).any() for old, new in zip(before, learner.policy.parameters(), strict=True))
    starts = learner.rollout_buffer.episode_starts.reshape(2, 32)  # of the second rollout, as it was learned from
    for row in starts:
        assert (np.flatnonzero(row) + 32).tolist() == [45, 60]


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_tokens_of_trials_in_gymnasiums_own_vector_env(mode):
    trials = [lambda: TrialWrapper(Counter(), episodes=2)] * 2
    with closing(SyncVectorEnv(trials, autoreset_mode=mode)) as vector:
        env, single = VectorExperienceObservation(vector), ExperienceObservation(TrialWrapper(Counter(), episodes=2))
        env.reset(seed=0)
        single.reset(seed=0)
        for action in (0.1, 0.3):  # the first episode of the trial ends
            tokens, _, _, _, info = env.step(np.full((2, 1), action))
            expected, _, terminated, truncated, of_one = single.step(np.array([action]))
        assert not terminated
        assert not truncated
        assert expected[-1] == 1.0
        np.testing.assert_array_equal(tokens, [expected, expected])
        np.testing.assert_array_equal(info["final_obs"][1], of_one["final_obs"])

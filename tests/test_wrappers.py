"""The observation wrapper shows a stateless caller the very tokens that the agent makes for itself."""

from contextlib import closing

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from icrl_agents import ExperienceObservation, VectorExperienceObservation
from icrl_agents.errors import ConfigError
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

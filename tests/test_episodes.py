"""Every loop that people write gives an agent the same experience."""

from contextlib import closing
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from icrl_agents import TrialWrapper, VectorTrialWrapper
from icrl_agents.envs import sample_tasks
from icrl_agents.errors import CallOrderError, ConfigError, InputError

REACHER = "icrl/ReacherGoal-v0"
MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED]


class Numbers(gymnasium.Env):
    """An environment worked out by hand: it counts its steps in all, pays the last action, and ends as it is told.

    Its observations tell rows, episodes and steps apart; every ``tasks``-th episode is of a new task.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, row=0, lengths=(2, 3, 1), tasks=2):
        self.row, self.lengths, self.tasks, self.episode = row, lengths, tasks, -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return self._observation(), {"new_task": self.episode % self.tasks == 0}

    def step(self, action):
        self.steps += 1
        over = self.steps == self.lengths[self.episode % len(self.lengths)]
        reward = float(action[0]) + 10 * self.episode + self.steps
        return self._observation(), reward, over and self.episode % 2 == 0, over and self.episode % 2 == 1, {}

    def _observation(self):
        return np.array([self.row, self.episode, self.steps], float)


ROWS = {"lengths": [(2, 3, 1), (4, 1, 2), (3, 3, 3)], "tasks": [2, 3, 5]}


def numbers(row=0):
    return Numbers(row, ROWS["lengths"][row], ROWS["tasks"][row])


def vector(mode):
    return SyncVectorEnv([lambda row=row: numbers(row) for row in range(3)], autoreset_mode=mode)


def by_hand(make_agent, row, episodes):
    """Actions, returns, lengths and new tasks of an agent of its own in one row, by the loop of the README."""
    agent, env = make_agent(observation_dim=3, action_dim=1), numbers(row)
    actions, returns, lengths, new_tasks = [], [], [], []
    observation, info = env.reset()
    for _ in range(episodes):
        if info["new_task"]:
            agent.reset()
        new_tasks.append(info["new_task"])
        returns.append(0.0)
        lengths.append(0)
        done = False
        while not done:
            action = agent.act(observation)
            actions.append(action)
            observation, reward, terminated, truncated, _ = env.step(action)
            agent.observe(reward, terminated, truncated)
            returns[-1] += reward
            lengths[-1] += 1
            done = terminated or truncated
        observation, info = env.reset()
    return np.array(actions), returns, lengths, new_tasks


@pytest.fixture(scope="module")
def expected(make_agent):
    """What five episodes in each row bring."""
    return [by_hand(make_agent, row, 5) for row in range(3)]


def assert_as_by_hand(record, expected):
    for row, (_, returns, lengths, new_tasks) in enumerate(expected):
        np.testing.assert_allclose(record.returns[row], returns, atol=1e-4)
        assert record.lengths[row].tolist() == lengths
        assert record.new_task[row].tolist() == new_tasks


@pytest.mark.parametrize("mode", MODES)
def test_rows_of_every_autoreset_mode_live_what_single_agents_live(make_agent, expected, mode):
    agent = make_agent(observation_dim=3, action_dim=1)
    with closing(vector(mode)) as env:
        assert_as_by_hand(agent.run_episodes(env, 5), expected)


def test_one_environment(make_agent, expected):
    agent, told = make_agent(observation_dim=3, action_dim=1), []
    record = agent.run_episodes(numbers(), 5, on_episode=lambda *episode: told.append(episode))
    whole = type(record)(record.returns[None], record.lengths[None], record.new_task[None])
    assert_as_by_hand(whole, expected[:1])
    assert told == [(0, e + 1, total) for e, total in enumerate(record.returns)]
    assert agent.num_envs is None


@pytest.mark.parametrize("mode", MODES)
def test_hand_written_vector_loops_live_what_single_agents_live(make_agent, expected, mode):
    agent = make_agent(observation_dim=3, action_dim=1)
    agent.reset(num_envs=3, autoreset_mode=mode.value)
    lived, resetting = [[], [], []], np.zeros(3, bool)
    with closing(vector(mode)) as env:
        observations, _ = env.reset()
        for _ in range(14):
            actions = agent.act(observations)
            for row in np.flatnonzero(~resetting):
                lived[row].append(actions[row])
            observations, rewards, terminated, truncated, info = env.step(actions)
            done = terminated | truncated
            agent.observe(rewards, done)  # one flag is enough
            if mode is AutoresetMode.DISABLED and done.any():
                observations, info = env.reset(options={"reset_mask": done})
            if "new_task" in info:
                agent.forget(info["new_task"] & info["_new_task"])
            resetting = done if mode is AutoresetMode.NEXT_STEP else resetting
    for row in range(3):
        actions = expected[row][0]
        steps = min(len(actions), len(lived[row]))
        assert steps >= 9
        np.testing.assert_allclose(lived[row][:steps], actions[:steps], atol=2e-5)


def test_a_loop_around_stable_baselines_vec_env(make_agent, expected):
    agent = make_agent(observation_dim=3, action_dim=1)
    env = DummyVecEnv([lambda row=row: numbers(row) for row in range(3)])
    agent.reset(env=env)
    assert agent.num_envs == 3
    observations, lived = env.reset(), []
    for _ in range(9):
        actions = agent.act(observations)
        lived.append(actions)
        observations, rewards, dones, _ = env.step(actions)
        agent.observe(rewards, dones)
        agent.forget([bool(d and info["new_task"]) for d, info in zip(dones, env.reset_infos, strict=True)])
    for row in range(3):
        np.testing.assert_allclose(np.array(lived)[:, row], expected[row][0][:9], atol=2e-5)


# ------------------------------------------------------------------ meta-environments


def test_native_rows_equal_single_environments(make_agent):
    tasks = sample_tasks(REACHER, 3, seed=0)
    agent = make_agent()
    with closing(agent.make_vec_env(3, tasks=tasks, max_episode_steps=4)) as env:
        together = agent.run_episodes(env, 3, seed=7)
    for row, task in enumerate(tasks):
        with agent.make_env(task=task, max_episode_steps=4) as env:
            alone = agent.run_episodes(env, 3, seed=7 + row)
        np.testing.assert_allclose(together.returns[row], alone.returns, atol=1e-4)
    assert together.new_task.tolist() == [[True, False, False]] * 3
    assert together.lengths.tolist() == [[4, 4, 4]] * 3


def test_trials_are_episodes_within_which_it_remembers(make_agent):
    task, agent = sample_tasks(REACHER, 1, seed=0)[0], make_agent()
    options = {"max_episode_steps": 3, "task": task}
    with agent.make_env(**options) as env:
        plain = agent.run_episodes(env, 2, seed=1)
    with TrialWrapper(agent.make_env(**options), 2) as env:
        trials = agent.run_episodes(env, 3, seed=1)
    assert trials.lengths.tolist() == [6, 6, 6]
    assert trials.new_task.tolist() == [True, True, True]
    np.testing.assert_allclose(trials.returns[0], plain.returns.sum(), rtol=1e-6)
    with closing(VectorTrialWrapper(agent.make_vec_env(2, **options), 2)) as env:
        rows = agent.run_episodes(env, 3, seed=1)
    np.testing.assert_allclose(rows.returns[0], trials.returns, atol=1e-4)
    assert rows.new_task.all()


# ------------------------------------------------------------------ going on


class OneTask(Numbers):
    """It never says that a task is new."""

    def reset(self, **options):
        return super().reset(**options)[0], {}


@pytest.mark.parametrize("mode", [None, AutoresetMode.DISABLED])
def test_two_runs_that_remember_are_one(make_agent, mode):
    def env():
        envs = [lambda row=row: OneTask(row, (2, 2)) for row in range(2)]
        return envs[0]() if mode is None else SyncVectorEnv(envs, autoreset_mode=mode)

    whole = make_agent(observation_dim=3, action_dim=1).run_episodes(env(), 4)
    agent, same = make_agent(observation_dim=3, action_dim=1), env()
    first, second = agent.run_episodes(same, 2), agent.run_episodes(same, 2, remember=True)
    np.testing.assert_allclose(np.concatenate([first.returns, second.returns], -1), whole.returns, atol=1e-4)
    assert first.new_task[..., 0].all()
    assert not second.new_task.any()
    forgetful, same = make_agent(observation_dim=3, action_dim=1), env()
    forgetful.run_episodes(same, 2)
    assert not np.allclose(forgetful.run_episodes(same, 2).returns, second.returns, atol=1e-4)


@pytest.mark.parametrize("mode", [None, *MODES])
def test_what_it_remembers_is_forgotten_at_later_tasks_alone(make_agent, mode):
    """The first reset is the caller's word, which the environment cannot know: that the task is the old one."""
    agent = make_agent(observation_dim=3, action_dim=1)
    agent.reset(num_envs=None if mode is None else 3)
    with closing(numbers() if mode is None else vector(mode)) as env:
        record = agent.run_episodes(env, 6, remember=True)
    expected = np.stack([np.arange(6) % every == 0 for every in ROWS["tasks"]])
    expected[:, 0] = False
    np.testing.assert_array_equal(record.new_task, expected[0] if mode is None else expected)
    whole = make_agent(observation_dim=3, action_dim=1).run_episodes(numbers() if mode is None else vector(mode), 6)
    np.testing.assert_allclose(record.returns, whole.returns, atol=1e-4)  # what it knew before was nothing


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_episodes_that_a_second_run_cuts_short_have_ended(make_agent, mode):
    """The environment began them by itself; the agent's next token is a first one."""
    agent = make_agent(observation_dim=3, action_dim=1)
    with closing(SyncVectorEnv([lambda: OneTask(0, (2, 2))], autoreset_mode=mode)) as env:
        agent.run_episodes(env, 1)
        twin = agent.clone()
        record = agent.run_episodes(env, 1, remember=True)
    twin.begin_episode()
    total, episode = 0.0, record.returns[0, 0]
    other = OneTask(0, (2, 2))
    other.episode = 1 if mode is AutoresetMode.SAME_STEP else 0  # SAME_STEP had begun one more
    observation, _ = other.reset()
    for _ in range(2):
        observation, reward, terminated, truncated, _ = other.step(twin.act(observation[None])[0])
        twin.observe([reward], [terminated or truncated])
        total += reward
    assert total == pytest.approx(episode, abs=1e-4)


def test_demonstrations_are_remembered_in_the_first_episode(make_agent):
    rng, task = np.random.default_rng(0), sample_tasks(REACHER, 1, seed=0)[0]
    demonstration = SimpleNamespace(
        observations=rng.normal(size=(12, 8)),
        actions=rng.uniform(-1, 1, size=(12, 2)),
        rewards=rng.normal(size=12),
        terminated=np.zeros(12, bool),
        truncated=np.arange(12) % 4 == 3,
    )
    agent, by_hand = make_agent(), make_agent()
    with agent.make_env(task=task, max_episode_steps=5) as env:
        cold = agent.run_episodes(env, 2, seed=0)
        agent.reset()
        agent.prefill(demonstration)
        warm = agent.run_episodes(env, 2, seed=0, remember=True)
        agent.reset()
        agent.prefill(demonstration)
        with agent.make_env(task=task, max_episode_steps=5) as new:  # its first reset calls the task a new one
            np.testing.assert_array_equal(agent.run_episodes(new, 2, seed=0, remember=True).returns, warm.returns)
        agent.reset(num_envs=1)
        agent.prefill(SimpleNamespace(**{name: array[None] for name, array in vars(demonstration).items()}))
        with closing(agent.make_vec_env(1, tasks=[task], max_episode_steps=5)) as new:
            in_a_row = agent.run_episodes(new, 2, seed=0, remember=True)
        by_hand.prefill(demonstration)
        observation, _ = env.reset(seed=0)
        total = 0.0
        for _ in range(5):
            observation, reward, terminated, truncated, _ = env.step(by_hand.act(observation))
            by_hand.observe(reward, terminated, truncated)
            total += reward
    assert not warm.new_task.any()
    assert not in_a_row.new_task.any()
    np.testing.assert_allclose(in_a_row.returns[0], warm.returns, atol=1e-4)
    assert cold.new_task.tolist() == [True, False]
    assert warm.returns[0] == pytest.approx(total)
    assert abs(warm.returns - cold.returns).max() > 1e-3


def test_what_cannot_be_run_is_refused(make_agent):
    agent = make_agent(observation_dim=3, action_dim=1)
    for episodes in (0, -1, 1.5, True, "2"):
        with pytest.raises(InputError, match="whole number"):
            agent.run_episodes(numbers(), episodes)
    with pytest.raises(InputError, match="gymnasium Env or VectorEnv, got str"):
        agent.run_episodes("icrl/ReacherGoal-v0")
    with pytest.raises(InputError, match="expected an environment with spaces, got str"):
        agent.reset(env="icrl/ReacherGoal-v0")
    with closing(vector(AutoresetMode.SAME_STEP)) as env:
        with pytest.raises(InputError, match="one environment, and cannot go on in 3 rows"):
            agent.run_episodes(env, remember=True)
        with pytest.raises(ConfigError, match="sometimes"):
            agent.run_episodes(env, autoreset_mode="sometimes")
    agent.act(np.zeros(3))
    with pytest.raises(CallOrderError):
        agent.run_episodes(numbers(), remember=True)
    with pytest.raises(ConfigError, match=r"\(3,\)"), gymnasium.make(REACHER) as env:
        agent.run_episodes(env)
    with closing(vector(AutoresetMode.SAME_STEP)) as env, pytest.raises(InputError, match="infos as one dict"):
        agent.run_episodes(gymnasium.wrappers.vector.DictInfoToList(env))


def test_only_done_is_enough(make_agent):
    ours, theirs = make_agent(observation_dim=3, action_dim=1), make_agent(observation_dim=3, action_dim=1)
    for step in range(8):
        observation = np.array([1.0, 2.0, step])
        np.testing.assert_array_equal(ours.act(observation), theirs.act(observation))
        done = step % 3 == 2
        ours.observe(1.0, done)
        theirs.observe(1.0, False, done)


@pytest.mark.parametrize("mode", MODES)
def test_trials_in_gymnasiums_own_vector_env(make_agent, mode):
    """Where an episode inside a trial ends, no row resets, and no step is lost."""
    goals = sample_tasks(REACHER, 2, seed=0)

    def lived_in(envs, agent):
        with closing(SyncVectorEnv(envs, autoreset_mode=mode)) as env:
            return agent.run_episodes(env, 1, seed=3)

    def trial(goal):
        return TrialWrapper(gymnasium.make(REACHER, task=goal, max_episode_steps=3), episodes=2)

    found = lived_in([lambda goal=goal: trial(goal) for goal in goals], make_agent())
    for row, goal in enumerate(goals):
        with trial(goal) as env:
            alone = make_agent().run_episodes(env, 1, seed=3 + row)
        np.testing.assert_allclose(found.returns[row], alone.returns, rtol=1e-5)
        np.testing.assert_array_equal(found.lengths[row], alone.lengths)

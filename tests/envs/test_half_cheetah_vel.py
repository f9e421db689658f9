"""HalfCheetah-Vel: rewards worked by hand, the literature's observation, tasks."""

import pickle

import gymnasium
import numpy as np
import pytest

from icrl_agents.envs import MetaEnv, env_definition
from icrl_agents.envs.definition import PhysicsState
from icrl_agents.errors import TaskError, UnknownNameError

ENV_ID = "icrl/HalfCheetahVel-v0"


def state(x: float) -> PhysicsState:
    qpos = np.zeros((1, 9))
    qpos[0, 0] = x
    return PhysicsState(qpos, np.zeros((1, 9)), np.zeros((1, 8, 3)))


@pytest.mark.parametrize(
    ("before", "after", "velocity", "target", "expected"),
    [
        (1.0, 1.1, 2.0, 2.5, -0.5 - 0.05 * 1.5),
        (1.0, 1.1, 2.0, 0.5, -1.5 - 0.05 * 1.5),
        (0.0, -0.05, -1.0, 1.5, -2.5 - 0.05 * 1.5),
    ],
)
def test_reward_by_hand(before: float, after: float, velocity: float, target: float, expected: float) -> None:
    definition = env_definition(ENV_ID)
    action = np.array([[1.0, -0.5, 0.5, 0.0, 0.0, 0.0]])  # squares sum to 1.5
    remembered = definition.remember(state(before))
    reward, parts = definition.reward(remembered, state(after), action, np.array([[target]]))
    assert parts["x_velocity"][0] == pytest.approx(velocity)
    assert reward[0] == pytest.approx(expected)


def test_task_error_is_of_the_mean_velocity() -> None:
    parts = {"x_velocity": np.array([[1.0, 2.0, 3.0], [0.5, 1.5, np.nan]])}
    error = env_definition(ENV_ID).task_error(parts, np.array([[2.5], [0.0]]))
    np.testing.assert_allclose(error, [0.5, 1.0])


@pytest.mark.parametrize("rows", [None, 3])
def test_pearls_observation_adds_the_torsos_position(rows: int | None) -> None:
    """Against v5's data: positions without x, velocities, and the torso as MjData has it after a step."""
    task = {"velocity": 1.0}
    env = gymnasium.make(ENV_ID, task=task, observation="pearl")
    plain = gymnasium.make(ENV_ID, task=task)
    many = None if rows is None else gymnasium.make_vec(ENV_ID, num_envs=rows, task=task, observation="pearl")
    observation, _ = env.reset(seed=0)
    plain.reset(seed=0)
    together = None if many is None else many.reset(seed=0)[0]
    assert env.observation_space.shape == (20,)
    rng = np.random.default_rng(0)
    for _ in range(30):
        action = rng.uniform(-1, 1, 6)
        observation, reward, *_ = env.step(action)
        seventeen, same_reward, *_ = plain.step(action)
        data = plain.unwrapped.data  # type: ignore[attr-defined]
        np.testing.assert_array_equal(observation, np.concatenate([seventeen, data.body("torso").xpos]))
        assert reward == same_reward
        if many is not None:
            together, *_ = many.step(np.tile(action, (rows or 1, 1)))
            np.testing.assert_array_equal(together[0], observation)
    assert together is None or together.shape == (rows, 20)


def test_pearls_observation_survives_spec_and_pickle() -> None:
    env = gymnasium.make(ENV_ID, observation="pearl")
    env.reset(seed=0)
    assert env.spec is not None
    assert '"observation": "pearl"' in env.spec.to_json()
    assert gymnasium.make(env.spec).observation_space == env.observation_space
    inner = env.unwrapped
    assert isinstance(inner, MetaEnv)
    copy = pickle.loads(pickle.dumps(inner))
    assert copy.reset()[0].shape == (20,)
    assert copy.task == inner.task


@pytest.mark.parametrize("vector", [False, True])
def test_other_observations_are_refused(vector: bool) -> None:
    make = gymnasium.make_vec if vector else gymnasium.make
    with pytest.raises(UnknownNameError, match=r"observation .*'perl'.* Did you mean 'pearl'\? Known: pearl, v5"):
        make(ENV_ID, observation="perl")


@pytest.mark.parametrize("velocity", [-0.01, 3.01])
def test_other_velocities_are_refused(velocity: float) -> None:
    with pytest.raises(TaskError, match=rf"between 0 and 3\.0 m/s, got {velocity}"):
        gymnasium.make(ENV_ID, task={"velocity": velocity})


def test_a_velocity_is_a_number_however_it_was_given() -> None:
    definition = env_definition(ENV_ID)
    for given in (1.25, [1.25], np.float32(1.25), np.array(1.25)):
        assert definition.canonical_task({"velocity": given}) == {"velocity": 1.25}
    with pytest.raises(TaskError, match=r"'velocity' .* is 1 finite number\(s\), got \[1.0, 2.0\]"):
        definition.task_vector({"velocity": [1.0, 2.0]})


def test_velocities_are_uniform() -> None:
    tasks = env_definition(ENV_ID).sample_tasks(4000, np.random.SeedSequence(0))
    velocities = np.array([task["velocity"] for task in tasks])
    assert 0 <= velocities.min() < 0.01
    assert 2.99 < velocities.max() <= 3
    counts, _ = np.histogram(velocities, 6, (0, 3))
    assert np.abs(counts - 4000 / 6).max() < 4 * np.sqrt(4000 * 5 / 36)

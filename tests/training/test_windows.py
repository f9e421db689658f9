import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import icrl_agents.envs  # noqa: F401  registers the environments
from icrl_agents.errors import ConfigError
from icrl_agents.tokens import TokenLayout
from icrl_agents.training.histories import History, HistoryDataset, HistoryWriter
from icrl_agents.training.windows import (
    KeptHistories,
    WindowSampler,
    kept_episodes,
    token_statistics,
)
from icrl_agents.wrappers import ExperienceObservation


def kept(dataset, histories=None, keep_every=2, target="sampled", **options):
    histories = range(len(dataset)) if histories is None else histories
    return KeptHistories(dataset, histories, keep_every, target, -np.ones(2), np.ones(2), **options)


def placed(directory, make_manifest, make_arrays, ends, steps):
    """A dataset whose observations say (history, step): where a window was cut is read off its tokens."""
    manifest = make_manifest(tasks=len(ends), streams=1, observation_dim=2, action_dim=2)
    arrays = make_arrays(manifest, ends, steps)
    at = np.indices((len(ends), steps)).astype(np.float32)  # [2, H, T]
    with HistoryWriter.create_or_resume(directory, manifest) as writer:
        writer.append(arrays | {"observations": np.moveaxis(at, 0, -1), "rewards": at[1] + 0.5}, {})
        writer.finish(np.zeros(len(ends)))
    return HistoryDataset(directory)


@pytest.mark.parametrize(
    ("episodes", "k", "offset", "expected"),
    [
        (8, 2, None, [1, 3, 5, 7]),
        (400, 100, None, [99, 199, 299, 399]),
        (7, 3, None, [0, 3, 6]),
        (8, 3, None, [1, 4, 7]),
        (2, 5, None, [1]),
        (8, 3, 0, [0, 3, 6]),
        (0, 3, None, []),
        (3, 1, None, [0, 1, 2]),
    ],
)
def test_kept_episodes(episodes, k, offset, expected):
    assert kept_episodes(episodes, k, offset).tolist() == expected


def test_tokens_by_hand(tmp_path, make_manifest, make_arrays):
    # Episodes of 2, 1, 1 and 2 steps; one in two is kept: the second and the last.
    dataset = placed(tmp_path, make_manifest, make_arrays, [[2, 3, 4, 6]], 6)
    actions = dataset.history(0).actions
    history = kept(dataset).load(0)
    observed = {
        # observation | previous observation | previous action | previous reward | episode start
        0: [0, 2, 0, 0, 0, 0, 0, 1],  # the first step of all: previous is 0, though step 1 was before it
        1: [0, 4, 0, 2, *actions[2], 2.5, 1],  # previous is the end of the last *kept* episode
        2: [0, 5, 0, 4, *actions[4], 4.5, 0],
    }
    np.testing.assert_array_equal(history.tokens, np.float32(list(observed.values())))
    np.testing.assert_array_equal(history.targets, actions[[2, 4, 5]])
    assert history.episode_starts.tolist() == [0, 1]


def test_tokens_are_those_that_an_agent_sees():
    """The tokens of a recorded history equal what the observation wrapper shows while it is made."""
    env = ExperienceObservation(gymnasium.make("icrl/ReacherGoal-v0"))
    random, rows, tokens = np.random.default_rng(0), [], []
    for episode in range(3):
        token, _ = env.reset(seed=0 if episode == 0 else None)
        done = False
        while not done:
            action = random.uniform(-1, 1, 2).astype(np.float32)
            following, reward, terminated, truncated, _ = env.step(action)
            rows.append((token[env.layout.observation], action, action, reward, terminated, truncated))
            tokens.append(token)
            token, done = following, terminated or truncated
    arrays = [np.array(column) for column in zip(*rows, strict=True)]
    history = History(*arrays, np.zeros((3, 8)), np.array([50, 100, 150]))
    np.testing.assert_allclose(
        env.layout.encode_history(
            history.observations, history.actions, history.rewards, history.terminated | history.truncated
        ),
        np.array(tokens),
        rtol=1e-6,
    )


def test_targets(tmp_path, make_dataset):
    dataset = make_dataset(tmp_path, tasks=3, streams=2)
    history = dataset.history(4, [1, 3, 5, 7])  # stream 0 of task 2
    np.testing.assert_array_equal(kept(dataset).load(4).targets, history.actions)
    assert np.abs(history.mean_actions).max() > 1  # what cannot be executed is not asked for
    expected = history.mean_actions.clip(-1, 1)
    np.testing.assert_array_equal(kept(dataset, target="source_mean").load(4).targets, expected)

    def final_policy(task_index, observations):
        return np.tile([task_index / 10, 0.5], (len(observations), 1)) * np.sign(observations[:, :1])

    chosen = kept(dataset, target="final_policy", final_policy=final_policy).load(4).targets
    sign = np.sign(history.observations[:, :1])
    np.testing.assert_array_equal(chosen, np.float32(sign * [0.2, 0.5]))


def test_a_final_policy_must_be_there_and_fit(tmp_path, make_dataset):
    dataset = make_dataset(tmp_path)
    with pytest.raises(ConfigError, match="needs the final policy"):
        kept(dataset, target="final_policy")
    with pytest.raises(ConfigError, match=r"expected \(20, 2\), got \(20, 3\)"):
        kept(dataset, target="final_policy", final_policy=lambda task, o: np.zeros((len(o), 3))).load(0)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 4), min_size=3, max_size=9), min_size=1, max_size=4),
    keep_every=st.integers(1, 3),
    length=st.integers(1, 12),
    random_offset=st.booleans(),
    seed=st.integers(0, 99),
)
def test_windows_are_unbroken_pieces_of_one_history(
    tmp_path_factory, make_manifest, make_arrays, lengths, keep_every, length, random_offset, seed
):
    ends = [np.cumsum(own).tolist() for own in lengths]
    directory = tmp_path_factory.mktemp("data")
    dataset = placed(directory, make_manifest, make_arrays, ends, max(own[-1] for own in ends))
    layout = TokenLayout(2, 2)
    sampler = WindowSampler(kept(dataset, keep_every=keep_every), 8, length, random_offset=random_offset, seed=seed)
    batch = sampler.sample()
    assert batch.tokens.shape == (8, length, layout.size)
    for tokens, targets, weights in zip(batch.tokens, batch.targets, batch.weights, strict=True):
        steps = int(weights.sum())
        assert (weights[:steps] == 1).all()
        assert steps >= 1
        assert not tokens[steps:].any()
        where = tokens[:steps, layout.observation]
        history = int(where[0, 0])
        assert (where[:, 0] == history).all()
        own_steps = where[:, 1].astype(int)
        np.testing.assert_array_equal(targets[:steps], dataset.history(history).actions[own_steps])

        # The kept steps of that history, whichever offset was drawn; the window is a run of them.
        bounds = [0, *ends[history]]
        choices = []
        for offset in range(keep_every) if random_offset else [None]:
            episodes = kept_episodes(len(ends[history]), keep_every, offset)
            choices.append([t for e in episodes for t in range(bounds[e], bounds[e + 1])])
        runs = [c for c in choices if own_steps[0] in c]
        assert len(runs) == 1
        first = runs[0].index(own_steps[0])
        assert own_steps.tolist() == runs[0][first : first + steps]
        assert steps == length or (first == 0 and steps == len(runs[0]))  # only whole histories are shorter

        starts = tokens[:steps, layout.episode_start]
        np.testing.assert_array_equal(starts, np.isin(own_steps, bounds))
        assert starts[0] == 1
        previous = [-1, *runs[0]][first : first + steps]  # the kept step before each
        for token, step in zip(tokens[:steps], previous, strict=True):
            if step < 0:
                assert not token[2:-1].any()
            else:
                assert token[layout.previous_observation].tolist() == [history, step]
                assert token[layout.previous_reward] == step + 0.5


def test_at_least_half_of_the_windows_begin_with_their_history(tmp_path, make_dataset):
    dataset = make_dataset(tmp_path, episodes=20)

    def share(from_start):
        sampler = WindowSampler(kept(dataset), 400, 10, from_start=from_start)
        return float((sampler.sample().tokens[:, 0, 8:-1] == 0).all(-1).mean())

    assert share(1.0) == 1.0
    # Half, and of the others each ninth, for they begin at one of 9 episodes: 0.556; 400 draws.
    assert 0.48 < share(0.5) < 0.63
    with pytest.raises(ConfigError, match=r"at least 0\.5"):
        share(0.4)


def test_every_history_is_drawn_before_any_is_drawn_again(tmp_path, make_manifest, make_arrays):
    dataset = placed(tmp_path, make_manifest, make_arrays, [[2, 4]] * 6, 4)
    sampler = WindowSampler(kept(dataset), 3, 2)
    rounds = [np.concatenate([sampler.sample().tokens[:, 0, 0] for _ in range(2)]) for _ in range(3)]
    assert all(sorted(drawn) == list(range(6)) for drawn in rounds)
    assert not all((drawn == rounds[0]).all() for drawn in rounds)


@settings(max_examples=15, deadline=None)
@given(before=st.integers(0, 5), random_offset=st.booleans())
def test_a_restored_sampler_goes_on_as_if_nothing_had_been(tmp_path_factory, make_dataset, before, random_offset):
    dataset = make_dataset(tmp_path_factory.mktemp("data"), episodes=10)

    def sampler(seed):
        return WindowSampler(kept(dataset), 3, 10, random_offset=random_offset, seed=seed)

    one, other = sampler(seed=1), sampler(seed=2)
    for _ in range(before):
        one.sample()
    other.restore(one.state())
    for _ in range(3):
        expected, batch = one.sample(), other.sample()
        np.testing.assert_array_equal(batch.tokens, expected.tokens)
        np.testing.assert_array_equal(batch.targets, expected.targets)


def test_random_offset_shows_all_episodes(tmp_path, make_manifest, make_arrays):
    dataset = placed(tmp_path, make_manifest, make_arrays, [[2, 4, 6, 8]], 8)

    def seen(**options):
        sampler = WindowSampler(kept(dataset), 32, 4, **options)
        return set(sampler.sample().tokens[..., 1].ravel().astype(int))

    assert seen() == {2, 3, 6, 7}
    assert seen(random_offset=True) == set(range(8))


def test_statistics():
    layout = TokenLayout(observation_dim=2, action_dim=1)
    one = np.zeros((3, layout.size), np.float32)
    one[:, layout.observation] = [[1, 5], [3, 5], [5, 5]]
    one[:, layout.previous_reward] = [0, -1, -3]  # the first step has no reward before it
    one[:, layout.previous_action] = 7
    two = one[:2].copy()
    two[:, layout.observation] = [[7, 5], [9, 5]]
    two[:, layout.previous_reward] = [0, -5]
    mean, std = token_statistics([one, two], layout)
    # observation 1, 3, 5, 7, 9: mean 5, variance (16 + 4 + 0 + 4 + 16) / 5 = 8; the second entry is constant
    # reward -1, -3, -5: mean -3, variance 8 / 3
    np.testing.assert_allclose(mean, [5, 5, 5, 5, 0, -3, 0])
    np.testing.assert_allclose(std, [8**0.5, 1, 8**0.5, 1, 1, (8 / 3) ** 0.5, 1], rtol=1e-6)

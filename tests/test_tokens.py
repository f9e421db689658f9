"""The layout of a token."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl_agents.tokens import TokenLayout


def test_layout_of_reacher_worked_by_hand():
    at = TokenLayout(observation_dim=8, action_dim=2)
    assert at.size == 20
    assert (at.observation, at.previous_observation) == (slice(0, 8), slice(8, 16))
    assert (at.previous_action, at.previous_reward, at.episode_start) == (slice(16, 18), 18, 19)


@given(st.integers(1, 30), st.integers(1, 10))
def test_the_parts_cover_a_token_once(observation_dim, action_dim):
    at = TokenLayout(observation_dim, action_dim)
    covered = np.zeros(at.size, int)
    for part in (
        at.observation,
        at.previous_observation,
        at.previous_action,
        at.previous_reward,
        at.episode_start,
    ):
        covered[part] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_encode_puts_every_part_in_its_place(lead):
    at = TokenLayout(2, 1)
    token = at.encode(np.full((*lead, 2), 1), np.full((*lead, 2), 2), np.full((*lead, 1), 3), np.full(lead, 4), True)
    assert token.shape == (*lead, 7)
    assert token.dtype == np.float32
    np.testing.assert_array_equal(token, np.broadcast_to([1, 1, 2, 2, 3, 4, 1], (*lead, 7)))


@pytest.mark.parametrize("lead", [(), (2,)])
def test_a_history_worked_by_hand(lead):
    at = TokenLayout(1, 1)

    def rows(*values):
        return np.broadcast_to(np.array(values, float), (*lead, len(values)))

    tokens = at.encode_history(
        observations=rows(10, 11, 20, 21)[..., None],
        actions=rows(0.1, 0.2, 0.3, 0.4)[..., None],
        rewards=rows(1, 2, 3, 4),
        ends=rows(0, 1, 0, 1),
    )
    expected = [[10, 0, 0, 0, 1], [11, 10, 0.1, 1, 0], [20, 11, 0.2, 2, 1], [21, 20, 0.3, 3, 0]]
    np.testing.assert_array_equal(tokens, np.broadcast_to(np.float32(expected), (*lead, 4, 5)))


def test_an_empty_history_has_no_tokens():
    tokens = TokenLayout(3, 2).encode_history(np.zeros((0, 3)), np.zeros((0, 2)), np.zeros(0), np.zeros(0, bool))
    assert tokens.shape == (0, 10)

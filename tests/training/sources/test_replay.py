"""The replay buffer holds the last steps of every learner, and one gather gives each its own."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl_agents.training.sources.action_bounds import ActionBounds
from icrl_agents.training.sources.replay import ReplayBuffer

K, S = 2, 3


def steps(first: int, count: int) -> tuple[torch.Tensor, ...]:
    """Transitions whose numbers say learner, stream and step."""
    k, s, t = torch.meshgrid(torch.arange(K), torch.arange(S), torch.arange(first, first + count), indexing="ij")
    name = (10_000 * k + 1_000 * s + t).float()
    return name[..., None], -name[..., None], name[..., None] + 0.5, 2 * name, t % 4 == 3


@settings(max_examples=30, deadline=None)
@given(pieces=st.lists(st.integers(1, 9), min_size=1, max_size=6), capacity=st.integers(1, 30))
def test_it_holds_the_last_steps_of_every_learner(pieces: list[int], capacity: int) -> None:
    replay = ReplayBuffer(K, S, capacity, 1, 1)
    kept = max(1, capacity // S)
    total = 0
    for count in pieces:
        replay.extend(*steps(total, count))
        total += count
    assert replay.steps == total
    assert len(replay) == min(total, kept) * S
    batch = replay.gather(torch.arange(len(replay)).expand(K, -1))
    for k in range(K):
        names = {10_000 * k + 1_000 * s + t for s in range(S) for t in range(max(0, total - kept), total)}
        assert set(batch.observations[k, :, 0].tolist()) == names
    name = batch.observations[..., 0]
    torch.testing.assert_close(batch.pairs, torch.stack([name, -name], -1))
    torch.testing.assert_close(batch.next_observations[..., 0], name + 0.5)
    torch.testing.assert_close(batch.rewards, 2 * name)
    torch.testing.assert_close(batch.continues, (name % 4 != 3).float())


@given(
    low=st.floats(-5, 0, width=32),
    width=st.floats(0.125, 10, width=32),
    unit=st.floats(-1, 1, width=32),
)
def test_actions_scale_to_the_bounds_and_back(low: float, width: float, unit: float) -> None:
    bounds = ActionBounds(np.array([low]), np.array([low + width]))
    action = bounds.from_unit(np.array([unit], np.float32))
    assert action.dtype == np.float32
    assert np.float32(low) <= action[0] <= np.float32(low + width)
    np.testing.assert_allclose(action, low + (unit + 1) / 2 * width, atol=1e-5)
    np.testing.assert_allclose(bounds.to_unit(action), unit, atol=1e-4)

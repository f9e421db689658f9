"""Lives of an agent that several files of tests need."""

from types import SimpleNamespace

import numpy as np


def spy_on(agent, monkeypatch):
    """The tokens [R, T] of each call of the model's step, as a growing list."""
    seen, step = [], agent.model.step

    def recording(tokens, carry, **options):
        seen.append(tokens.numpy().copy())
        return step(tokens, carry, **options)

    monkeypatch.setattr(agent.model, "step", recording)
    return seen


def experience(rng, steps, rows=None, observation_dim=8, action_dim=2):
    """Random experience [(rows,) steps, ...]."""
    lead = (steps,) if rows is None else (rows, steps)
    return SimpleNamespace(
        observations=rng.normal(size=(*lead, observation_dim)),
        actions=rng.uniform(-1, 1, size=(*lead, action_dim)),
        rewards=rng.normal(size=lead),
        terminated=rng.random(lead) < 0.2,
        truncated=rng.random(lead) < 0.1,
    )


def live(agent, history):
    """Act through recorded experience, its actions being executed; the actions the agent would have taken."""
    wanted = []
    for t in range(history.rewards.shape[-1]):
        at = (..., t) if agent.num_envs else (t,)
        wanted.append(agent.act(history.observations[(*at, slice(None))]))
        agent.observe(
            history.rewards[at],
            history.terminated[at],
            history.truncated[at],
            action=history.actions[(*at, slice(None))],
        )
    return np.array(wanted)

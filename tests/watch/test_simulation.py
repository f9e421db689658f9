"""The loop behind the page, without a page."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from icrl_agents.agent import InContextAgent
from icrl_agents.envs import env_definition, env_ids, task_split
from icrl_agents.envs.markers import TARGET
from icrl_agents.errors import ConfigError, TaskError
from icrl_agents.evaluation import rollout
from icrl_agents.watch.simulation import LiveSimulation, Simulation, task_ranges

HERE, THERE = {"goal": [0.1, 0.05]}, {"goal": [-0.12, 0.02]}


@pytest.fixture
def simulation(make_agent: Callable[..., InContextAgent]) -> Iterator[Simulation]:
    made = Simulation(make_agent(), HERE, seed=3)
    yield made
    made.close()


def agent_for(env_id: str, make_agent: Callable[..., InContextAgent]) -> InContextAgent:
    """A tiny agent of random weights for any environment."""
    env = gymnasium.make(env_id)
    assert env.spec is not None
    assert env.spec.max_episode_steps is not None
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    agent = make_agent(observation_dim=env.observation_space.shape[0], action_dim=space.shape[0])  # type: ignore[index]
    env.close()
    config = replace(
        agent.config,
        env_id=env_id,
        action_low=tuple(space.low.tolist()),
        action_high=tuple(space.high.tolist()),
        episode_steps=env.spec.max_episode_steps,
        split_hash=task_split(env_id).content_hash,
    )
    return InContextAgent(agent.model, config)


def live_episode(simulation: Simulation) -> None:
    before = len(simulation.frame().episodes)
    while len(simulation.frame().episodes) == before:
        simulation.step()


def memory(simulation: Simulation) -> list[torch.Tensor]:
    leaves: list[torch.Tensor] = torch.utils._pytree.tree_leaves(simulation.agent._state.carry)
    return [leaf.clone() for leaf in leaves]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_it_lives_as_a_rollout_does(simulation: Simulation) -> None:
    for _ in range(3):
        live_episode(simulation)
    expected = rollout(simulation.agent.clone(), [HERE], 3, seed=3).returns[0]
    episodes = simulation.frame().episodes
    assert [episode.total for episode in episodes] == pytest.approx(expected, abs=1e-3)
    assert [(e.steps, e.task, e.moved) for e in episodes] == [(50, HERE, False)] * 3


def test_a_moved_task_holds_from_the_next_episode_and_the_agent_keeps_its_memory(simulation: Simulation) -> None:
    live_episode(simulation)
    simulation.step()
    before = memory(simulation)
    simulation.move(THERE)
    simulation.obey()
    assert same(memory(simulation), before)
    frame = simulation.frame()
    assert (frame.task, frame.next_task) == (HERE, THERE)
    live_episode(simulation)
    remembered = memory(simulation)
    frame = simulation.frame()
    assert (frame.task, frame.next_task, frame.steps) == (THERE, None, 0)
    assert simulation.env.unwrapped.task == THERE  # type: ignore[attr-defined]
    fresh = torch.utils._pytree.tree_leaves(simulation.agent.model.backbone.initial_carry(1))
    assert not same(remembered, fresh)
    live_episode(simulation)
    assert [(e.task, e.moved) for e in simulation.frame().episodes] == [(HERE, False), (HERE, False), (THERE, True)]


def test_forgetting_empties_memory_and_curve_and_keeps_the_task(simulation: Simulation) -> None:
    live_episode(simulation)
    simulation.move(THERE)
    live_episode(simulation)
    simulation.forget()
    simulation.obey()
    frame = simulation.frame()
    assert (frame.episodes, frame.steps, frame.total, frame.task) == ((), 0, 0.0, THERE)
    fresh = torch.utils._pytree.tree_leaves(simulation.agent.model.backbone.initial_carry(1))
    assert same(memory(simulation), fresh)
    live_episode(simulation)
    (episode,) = simulation.frame().episodes
    assert not episode.moved  # to an agent that knows nothing, no task is another


def test_an_episode_cut_short_counts_for_nothing_and_lets_the_task_move_at_once(simulation: Simulation) -> None:
    for _ in range(7):
        simulation.step()
    before = memory(simulation)
    simulation.move(THERE)
    simulation.end_episode()
    simulation.obey()
    assert same(memory(simulation), before)
    frame = simulation.frame()
    assert (frame.episodes, frame.steps, frame.task) == ((), 0, THERE)
    assert simulation.agent._state.tokens[0, simulation.agent.model.layout.episode_start] == 1.0
    simulation.end_episode()
    live_episode(simulation)
    (episode,) = simulation.frame().episodes
    assert (episode.steps, episode.moved) == (50, True)


def test_the_next_place_of_the_goal_is_shown_before_it_holds(simulation: Simulation) -> None:
    assert simulation.frame().next_geoms == {}
    simulation.move(THERE)
    (position,) = simulation.frame().next_geoms.values()
    np.testing.assert_allclose(position[:2], THERE["goal"])


def test_a_task_that_fits_not_is_refused_and_changes_nothing(simulation: Simulation) -> None:
    with pytest.raises(TaskError, match="within"):
        simulation.move({"goal": [0.2, 0.2]})
    assert simulation.frame().next_task is None


def test_random_tasks_come_from_the_seed(make_agent: Callable[..., InContextAgent]) -> None:
    first, again, other = (Simulation(make_agent(), seed=seed) for seed in (1, 1, 2))
    drawn = [(s.frame().task, s.move_anywhere(), s.move_anywhere()) for s in (first, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][1] != drawn[0][2]
    for simulation in (first, again, other):
        simulation.close()


@pytest.mark.parametrize("env_id", env_ids())
def test_every_environment_can_be_watched(env_id: str, make_agent: Callable[..., InContextAgent]) -> None:
    simulation = Simulation(agent_for(env_id, make_agent), seed=0)
    simulation.step()
    simulation.move_anywhere()
    frame = simulation.frame()
    assert frame.positions.shape == (simulation.model.ngeom, 3)
    assert np.isfinite(frame.positions).all()
    assert frame.next_geoms or any(marker.rgba == TARGET for marker in frame.next_markers)
    assert bool(frame.next_geoms) == (env_id in ("icrl/ReacherGoal-v0", "icrl/PusherGoal-v0"))
    assert len(frame.markers) == len(frame.next_markers)
    simulation.close()


@pytest.mark.parametrize("env_id", env_ids())
def test_sliders_span_the_tasks(env_id: str) -> None:
    definition = env_definition(env_id)
    ranges = task_ranges(definition)
    assert {key: len(of) for key, of in ranges.items()} == definition.task_keys
    for task in definition.sample_tasks(200, seed=5):
        numbers = definition.task_numbers(task)
        for number, at in zip(numbers, [at for of in ranges.values() for at in of], strict=True):
            slack = 0.03 * (at.high - at.low)
            assert at.low - slack <= number <= at.high + slack
            assert 100 <= (at.high - at.low) / at.step <= 1_000


def test_the_ranges_of_a_direction_and_of_a_speed_are_the_known_ones() -> None:
    (direction,) = task_ranges(env_definition("icrl/AntDir-v0"))["direction"]
    assert (direction.low, direction.high, direction.step) == (0.0, 6.28, 0.01)
    (velocity,) = task_ranges(env_definition("icrl/HalfCheetahVel-v0"))["velocity"]
    assert (velocity.low, velocity.high, velocity.step) == (0.0, 3.0, 0.01)


def test_only_meta_environments_can_be_watched(
    make_agent: Callable[..., InContextAgent], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent()
    monkeypatch.setattr(agent, "make_env", lambda **options: gymnasium.make("CartPole-v1"))
    with pytest.raises(ConfigError, match="MetaEnv"):
        Simulation(agent)


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def stands_still(live: LiveSimulation) -> bool:
    before = live.latest
    wait_for(lambda: live.latest is not before)
    return (live.latest.steps, live.latest.episodes) == (before.steps, before.episodes)


def test_it_lives_in_a_thread_of_its_own_whoever_looks(simulation: Simulation) -> None:
    live = LiveSimulation(simulation)
    live.speed = math.inf
    with live:
        wait_for(lambda: len(live.latest.episodes) >= 3)  # nobody takes the frames between
        live.paused = True
        wait_for(lambda: stands_still(live))
        assert stands_still(live)
        simulation.move(THERE)
        wait_for(lambda: live.latest.next_task == THERE)  # also while paused
        simulation.forget()
        wait_for(lambda: live.latest.episodes == () and live.latest.task == THERE)
        live.paused = False
        wait_for(lambda: len(live.latest.episodes) >= 2)
    assert not any(thread.name == "icrl-agents watch" for thread in threading.enumerate())


def test_what_ends_the_simulation_is_raised_where_somebody_looks(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("the physics exploded")

    monkeypatch.setattr(simulation.env.unwrapped, "step", fail)
    with LiveSimulation(simulation) as live:
        live._thread.join()
        with pytest.raises(RuntimeError, match="exploded"):
            _ = live.latest

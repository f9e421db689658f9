"""The contract of a single meta-environment, one check a method."""

import json
import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from icrl_agents.errors import TaskError
from icrl_agents.testing.experience import betrays, in_space, new_task, same_experience, touching_pairs
from icrl_agents.testing.requirement import require

LONGEST_EPISODE = 10_000
"""Steps after which an episode counts as endless."""


class SingleCheck:
    """One environment, checked through its public interface alone.

    Attributes:
        tasks: four that differ, as the seeds ``seed`` to ``seed + 7`` draw them.
        horizon: steps of an episode under random actions.
    """

    def __init__(self, make: Callable[..., gymnasium.Env], seed: int) -> None:
        self.make, self.seed = make, seed
        self.horizon = 0
        env: Any = make()
        missing = [name for name in ("task", "set_task") if not hasattr(type(env.unwrapped), name)]
        require(not missing, f"a meta-environment has the attributes task and set_task; {missing} not found")
        self.tasks: list[dict[str, Any]] = []
        for s in range(seed, seed + 8):
            env.reset(seed=s)
            if env.unwrapped.task not in self.tasks:
                self.tasks.append(env.unwrapped.task)
        require(len(self.tasks) >= 4, f"reset(seed=s) draws a task: eight seeds drew only {len(self.tasks)} different")
        for task in self.tasks:
            again = json.loads(json.dumps(task)) if isinstance(task, Mapping) else None
            require(again == task, f"a task is a mapping that JSON can hold, got {task!r}")

    def episodes_stay_in_their_spaces(self) -> None:
        env = self.make()
        for name, space in (("observation", env.observation_space), ("action", env.action_space)):
            good = isinstance(space, spaces.Box) and len(space.shape) == 1
            require(good, f"{name}s are in a one-dimensional Box, got {space}")
        observation, info = env.reset(seed=self.seed)
        require("new_task" in info, 'info["new_task"] of a reset says whether the task is new; there is no such entry')
        given, copies = [observation], [np.array(observation)]
        rng = self.rng()
        done = False
        while not done:
            require(self.horizon < LONGEST_EPISODE, f"an episode did not end within {LONGEST_EPISODE} steps")
            in_space(env.observation_space, observation)
            action = self.action(env, rng)
            before = action.copy()
            observation, reward, terminated, truncated, _ = env.step(action)
            require(np.array_equal(action, before), "step changed the action it was given")
            require(math.isfinite(reward), f"rewards are finite, got {reward!r}")
            given.append(observation)
            copies.append(np.array(observation))
            self.horizon += 1
            done = terminated or truncated
        in_space(env.observation_space, observation)
        env.reset()
        same = all(np.array_equal(a, b) for a, b in zip(given, copies, strict=True))
        require(same, "an observation changed after it was returned: every one is an array of its own")
        limit = getattr(getattr(env.unwrapped, "definition", None), "horizon", None)
        declared = None if env.spec is None else env.spec.max_episode_steps
        if limit is not None and declared is not None:
            require(limit == declared, f"the definition's horizon is {limit}, max_episode_steps {declared}")

    def seeds_determine_everything(self) -> None:
        first, again = (self.episode(self.make(), seed=self.seed) for _ in range(2))
        same_experience(first, again, "same seed and actions, but")
        used: Any = self.make()
        used.reset(seed=self.seed + 1)
        used.step(self.action(used, self.rng()))
        same_experience(self.episode(used, seed=self.seed), first, "same seed and actions in a used environment, but")
        drawn = []
        for env in (self.make(), self.make()):
            env.reset(seed=self.seed)
            drawn.append(env.unwrapped.task)  # type: ignore[attr-defined]
        require(drawn[0] == drawn[1], f"the same seed drew two tasks: {drawn[0]} and {drawn[1]}")

    def plain_resets_keep_the_task(self) -> None:
        env: Any = self.make()
        _, info = env.reset(seed=self.seed)
        task = env.unwrapped.task
        new_task(info, True, "a reset with a seed that drew a task")
        for when in ("at once", "in the middle of an episode", "after an episode"):
            _, info = env.reset()
            require(env.unwrapped.task == task, f"a plain reset {when} changed the task from {task}")
            new_task(info, False, f"a plain reset {when}, which keeps the task")
            self.run(env, 1 if when == "at once" else None)
        unseeded: Any = self.make()
        _, info = unseeded.reset()
        new_task(info, True, "the first reset, which drew a task")

    def precedence_at_a_reset(self) -> None:
        a, b, c = self.tasks[1:4]
        env: Any = self.make(task=a)
        _, info = env.reset(seed=self.seed)
        require(env.unwrapped.task == a, "reset(seed=...) drew a task although the constructor was given one")
        new_task(info, True, "the first reset")
        _, info = env.reset(seed=self.seed + 1)
        require(
            env.unwrapped.task == a, "the second reset(seed=...) drew a task although the constructor was given one"
        )
        _, info = env.reset(seed=self.seed, options={"task": b})
        require(env.unwrapped.task == b, 'options={"task": ...} of a reset did not give the task')
        new_task(info, True, "a reset with another task in its options")
        env.reset()
        require(env.unwrapped.task == b, "a plain reset lost the task that options gave before")
        self.run(env, 1)
        env.unwrapped.set_task(c)
        require(
            env.unwrapped.task == b, "set_task changed the task of the episode that runs: it holds from the next reset"
        )
        _, info = env.reset()
        require(env.unwrapped.task == c, "the task of set_task does not hold after the next reset")
        new_task(info, True, "the reset after set_task")
        env.unwrapped.set_task(b)
        env.reset(seed=self.seed)
        require(env.unwrapped.task == b, "reset(seed=...) did not take the task that set_task gave before")
        env.unwrapped.set_task(b)
        env.reset(options={"task": c})
        require(env.unwrapped.task == c, 'set_task was preferred to options={"task": ...}')
        held = env.unwrapped.task
        held.clear()
        require(env.unwrapped.task == c, "a caller who changes the dict that task returned changes the task")
        own = dict(b)
        env.unwrapped.set_task(own)
        own.clear()
        env.reset()
        require(env.unwrapped.task == b, "a caller who changes the dict given to set_task changes the task")

    def what_does_not_fit_is_refused(self) -> None:
        env: Any = self.make()
        env.reset(seed=self.seed)
        task = env.unwrapped.task
        for what, call in (
            ("a task with unknown keys", lambda: env.unwrapped.set_task({"no such key": 1.0})),
            ("a task with unknown keys in options", lambda: env.reset(options={"task": {"no such key": 1.0}})),
            ("a task of NaN", lambda: env.unwrapped.set_task({key: float("nan") for key in task})),
            ("an unknown reset option", lambda: env.reset(options={"no such option": 1.0})),
        ):
            try:
                call()
            except TaskError:
                pass
            except Exception as error:
                raise AssertionError(f"{what} is a TaskError, got {type(error).__name__}: {error}") from error
            else:
                raise AssertionError(f"{what} is a TaskError, but was accepted")
        env.reset()
        require(env.unwrapped.task == task, "a task that was refused changed the one that holds")

    def initial_states_know_no_task(self) -> None:
        drawn, _ = self.make().reset(seed=self.seed)
        for task in self.tasks:
            given, _ = self.make(task=task).reset(seed=self.seed)
            same = np.array_equal(drawn, given)
            message = "the initial observation depends on the task, or on whether it is drawn"
            require(same, f"{message}: {drawn} and, for {task}, {given}")
        env = self.make()  # the streams that follow, too
        env.reset(seed=self.seed)
        env.reset(options={"task": self.tasks[-1]})
        other = self.make()
        other.reset(seed=self.seed)
        other.reset()
        same = np.array_equal(env.reset()[0], other.reset()[0])
        require(same, "the initial observations of later episodes depend on which tasks were given before")

    def observations_know_no_task(self) -> None:
        rewards_differ = False
        for other in self.tasks[1:]:
            rewards_differ |= self._observations_are_equal(self.make(task=self.tasks[0]), self.make(task=other))
        require(rewards_differ, "no reward of an episode depends on the task")

    def _observations_are_equal(self, env: Any, twin: Any) -> bool:
        """Whether rewards differ while observations are equal, over two episodes."""
        differ = False
        rng = self.rng()
        for seed in (self.seed, None):
            (a, _), (b, _) = env.reset(seed=seed), twin.reset(seed=seed)
            if not np.array_equal(a, b):
                raise AssertionError(f"initial observations betray the task: under two tasks they are {a} and {b}")
            differ |= self._episodes_are_equal(env, twin, rng)
        return differ

    def _episodes_are_equal(self, env: Any, twin: Any, rng: np.random.Generator) -> bool:
        """The same for the episode that has begun."""
        touching = getattr(getattr(env.unwrapped, "definition", None), "task_in_physics", False)
        contacts = (touching_pairs(env), touching_pairs(twin))
        differ = False
        for t in range(LONGEST_EPISODE):
            action = self.action(env, rng)
            (a, reward, *ends, _), (b, other_reward, *other_ends, _) = env.step(action), twin.step(action)
            differ |= bool(reward != other_reward)
            if touching and (None in contacts or (touching_pairs(env), touching_pairs(twin)) != contacts):
                break
            what = "observations" if not np.array_equal(a, b) else "ends of episodes" if ends != other_ends else None
            if what is not None:  # the message is long to write: only where it is read
                until = " before any contact" if touching else ""
                found = f"{a} and {b}" if what == "observations" else f"{ends} and {other_ends}"
                raise AssertionError(
                    f"{what} betray the task{until}: at step {t + 1} of equal actions under two tasks they are {found}"
                )
            if any(ends):
                break
        return differ

    def infos_hide_the_task(self) -> None:
        for expose in (False, True):
            env: Any = self.make(expose_task=expose)
            _, info = env.reset(seed=self.seed)
            where, rng, done = "a reset", self.rng(), False
            while True:
                if expose:
                    good = info.get("task") == env.unwrapped.task
                    require(good, f'expose_task=True puts the task into info["task"] of {where}')
                else:
                    name = betrays(info, self.secrets(env, env.unwrapped.task))
                    require(name is None, f"info[{name!r}] of {where} betrays the task without expose_task=True")
                if done:
                    break
                where = "a step"
                _, _, terminated, truncated, info = env.step(self.action(env, rng))
                done = terminated or truncated

    def pickling_keeps_the_task(self) -> None:
        for how in ("drawn", "constructor's", "coming"):
            env: Any = self.make(**({"task": self.tasks[1]} if how == "constructor's" else {}))
            env.reset(seed=self.seed)
            expected = env.unwrapped.task
            if how == "coming":
                expected = self.tasks[2]
                env.unwrapped.set_task(expected)
            copy = pickle.loads(pickle.dumps(env))
            _, info = copy.reset()
            new_task(info, True, "the first reset after pickling")
            require(copy.unwrapped.task == expected, f"pickling lost the {how} task {expected}: {copy.unwrapped.task}")
            copy = pickle.loads(pickle.dumps(env))
            for one in (env, copy):
                one.reset(seed=self.seed + 1)
            require(copy.unwrapped.task == env.unwrapped.task, "a seed draws another task after pickling than before")
        exposing = pickle.loads(pickle.dumps(self.make(expose_task=True)))
        require("task" in exposing.reset(seed=self.seed)[1], "pickling lost the option expose_task")

    def spec_survives_json(self) -> None:
        env = self.make(task=self.tasks[1])
        if env.spec is None:
            return
        try:
            spec = EnvSpec.from_json(env.spec.to_json())
        except Exception as error:
            message = f"its EnvSpec does not survive JSON, register it by string entry points: {error}"
            raise AssertionError(message) from error
        again: Any = gymnasium.make(spec)
        again.reset(seed=self.seed)
        require(again.unwrapped.task == self.tasks[1], "an environment made again from its EnvSpec has another task")

    def secrets(self, env: Any, task: Mapping[str, Any]) -> list[np.ndarray]:
        """What no info may hold: the numbers of a task, and those that its rewards are computed from."""
        definition = getattr(env.unwrapped, "definition", None)
        vector = [] if definition is None else [definition.task_vector(task)]
        return [np.atleast_1d(np.asarray(secret)) for secret in (*task.values(), *vector)]

    def rng(self) -> np.random.Generator:
        """Of the actions, the same whenever asked."""
        return np.random.default_rng(self.seed)

    def action(self, env: gymnasium.Env, rng: np.random.Generator) -> np.ndarray:
        space: Any = env.action_space
        low, high = np.maximum(space.low, -1e3), np.minimum(space.high, 1e3)
        return rng.uniform(low, high).astype(space.dtype)

    def run(self, env: gymnasium.Env, steps: int | None) -> list[tuple[Any, ...]]:
        """Steps, or an episode's rest: observation, reward and the two flags of each."""
        rng, experience = self.rng(), []
        for _ in range(LONGEST_EPISODE if steps is None else steps):
            observation, reward, terminated, truncated, _ = env.step(self.action(env, rng))
            experience.append((np.array(observation), reward, terminated, truncated))
            if terminated or truncated:
                break
        return experience

    def episode(self, env: gymnasium.Env, seed: int) -> list[tuple[Any, ...]]:
        observation, _ = env.reset(seed=seed)
        return [(np.array(observation), 0.0, False, False), *self.run(env, None)]

"""The contract of a meta-environment as a function to call from your own tests."""

import json
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv

from icrl_agents.errors import TaskError
from icrl_agents.testing.requirement import require

LONGEST_EPISODE = 10_000
"""Steps after which an episode counts as endless."""


def check_meta_env(
    env: str | Callable[..., gymnasium.Env],
    make_vec: Callable[..., VectorEnv] | None = None,
    *,
    rows: int = 3,
    seed: int = 0,
) -> None:
    """Require the contract of a meta-environment (:class:`~icrl_agents.envs.MetaEnv`), with random actions.

    - One-dimensional Box spaces; observations inside, fresh arrays; rewards finite; episodes end.
    - Same seed and actions, same experience. Other seeds, other tasks.
    - Precedence at a reset: ``options={"task": ...}`` or ``set_task``, constructor ``task=``, draw by ``seed=``, task
      from before. ``info["new_task"]`` says whether a task was given or drawn. What does not fit is a ``TaskError``.
    - The task is hidden: initial states do not depend on it, two tasks and equal actions give equal observations over
      two episodes, no info betrays it without ``expose_task=True``. Where the definition says ``task_in_physics``,
      observations are equal until a contact begins or ends.
    - Pickling keeps the task, as what it was, and all options; the first reset after it says ``new_task``. The
      ``EnvSpec`` survives JSON.
    - Vector: row i equals the single environment of seed s + i bit for bit over two episodes, with autoreset SAME_STEP,
      ``final_obs`` and the task kept; ``tasks`` are one per row; ``reset_mask`` touches no other row.

    Args:
        env: a registered id, or what makes the single environment, with its time limit, from ``task=`` and
            ``expose_task=``.
        make_vec: what makes the native vector environment from ``num_envs=``, ``tasks=`` and ``expose_task=``; for an
            id it is known. None, or an id without ``vector_entry_point``: only the single environment is checked.
        rows: of the vector environment, at least 2.
        seed: of tasks, states and actions.

    Raises:
        AssertionError: says what does not hold.
        ValueError: ``rows`` with which nothing could be checked.
    """
    if rows < 2:
        raise ValueError(f"rows is at least 2, got {rows}")
    if isinstance(env, str):
        if make_vec is None and gymnasium.spec(env).vector_entry_point is not None:
            make_vec = partial(gymnasium.make_vec, env, vectorization_mode="vector_entry_point")
        make: Callable[..., gymnasium.Env] = partial(gymnasium.make, env)
    else:
        make = env
    single = _SingleCheck(make, seed)
    single.episodes_stay_in_their_spaces()
    single.seeds_determine_everything()
    single.plain_resets_keep_the_task()
    single.precedence_at_a_reset()
    single.what_does_not_fit_is_refused()
    single.initial_states_know_no_task()
    single.observations_know_no_task()
    single.infos_hide_the_task()
    single.pickling_keeps_the_task()
    single.spec_survives_json()
    if make_vec is not None:
        vector = _VectorCheck(single, make_vec, rows)
        vector.says_what_it_is()
        vector.rows_equal_the_single_environment()
        vector.tasks_are_one_per_row()
        vector.reset_mask_touches_only_its_rows()
        vector.infos_hide_the_tasks()


class _SingleCheck:
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
            _in_space(env.observation_space, observation)
            action = self.action(env, rng)
            before = action.copy()
            observation, reward, terminated, truncated, _ = env.step(action)
            require(np.array_equal(action, before), "step changed the action it was given")
            require(math.isfinite(reward), f"rewards are finite, got {reward!r}")
            given.append(observation)
            copies.append(np.array(observation))
            self.horizon += 1
            done = terminated or truncated
        _in_space(env.observation_space, observation)
        env.reset()
        same = all(np.array_equal(a, b) for a, b in zip(given, copies, strict=True))
        require(same, "an observation changed after it was returned: every one is an array of its own")
        limit = getattr(getattr(env.unwrapped, "definition", None), "horizon", None)
        declared = None if env.spec is None else env.spec.max_episode_steps
        if limit is not None and declared is not None:
            require(limit == declared, f"the definition's horizon is {limit}, max_episode_steps {declared}")

    def seeds_determine_everything(self) -> None:
        first, again = (self.episode(self.make(), seed=self.seed) for _ in range(2))
        _same_experience(first, again, "same seed and actions, but")
        used: Any = self.make()
        used.reset(seed=self.seed + 1)
        used.step(self.action(used, self.rng()))
        _same_experience(self.episode(used, seed=self.seed), first, "same seed and actions in a used environment, but")
        drawn = []
        for env in (self.make(), self.make()):
            env.reset(seed=self.seed)
            drawn.append(env.unwrapped.task)  # type: ignore[attr-defined]
        require(drawn[0] == drawn[1], f"the same seed drew two tasks: {drawn[0]} and {drawn[1]}")

    def plain_resets_keep_the_task(self) -> None:
        env: Any = self.make()
        _, info = env.reset(seed=self.seed)
        task = env.unwrapped.task
        _new_task(info, True, "a reset with a seed that drew a task")
        for when in ("at once", "in the middle of an episode", "after an episode"):
            _, info = env.reset()
            require(env.unwrapped.task == task, f"a plain reset {when} changed the task from {task}")
            _new_task(info, False, f"a plain reset {when}, which keeps the task")
            self.run(env, 1 if when == "at once" else None)
        unseeded: Any = self.make()
        _, info = unseeded.reset()
        _new_task(info, True, "the first reset, which drew a task")

    def precedence_at_a_reset(self) -> None:
        a, b, c = self.tasks[1:4]
        env: Any = self.make(task=a)
        _, info = env.reset(seed=self.seed)
        require(env.unwrapped.task == a, "reset(seed=...) drew a task although the constructor was given one")
        _new_task(info, True, "the first reset")
        _, info = env.reset(seed=self.seed + 1)
        require(
            env.unwrapped.task == a, "the second reset(seed=...) drew a task although the constructor was given one"
        )
        _, info = env.reset(seed=self.seed, options={"task": b})
        require(env.unwrapped.task == b, 'options={"task": ...} of a reset did not give the task')
        _new_task(info, True, "a reset with another task in its options")
        env.reset()
        require(env.unwrapped.task == b, "a plain reset lost the task that options gave before")
        self.run(env, 1)
        env.unwrapped.set_task(c)
        require(
            env.unwrapped.task == b, "set_task changed the task of the episode that runs: it holds from the next reset"
        )
        _, info = env.reset()
        require(env.unwrapped.task == c, "the task of set_task does not hold after the next reset")
        _new_task(info, True, "the reset after set_task")
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
        contacts = (_contacts(env), _contacts(twin))
        differ = False
        for t in range(LONGEST_EPISODE):
            action = self.action(env, rng)
            (a, reward, *ends, _), (b, other_reward, *other_ends, _) = env.step(action), twin.step(action)
            differ |= bool(reward != other_reward)
            if touching and (None in contacts or (_contacts(env), _contacts(twin)) != contacts):
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
                    name = _betrays(info, self.secrets(env, env.unwrapped.task))
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
            _new_task(info, True, "the first reset after pickling")
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


class _VectorCheck:
    """The native vector environment against the single one."""

    def __init__(self, single: _SingleCheck, make_vec: Callable[..., VectorEnv], rows: int) -> None:
        self.single, self.make_vec, self.rows = single, make_vec, rows
        self.seed = single.seed

    def make(self, **options: Any) -> Any:
        return self.make_vec(num_envs=self.rows, **options)

    def says_what_it_is(self) -> None:
        env, single = self.make(), self.single.make()
        mode = env.metadata.get("autoreset_mode")
        require(mode is AutoresetMode.SAME_STEP, f"the vector environment's autoreset mode is SAME_STEP, got {mode}")
        require(env.num_envs == self.rows, f"asked for {self.rows} rows, got {env.num_envs}")
        for name in ("observation_space", "action_space"):
            row, one = getattr(env, f"single_{name}"), getattr(single, name)
            require(row == one, f"the vector environment's single_{name} is {row}, the single environment's {one}")
        missing = [name for name in ("tasks", "set_tasks") if not hasattr(type(env.unwrapped), name)]
        require(not missing, f"a vector meta-environment has the attributes tasks and set_tasks; {missing} not found")

    def rows_equal_the_single_environment(self) -> None:
        env, singles = self.make(), [self.single.make() for _ in range(self.rows)]
        observations, info = env.reset(seed=self.seed)
        require(bool(np.all(info["new_task"])), "info[new_task] of a first reset is not True in every row")
        tasks = env.unwrapped.tasks
        for row, one in enumerate(singles):
            expected, _ = one.reset(seed=self.seed + row)
            own = one.unwrapped.task  # type: ignore[attr-defined]
            require(
                tasks[row] == own, f"row {row} of reset(seed=s) has not the task of the single environment of s + {row}"
            )
            _same_row(observations[row], expected, row, "initial observation")
        given, copies = [observations], [np.array(observations)]
        ended, rng = np.zeros(self.rows, int), self.single.rng()
        for _ in range(2 * LONGEST_EPISODE):
            actions = np.stack([self.single.action(one, rng) for one in singles])
            observations, rewards, terminated, truncated, info = env.step(actions)
            given.append(observations)
            copies.append(np.array(observations))
            for row, one in enumerate(singles):
                last, reward, *ends, _ = one.step(actions[row])
                _same_row(rewards[row], reward, row, "reward")
                _same_row([terminated[row], truncated[row]], ends, row, "terminated, truncated")
                if any(ends):
                    ended[row] += 1
                    self._autoreset_is_same_step(info, row, last)
                    last, _ = one.reset()
                _same_row(observations[row], last, row, "observation")
            if (ended >= 2).all():
                break
        require(env.unwrapped.tasks == tasks, "autoreset changed a task")
        same = all(np.array_equal(a, b) for a, b in zip(given, copies, strict=True))
        require(same, "an observation of the vector environment changed after it was returned")

    def _autoreset_is_same_step(self, info: dict[str, Any], row: int, last: np.ndarray) -> None:
        require("final_obs" in info and bool(info["_final_obs"][row]), "info[final_obs] lacks an episode that ended")
        _same_row(info["final_obs"][row], last, row, "final_obs")
        new = info.get("new_task")
        require(new is not None and not new[row], "info[new_task] of an autoreset, which keeps the task, is not False")

    def tasks_are_one_per_row(self) -> None:
        tasks = [self.single.tasks[row % 4] for row in range(self.rows)]
        env = self.make(tasks=tasks)
        env.reset(seed=self.seed)
        require(env.unwrapped.tasks == tasks, "tasks= of the constructor are not those of the rows")
        rotated = [*tasks[1:], tasks[0]]
        _, info = env.reset(options={"tasks": rotated})
        require(env.unwrapped.tasks == rotated, 'options={"tasks": [...]} of a reset are not those of the rows')
        require(bool(np.all(info["new_task"])), "info[new_task] is not True where options gave another task")
        _, info = env.reset()
        require(env.unwrapped.tasks == rotated, "a plain reset of the vector environment changed the tasks")
        require(not np.any(info["new_task"]), "info[new_task] of a plain reset is not False")

    def reset_mask_touches_only_its_rows(self) -> None:
        env = self.make()
        env.reset(seed=self.seed)
        rng, one = self.single.rng(), self.single.make()
        actions = np.stack([self.single.action(one, rng) for _ in range(self.rows)])
        before, *_ = env.step(actions)
        tasks = env.unwrapped.tasks
        mask = np.arange(self.rows) == self.rows - 1
        after, info = env.reset(seed=self.seed + 100, options={"reset_mask": mask})
        require(np.array_equal(after[~mask], before[~mask]), "reset_mask: the reset changed observations of other rows")
        require(env.unwrapped.tasks[:-1] == tasks[:-1], "reset_mask: the reset changed tasks of other rows")
        require(
            np.array_equal(info["new_task"], mask), "info[new_task] of a reset of some rows is not True in those alone"
        )
        expected, _ = one.reset(seed=self.seed + 100 + self.rows - 1)
        _same_row(after[-1], expected, self.rows - 1, "observation after a reset by mask")

    def infos_hide_the_tasks(self) -> None:
        one = self.single.make()
        for expose in (False, True):
            env, rng = self.make(expose_task=expose), self.single.rng()
            _, info = env.reset(seed=self.seed)
            where, ended = "a reset", False
            while True:
                if expose:
                    good = "task" in info and list(info["task"]) == env.unwrapped.tasks
                    require(good, f"expose_task=True puts the tasks of all rows into info[task] of {where}")
                else:
                    secrets = [s for task in env.unwrapped.tasks for s in self.single.secrets(env, task)]
                    name = _betrays(info, secrets)
                    require(name is None, f"info[{name!r}] of {where} of the vector environment betrays the tasks")
                if ended:
                    break
                where = "a step"
                actions = np.stack([self.single.action(one, rng) for _ in range(self.rows)])
                _, _, terminated, truncated, info = env.step(actions)
                ended = bool(np.any(terminated | truncated))


def _in_space(space: gymnasium.Space, observation: Any) -> None:
    inside = isinstance(observation, np.ndarray) and observation.dtype == space.dtype and space.contains(observation)
    finite = inside and bool(np.isfinite(observation).all())
    if not finite:
        raise AssertionError(f"observations are finite and inside {space}, got {observation!r}")


def _new_task(info: Mapping[str, Any], expected: bool, when: str) -> None:
    found = info.get("new_task")
    good = found is not None and bool(found) is expected
    require(good, f'info["new_task"] of {when}, is {expected}; got {found!r}')


def _same_experience(a: list[tuple[Any, ...]], b: list[tuple[Any, ...]], message: str) -> None:
    require(len(a) == len(b), f"{message} episodes of {len(a)} and {len(b)} steps")
    for t, (one, other) in enumerate(zip(a, b, strict=True)):
        for name, x, y in zip(("observations", "rewards", "terminated", "truncated"), one, other, strict=True):
            if not np.array_equal(x, y):
                raise AssertionError(f"{message} {name} differ at step {t}: {x} and {y}")


def _same_row(found: Any, expected: Any, row: int, what: str) -> None:
    if not np.array_equal(found, expected):
        raise AssertionError(f"row {row} is not the single environment: {what} {found}, there {expected}")


def _contacts(env: Any) -> set[tuple[int, int]] | None:
    """Pairs of shapes that touch; None where no MuJoCo simulation can be asked."""
    data: Any = getattr(env.unwrapped, "data", None)
    if not hasattr(data, "contact"):
        return None
    return {(int(a), int(b)) for a, b in data.contact.geom}


def _betrays(info: Mapping[str, Any], secrets: Sequence[np.ndarray]) -> str | None:
    """The entry of ``info`` that is called ``task`` or holds, however deep, a number of a secret; None without one."""
    return next((name for name, value in info.items() if name == "task" or _holds(value, secrets)), None)


def _holds(found: Any, secrets: Sequence[np.ndarray]) -> bool:
    """Whether floats contain a number of a secret, also rounded to float32; whole ones, such as 0, are no evidence."""
    if isinstance(found, Mapping):
        return _betrays(found, secrets) is not None
    if isinstance(found, np.ndarray) and found.dtype == object:
        found = found.ravel().tolist()
    if isinstance(found, list | tuple):
        return any(_holds(part, secrets) for part in found)
    array = np.asarray(found)
    if array.dtype.kind != "f":
        return False
    numbers = np.concatenate([secret for secret in secrets if secret.dtype.kind == "f"] or [np.empty(0)])
    numbers = numbers[numbers != np.round(numbers)]
    return bool(np.isclose(array.reshape(-1, 1), numbers, rtol=1e-6, atol=0.0).any())

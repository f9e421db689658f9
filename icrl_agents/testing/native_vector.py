"""The contract of a native vector meta-environment: row by row the single one."""

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from icrl_agents.envs import MetaVectorEnv
from icrl_agents.testing.experience import betrays, same_row
from icrl_agents.testing.requirement import require
from icrl_agents.testing.single_env import LONGEST_EPISODE, SingleCheck


class VectorCheck:
    """The native vector environment against the single one."""

    def __init__(self, single: SingleCheck, make_vec: Callable[..., VectorEnv], rows: int) -> None:
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
            same_row(observations[row], expected, row, "initial observation")
        given, copies = [observations], [np.array(observations)]
        ended, rng = np.zeros(self.rows, int), self.single.rng()
        for _ in range(2 * LONGEST_EPISODE):
            actions = np.stack([self.single.action(one, rng) for one in singles])
            observations, rewards, terminated, truncated, info = env.step(actions)
            given.append(observations)
            copies.append(np.array(observations))
            for row, one in enumerate(singles):
                last, reward, *ends, _ = one.step(actions[row])
                same_row(rewards[row], reward, row, "reward")
                same_row([terminated[row], truncated[row]], ends, row, "terminated, truncated")
                if any(ends):
                    ended[row] += 1
                    self._autoreset_is_same_step(info, row, last)
                    last, _ = one.reset()
                same_row(observations[row], last, row, "observation")
            if (ended >= 2).all():
                break
        require(env.unwrapped.tasks == tasks, "autoreset changed a task")
        same = all(np.array_equal(a, b) for a, b in zip(given, copies, strict=True))
        require(same, "an observation of the vector environment changed after it was returned")

    def _autoreset_is_same_step(self, info: dict[str, Any], row: int, last: np.ndarray) -> None:
        require("final_obs" in info and bool(info["_final_obs"][row]), "info[final_obs] lacks an episode that ended")
        same_row(info["final_obs"][row], last, row, "final_obs")
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
        same_row(after[-1], expected, self.rows - 1, "observation after a reset by mask")

    def privileged_is_as_wide_as_it_says(self) -> None:
        env = self.make()
        at = env.unwrapped
        if not isinstance(at, MetaVectorEnv):
            return
        env.reset(seed=self.seed)
        given, shape = at.privileged, (self.rows, at.definition.privileged_dim)
        require(
            given.shape == shape and bool(np.isfinite(given).all()),
            f"privileged is finite and of shape {list(shape)} by its privileged_dim, got {list(given.shape)}",
        )

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
                    name = betrays(info, secrets)
                    require(name is None, f"info[{name!r}] of {where} of the vector environment betrays the tasks")
                if ended:
                    break
                where = "a step"
                actions = np.stack([self.single.action(one, rng) for _ in range(self.rows)])
                _, _, terminated, truncated, info = env.step(actions)
                ended = bool(np.any(terminated | truncated))

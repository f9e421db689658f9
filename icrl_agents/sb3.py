"""stable-baselines3 on native vector environments: all rows of one batch, no processes::

env = gymnasium.make_vec("icrl/AntDir-v0", num_envs=64)
PPO("MlpPolicy", VecMonitor(MetaVecEnv(env))).learn(1_000_000)
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from icrl_agents.errors import ConfigError, MissingExtraError, TaskError

try:
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn
except ImportError:
    raise MissingExtraError("stable_baselines3", "train") from None

_NOT_OF_THE_STEP = ("final_obs", "final_info", "new_task")
"""Infos of a vector environment that stable-baselines3 has elsewhere, if at all."""


class MetaVecEnv(VecEnv):
    """A native vector meta-environment as a stable-baselines3 ``VecEnv``.

    It gives what a ``DummyVecEnv`` of the single environments gives, bit for bit: rewards ``[n]`` float32, infos with
    ``terminal_observation`` and ``TimeLimit.truncated``, ``reset_infos``. Wrap it in a ``VecMonitor`` where
    stable-baselines3 is to log or evaluate returns.

    Of the rows' attributes and methods there are ``task`` and ``set_task``, which holds from a row's next reset on;
    others are the batch's, the same for every row. ``set_options({"task": ...})``, or one such dict per row, gives the
    tasks of the next ``reset()``.

    Args:
        env: n rows, with autoreset SAME_STEP, ``tasks`` and ``set_tasks``, as :class:`icrl_agents.envs.MetaVectorEnv`;
            :class:`~icrl_agents.VectorExperienceObservation` and :class:`~icrl_agents.VectorTrialWrapper` may be around
            it. It is closed with this one.

    Raises:
        ConfigError: another autoreset mode, or no native vector meta-environment.
    """

    def __init__(self, env: VectorEnv) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ConfigError(f"expected autoreset mode SAME_STEP, got {mode}")
        if not all(hasattr(type(env.unwrapped), name) for name in ("tasks", "set_tasks")):
            raise ConfigError(
                f"expected a native vector meta-environment, which has tasks and set_tasks, got {env.unwrapped}; "
                "single environments are for stable-baselines3's own DummyVecEnv"
            )
        self.env = env
        self._actions = np.empty(0)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> np.ndarray:
        """Begin an episode in every row, with the seeds of ``seed`` and the options of ``set_options``, once.

        Raises:
            TaskError: an option other than ``task``, or a task that does not fit.
        """
        unknown = {name for options in self._options for name in options} - {"task"}
        if unknown:
            raise TaskError(f"unknown reset option(s) {sorted(unknown)}; known: task")
        tasks = [options.get("task") for options in self._options]
        given = {"tasks": tasks} if any(task is not None for task in tasks) else None
        seeds: Any = self._seeds  # one per row, which VectorEnv's own signature does not know
        observations, info = self.env.reset(seed=seeds, options=given)
        self.reset_infos = _by_row(info, self.num_envs)
        for row, new in enumerate(np.asarray(info.get("new_task", ())).tolist()):
            self.reset_infos[row]["new_task"] = new
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions ``[n, A]`` of the next step."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step all rows: observations, rewards ``[n]`` float32, dones ``[n]`` bool and a dict of infos per row."""
        observations, rewards, terminated, truncated, info = self.env.step(self._actions)
        dones = terminated | truncated
        infos = _by_row(info, self.num_envs)
        for row, cut in enumerate((truncated & ~terminated).tolist()):
            infos[row]["TimeLimit.truncated"] = cut
        paid_under = info.get("final_info", {}).get("task")
        final = np.flatnonzero(info["_final_obs"]).tolist() if "final_obs" in info else ()
        for row in final:
            last = np.array(info["final_obs"][row])
            if dones[row]:
                infos[row]["terminal_observation"] = last
                if paid_under is not None:
                    infos[row]["task"] = paid_under[row]
                self.reset_infos[row] = {name: info[name][row] for name in ("task",) if name in info}
                self.reset_infos[row]["new_task"] = bool(info["new_task"][row]) if "new_task" in info else False
            else:  # an episode within a trial
                infos[row]["final_obs"] = last
        return observations, rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """One picture per row."""
        return self.env.render() or [None] * self.num_envs  # type: ignore[return-value]  # typed as any frame

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of the rows: ``task``, or one of the batch.

        Raises:
            AttributeError: there is none.
        """
        rows = list(self._get_indices(indices))
        if attr_name == "task":
            tasks = self._unwrapped.tasks
            return [tasks[row] for row in rows]
        if attr_name in ("observation_space", "action_space"):
            return [getattr(self, attr_name)] * len(rows)
        for layer in self._layers():
            if hasattr(layer, attr_name):
                return [getattr(layer, attr_name)] * len(rows)
        raise AttributeError(f"{self.env} has no attribute {attr_name!r}")

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the batch, which all rows share.

        Raises:
            AttributeError: for some rows only, or ``task``, which ``env_method("set_task", task)`` gives.
        """
        if attr_name == "task":
            raise AttributeError("a task is given by env_method('set_task', task)")
        if len(list(self._get_indices(indices))) < self.num_envs:
            raise AttributeError(f"rows share one batch: {attr_name!r} can be set for all of them alone")
        owner = next((layer for layer in self._layers() if hasattr(layer, attr_name)), self.env)
        setattr(owner, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list:
        """``env_method("set_task", task)`` gives rows the task that holds from their next reset on.

        Raises:
            AttributeError: another method; rows of one batch have no others.
            TaskError: the task does not fit; then nothing is changed.
        """
        if method_name != "set_task":
            raise AttributeError(f"rows of one batch have the method set_task alone, not {method_name!r}")
        return self._set_task(list(self._get_indices(indices)), *method_args, **method_kwargs)

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """Whether a layer around the batch is a ``wrapper_class``."""
        wrapped = any(isinstance(layer, wrapper_class) for layer in self._layers())
        return [wrapped for _ in self._get_indices(indices)]

    @property
    def _unwrapped(self) -> Any:
        return self.env.unwrapped

    def _set_task(self, rows: list[int], task: Mapping[str, Any]) -> list[None]:
        tasks: list[Mapping[str, Any] | None] = [None] * self.num_envs
        for row in rows:
            tasks[row] = task
        outermost: Any = next(layer for layer in self._layers() if hasattr(layer, "set_tasks"))
        outermost.set_tasks(tasks)
        return [None for _ in rows]

    def _layers(self) -> Iterator[VectorEnv]:
        """The environment and what it wraps, from outside."""
        layer = self.env
        while isinstance(layer, VectorWrapper):
            yield layer
            layer = layer.env
        yield layer


def _by_row(info: dict[str, Any], rows: int) -> list[dict[str, Any]]:
    """Gymnasium's one dict of infos as one for each row, of Python's own numbers."""
    everywhere: dict[str, Sequence[Any]] = {}
    somewhere: dict[str, tuple[Sequence[Any], np.ndarray]] = {}
    for name, values in info.items():
        if name.startswith("_") or name in _NOT_OF_THE_STEP:
            continue
        plain: Sequence[Any] = values.tolist() if isinstance(values, np.ndarray) and values.ndim == 1 else values
        if isinstance(values, Mapping):  # as RecordEpisodeStatistics has it
            plain = _by_row(dict(values), rows)
        mask = info.get("_" + name)
        if mask is None or mask.all():
            everywhere[name] = plain
        else:
            somewhere[name] = (plain, mask)
    result = [dict(zip(everywhere, row, strict=True)) for row in zip(*everywhere.values(), strict=True)]
    result = result or [{} for _ in range(rows)]
    for name, (plain, mask) in somewhere.items():
        for row in np.flatnonzero(mask).tolist():
            result[row][name] = plain[row]
    return result

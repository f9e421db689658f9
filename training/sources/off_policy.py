"""Off-policy learners at work in one native vector environment, every step recorded and kept for replay.

K learners, S streams (environment rows) a learner, H = K S histories, T steps
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from icrl_agents.envs import MetaVectorEnv
from icrl_agents.training.histories import HistoryWriter
from icrl_agents.training.sources.action_bounds import ActionBounds
from icrl_agents.training.sources.policies import snapshot_by_task
from icrl_agents.training.sources.replay import ReplayBuffer
from icrl_agents.training.sources.rollouts import Recording, StepRecorder, require_finite, told
from icrl_agents.training.sources.sac import SACConfig, TaskParallelSAC


class OffPolicySource:
    """SAC or DroQ learners, the rows they act in and what they remember.

    The replay is not saved: the recorded histories hold every transition of it, and the buffer is read back from them.

    Args:
        config: hyper-parameters.
        env: rows in the order learner-major: row ``k * S + s``.
        observations: the rows' current observations ``[H, N_o]``.
        tasks: task vectors in the order of the rows ``[tasks, k]``.
        seeds: one a learner.
        steps: of the whole run, in each row; the replay is no larger than it can become.
        task_informed: whether learners see the task.
        device: that learning runs on.
    """

    def __init__(
        self,
        config: SACConfig,
        env: MetaVectorEnv,
        observations: np.ndarray,
        tasks: np.ndarray,
        seeds: Sequence[int],
        steps: int,
        *,
        task_informed: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.env, self.observations = env, observations
        self._tasks, self._informed = tasks, task_informed
        per_row = np.repeat(tasks, env.num_envs // len(tasks), axis=0)
        self._seen_tasks = per_row if task_informed else per_row[:, :0]
        space: Any = env.single_action_space
        self._bounds = ActionBounds(space.low, space.high)
        seen, actions = observations.shape[1] + self._seen_tasks.shape[1], space.shape[0]
        self._shape = (len(seeds), env.num_envs // len(seeds))  # K, S
        self.learner = TaskParallelSAC(config, seen, actions, seeds, self._shape[1], device)
        capacity = min(config.buffer_size, steps * self._shape[1])
        self.replay = ReplayBuffer(*self._shape, capacity, seen, actions, device)

    def advance(self, steps: int) -> Recording:
        """Take so many steps in every row, learning after each."""
        space: Any = self.env.single_action_space
        recorder = StepRecorder(self.env.num_envs, steps, self.observations.shape[1], space.shape[0])
        for t in range(steps):
            recorder.arrays["observations"][:, t] = self.observations
            seen = told(recorder.arrays["observations"][:, t], self._seen_tasks)
            actions, means = (
                self._bounds.from_unit(x.reshape(len(seen), -1))
                for x in self.learner.act(seen.reshape(*self._shape, -1))
            )
            require_finite(actions, self.env, t)
            self.observations = recorder.step(t, self.env, actions, means)
            self._remember({name: array[:, t : t + 1] for name, array in recorder.arrays.items()})
            self.learner.learn(self.replay)
        return recorder.recording()

    def snapshot(self) -> dict[str, Tensor]:
        """The policies, one a task."""
        snapshot = self.learner.snapshot()
        return snapshot_by_task(snapshot, self._tasks) if self._informed else snapshot

    def state(self) -> dict[str, Any]:
        """Everything that the next steps depend on and the recorded histories do not hold."""
        return {
            **{f"env.{name}": value for name, value in self.env.get_state().items()},
            **{f"learner.{name}": value for name, value in self.learner.state_dict().items()},
            "observations": self.observations,
        }

    def resume(self, saved: Mapping[str, np.ndarray], writer: HistoryWriter) -> None:
        """Continue from what :meth:`state` gave and what was recorded until then."""
        self.env.set_state({k.removeprefix("env."): v for k, v in saved.items() if k.startswith("env.")})
        learner = {k.removeprefix("learner."): v for k, v in saved.items() if k.startswith("learner.")}
        self.learner.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in learner.items()})
        self.observations = saved["observations"]
        first, shards = writer.committed(self.replay.capacity_steps)
        self.replay.steps = first
        earlier = next(shards)  # a state is saved with a shard, never before the first
        for shard in shards:
            self._remember({**earlier, "following": _following(earlier, shard["observations"][:, 0])})
            earlier = shard
        self._remember({**earlier, "following": _following(earlier, self.observations)})

    def _remember(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add recorded steps ``[H, T, ...]`` to the replay: what was recorded, so that reading it back is the same."""
        parts = (
            told(arrays["observations"], self._seen_tasks),
            self._bounds.to_unit(arrays["actions"]),
            told(arrays["following"], self._seen_tasks),
            arrays["rewards"],
            arrays["terminated"],
        )
        self.replay.extend(*(torch.from_numpy(part).unflatten(0, self._shape) for part in parts))


def _following(shard: Mapping[str, np.ndarray], after: np.ndarray) -> np.ndarray:
    """``[H, T, N_o]``, the observations that followed each step of a shard, before any autoreset.

    Args:
        shard: stored arrays.
        after: the first observations ``[H, N_o]`` behind the shard.
    """
    following = np.concatenate([shard["observations"][:, 1:], after[:, None].astype(np.float32)], 1)
    following[shard["terminated"] | shard["truncated"]] = shard["final_observations"]
    return following

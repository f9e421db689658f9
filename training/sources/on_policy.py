"""PPO learners at work in one native vector environment, every step recorded.

K learners, S streams (environment rows) a learner, H = K S histories
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from icrl_agents.envs import MetaVectorEnv, Symmetry
from icrl_agents.training.sources.policies import snapshot_by_task, symmetries_of, turned_back
from icrl_agents.training.sources.ppo import PPOConfig, TaskParallelPPO
from icrl_agents.training.sources.rollouts import Recording, RolloutCollector


class OnPolicySource:
    """PPO learners and the rows they act in.

    Args:
        config: hyper-parameters.
        env: rows in the order learner-major.
        observations: the rows' current observations ``[H, N_o]``.
        tasks: task vectors in the order of the rows ``[tasks, k]``.
        seeds: one a learner.
        iterations: roll-outs of the whole run.
        task_informed: whether learners see the task.
        privileged: whether they also see what the environment calls privileged.
        symmetric: whether they see and act through :meth:`~icrl_agents.envs.MetaEnvDefinition.symmetry` of their tasks.

    Raises:
        ConfigError: ``symmetric``, and the environment knows no symmetry of a task.
    """

    def __init__(
        self,
        config: PPOConfig,
        env: MetaVectorEnv,
        observations: np.ndarray,
        tasks: np.ndarray,
        seeds: Sequence[int],
        iterations: int,
        *,
        task_informed: bool = False,
        privileged: bool = False,
        symmetric: bool = False,
    ) -> None:
        space: Any = env.single_action_space
        self._symmetries: list[Symmetry] | None = None
        if symmetric:
            self._symmetries, tasks = symmetries_of(env.definition, tasks)
        self._env, self._tasks, self._informed = env, tasks, task_informed
        self.learner = TaskParallelPPO(
            config,
            observations.shape[1]
            + (env.definition.privileged_dim if privileged else 0)
            + (tasks.shape[1] if task_informed else 0),
            space.shape[0],
            seeds,
            env.num_envs // len(seeds),
            iterations,
        )
        self._privileged = privileged
        self._collector = self._collecting(observations)

    @property
    def shared(self) -> bool:
        """Whether one learner that sees the task serves all, now."""
        return self._informed

    def begin_from(self, known: Mapping[str, np.ndarray]) -> None:
        """Begin from what :meth:`TaskParallelPPO.knowledge` of an earlier learner gave."""
        self.learner.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in known.items()})

    def specialise(self, config: PPOConfig, seeds: Sequence[int], iterations: int) -> None:
        """Let the one learner become one a task, see :meth:`TaskParallelPPO.specialised`."""
        self.learner = self.learner.specialised(config, self._tasks, seeds, iterations)
        self._informed = False
        self._collector = self._collecting(self._collector.observations)

    def _collecting(self, observations: np.ndarray) -> RolloutCollector:
        """The collector of the learner as it is, which goes on from these observations."""
        streams = self._env.num_envs // len(self._tasks)
        return RolloutCollector(
            self._env,
            self.learner,
            observations,
            np.repeat(self._tasks, streams, axis=0) if self._informed else None,
            privileged=self._privileged,
            symmetries=self._symmetries and [own for own in self._symmetries for _ in range(streams)],
        )

    def advance(self, steps: int) -> Recording:
        """One roll-out, which is so many steps in every row, and the updates from it."""
        assert steps == self.learner.config.n_steps
        rollout, recording = self._collector.collect()
        self.learner.update(rollout)
        return recording

    def snapshot(self) -> dict[str, Tensor]:
        """The policies, one a task."""
        snapshot = self.learner.snapshot()
        by_task = snapshot_by_task(snapshot, self._tasks) if self.shared else snapshot
        return by_task if self._symmetries is None else turned_back(by_task, self._symmetries)

    def state(self) -> dict[str, Any]:
        """Everything that the next steps depend on."""
        return {
            **{f"env.{name}": value for name, value in self._env.get_state().items()},
            **{f"learner.{name}": value for name, value in self.learner.state_dict().items()},
            "observations": self._collector.observations,
        }

    def resume(self, saved: Mapping[str, np.ndarray]) -> None:
        """Continue from what :meth:`state` gave."""
        self._env.set_state({k.removeprefix("env."): v for k, v in saved.items() if k.startswith("env.")})
        learner = {k.removeprefix("learner."): v for k, v in saved.items() if k.startswith("learner.")}
        self.learner.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in learner.items()})
        self._collector.observations = saved["observations"]

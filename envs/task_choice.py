"""Which task holds after a reset: the one place that decides it, for single and vector environments.

Precedence: ``options={"task": ...}`` or ``set_task`` > constructor ``task=`` > draw by ``reset(seed=s)`` > the task
kept from before > draw by entropy. A plain ``reset()`` keeps the task whatever gave it. Tasks have their own random
stream, so the initial state of an episode never depends on the task.
"""

import copy
from typing import Any

import numpy as np

from icrl_agents.envs.definition import MetaEnvDefinition, Task
from icrl_agents.errors import NoTaskYetError

_TASK_STREAM = 0x7A5C
"""Keeps the stream of tasks apart from the stream of initial states under one seed."""


class TaskChoice:
    """The task of one environment row.

    Args:
        definition: of the environment.
        task: the constructor's task, or None.
    """

    def __init__(self, definition: MetaEnvDefinition, task: Task | None) -> None:
        self._definition = definition
        self._fixed = None if task is None else definition.canonical_task(task)
        self._pending: dict[str, Any] | None = None
        self._told = True
        self.task: dict[str, Any] | None = None

    def set(self, task: Task) -> None:
        """Give the task that the next reset takes."""
        self._pending = self._definition.canonical_task(task)

    @property
    def held(self) -> dict[str, Any]:
        """A copy of the task that holds; before the first reset, the constructor's.

        Raises:
            NoTaskYetError: no reset has settled one yet.
        """
        task = self._fixed if self.task is None else self.task
        if task is None:
            raise NoTaskYetError("no task holds before the first reset")
        return copy.deepcopy(task)

    def saved(self) -> dict[str, Any]:
        """The task kept and the one given for the next reset, for :meth:`restore`."""
        return {"task": self.task, "pending": self._pending}

    def restore(self, task: Task | None, pending: Task | None) -> None:
        """Continue from what :meth:`saved` gave; whoever remembers the task has not come along."""
        self.task = None if task is None else self._definition.canonical_task(task)
        self._pending = None if pending is None else self._definition.canonical_task(pending)
        self._told = False

    def at_reset(self, seed: int | None) -> bool:
        """Settle the task at a reset.

        Returns:
            Whether a task was given, drawn or restored; False where the one from before, or the constructor's, still
            holds.
        """
        before, told = self.task, self._told
        self._told = True
        if self._pending is not None:
            self.task, self._pending = self._pending, None
        elif seed is None and self.task is not None:
            return not told
        elif self._fixed is not None:
            self.task = copy.deepcopy(self._fixed)
            return not told or self.task != before
        else:
            entropy = None if seed is None else [seed, _TASK_STREAM]
            self.task = self._definition.sample_tasks(1, np.random.SeedSequence(entropy))[0]
        return True

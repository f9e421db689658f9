"""Source policies as their snapshots keep them: deterministic, batched over tasks."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from icrl_agents.errors import DatasetError
from icrl_agents.training.sources.batched import mlp_forward


def snapshot_by_task(snapshot: Mapping[str, Tensor], task_vectors: np.ndarray) -> dict[str, Tensor]:
    """The snapshot of one learner that sees the task, as one policy a task that does not need to.

    The task's part of the first layer becomes part of its bias, so each policy reads observations alone.

    Args:
        snapshot: of one learner (first axis 1) with inputs ``[observation, task]``.
        task_vectors: ``[K, k]``.

    Returns:
        A snapshot with first axis K.
    """
    tasks, size = task_vectors.shape
    weight, mean, std = (snapshot[name][0] for name in ("weight_0", "observation_mean", "observation_std"))
    normalized = (torch.from_numpy(task_vectors).float() - mean[-size:]) / std[-size:]  # [K, k]
    shared = {name: tensor.expand(tasks, *tensor.shape[1:]) for name, tensor in snapshot.items()}
    return {
        **shared,
        "observation_mean": mean[:-size].expand(tasks, -1),
        "observation_std": std[:-size].expand(tasks, -1),
        "weight_0": weight[:-size].expand(tasks, -1, -1),
        "bias_0": snapshot["bias_0"] + (normalized @ weight[-size:])[:, None],
    }


def snapshot_of_tasks(
    snapshot: Mapping[str, np.ndarray], task_vectors: np.ndarray, others: np.ndarray
) -> dict[str, np.ndarray]:
    """The policies of other tasks, from those that :func:`snapshot_by_task` made of one learner.

    A task entered only the first layer's bias, and linearly: what it adds is found from the tasks that are there.

    Args:
        snapshot: of K tasks.
        task_vectors: theirs, ``[K, k]``.
        others: ``[M, k]``.

    Returns:
        A snapshot with first axis M.

    Raises:
        DatasetError: every task had a learner of its own, or the tasks are too few to tell what one adds.
    """
    shared = {name: tensor[:1] for name, tensor in snapshot.items() if name != "bias_0"}
    if len(task_vectors) < 2 or not all(
        np.array_equal(snapshot[n], np.repeat(t, len(task_vectors), 0)) for n, t in shared.items()
    ):
        raise DatasetError("these policies were learned task by task: they can do no other tasks")
    bias = snapshot["bias_0"].astype(np.float64)  # [K, 1, O]
    known, asked = (np.concatenate([np.ones((len(v), 1)), v], 1) for v in (task_vectors, others))
    solution, _, rank, _ = np.linalg.lstsq(known, bias[:, 0], rcond=None)
    if rank < known.shape[1]:
        raise DatasetError(
            f"{len(task_vectors)} tasks are too few, or too alike, to tell how a policy depends on the task"
        )
    if np.abs(known @ solution - bias[:, 0]).max() > 4e-3 * max(1.0, np.abs(bias).max()):  # they were rounded to fp16
        raise DatasetError("these policies do not depend on the task as those of one learner that sees it")
    expanded = {name: np.repeat(tensor, len(others), 0) for name, tensor in shared.items()}
    return {**expanded, "bias_0": (asked @ solution).astype(np.float32)[:, None]}


class SnapshotPolicies:
    """The mean actions of K source policies at one moment of their learning.

    Args:
        tensors: a snapshot, first axis the learner: ``observation_mean, observation_std [K, N_o]`` and
            ``weight_i [K, I, O]``, ``bias_i [K, 1, O]`` of a tanh network.
        low: lower bound of each action entry ``[A]``.
        high: upper bound ``[A]``.

    Raises:
        DatasetError: the snapshot is not of a tanh network.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray | Tensor], low: np.ndarray, high: np.ndarray) -> None:
        layers = sum(name.startswith("weight_") for name in tensors)
        if not layers or "observation_mean" not in tensors:
            raise DatasetError(f"expected the snapshot of a tanh network, got tensors {sorted(tensors)}")
        as_float = {name: torch.as_tensor(tensor).float() for name, tensor in tensors.items()}
        self._mean, self._std = as_float["observation_mean"][:, None], as_float["observation_std"][:, None]
        self._weights = [_once(as_float[f"weight_{i}"]) for i in range(layers)]
        self._biases = [_once(as_float[f"bias_{i}"]) for i in range(layers)]
        self._low, self._high = torch.as_tensor(low), torch.as_tensor(high)

    def __len__(self) -> int:
        return len(self._mean)

    @torch.no_grad()
    def act(self, observations: np.ndarray) -> np.ndarray:
        """Every policy on its own observations: ``[K, N, N_o]`` to clipped actions ``[K, N, A]``."""
        x = torch.as_tensor(observations, dtype=torch.float32)
        x = ((x - self._mean) / self._std).clamp(-10, 10)
        return mlp_forward(self._weights, self._biases, x).clamp(self._low, self._high).numpy()

    @torch.no_grad()
    def act_as(self, learner: int, observations: np.ndarray) -> np.ndarray:
        """One learner's policy on observations ``[N, N_o]``: clipped actions ``[N, A]``."""
        return self._act_each([learner], observations[None])[0]

    @torch.no_grad()
    def act_each(self, learners: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """The policy of learner ``learners[r]`` on observation r: ``[R, N_o]`` to clipped actions ``[R, A]``.

        One product for all where the learners share their weights, else one after the other.
        """
        if all(len(weight) == 1 for weight in self._weights):
            return self._act_each(learners.tolist(), observations[:, None])[:, 0]
        actions = np.empty((len(learners), len(self._low)), np.float32)
        for learner in np.unique(learners):
            actions[learners == learner] = self.act_as(int(learner), observations[learners == learner])
        return actions

    def _act_each(self, learners: list[int], observations: np.ndarray) -> np.ndarray:
        """Observations ``[R, N, N_o]`` of one learner each to ``[R, N, A]``."""
        x = torch.as_tensor(observations, dtype=torch.float32)
        x = ((x - self._mean[learners]) / self._std[learners]).clamp(-10, 10)
        weights, biases = ([p if len(p) == 1 else p[learners] for p in ps] for ps in (self._weights, self._biases))
        return mlp_forward(weights, biases, x).clamp(self._low, self._high).numpy()


def _once(parameter: Tensor) -> Tensor:
    """``[K, ...]``, or ``[1, ...]`` where all learners have the same."""
    return parameter[:1].contiguous() if torch.equal(parameter, parameter[:1].expand_as(parameter)) else parameter

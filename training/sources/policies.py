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
        self._weights = [as_float[f"weight_{i}"] for i in range(layers)]
        self._biases = [as_float[f"bias_{i}"] for i in range(layers)]
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
        x = torch.as_tensor(observations, dtype=torch.float32)[None]
        only = slice(learner, learner + 1)
        x = ((x - self._mean[only]) / self._std[only]).clamp(-10, 10)
        weights, biases = ([p[only] for p in ps] for ps in (self._weights, self._biases))
        return mlp_forward(weights, biases, x)[0].clamp(self._low, self._high).numpy()

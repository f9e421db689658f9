"""Source policies as their snapshots keep them, batched over tasks.

A snapshot is a dict of tensors, first axis the task: ``observation_mean, observation_std [K, N_o]`` and the layers
``weight_i [K, I, O]``, ``bias_i [K, 1, O]`` of a network on normalised observations; those of a policy that sees what
the environment calls privileged have that behind the observation, and N_o counts both. What kind it is says the integer
tensor ``format [K]``:

- 1, or no such tensor: a tanh network, inputs clipped to ±10, whose outputs are the means of a Gaussian that is clipped
  to the action space; its standard deviation is the exponential of ``log_std [K, 1, A]``, where that is there (PPO);
- 2: a ReLU network with twice as many outputs, means and log standard deviations of a Gaussian that is squashed by
  tanh and scaled to the action space (SAC, DroQ).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from icrl_agents.envs import MetaEnvDefinition, SignedPermutation, Symmetry
from icrl_agents.errors import ConfigError, DatasetError
from icrl_agents.kernels.choice import compiled
from icrl_agents.training.sources.action_bounds import ActionBounds
from icrl_agents.training.sources.batched import mlp_forward

CLIPPED_FORMAT, SQUASHED_FORMAT = 1, 2


def gaussian_parameters(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log standard deviation ``[..., A]`` from a squashed policy's outputs ``[..., 2 A]``.

    The latter is kept within [-20, 2], as Haarnoja's code and stable-baselines3 do.
    """
    mean, log_std = outputs.chunk(2, -1)
    return mean, log_std.clamp(-20, 2)


def sees_privileged(seen_dim: int, definition: MetaEnvDefinition) -> bool:
    """Whether policies of so many inputs see, behind the observation, what the environment calls privileged.

    Raises:
        ConfigError: they see neither that nor the observation alone.
    """
    shown, more = definition.observation_dim, definition.privileged_dim
    if seen_dim not in (shown, shown + more):
        raise ConfigError(
            f"these policies see {seen_dim} entries; {definition.env_id} shows {shown}, and {more} that are privileged"
        )
    return seen_dim > shown


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


def symmetries_of(definition: MetaEnvDefinition, task_vectors: np.ndarray) -> tuple[list[Symmetry], np.ndarray]:
    """The symmetry of each task vector ``[K, k]``, and what it makes of it ``[K, k]``.

    Raises:
        ConfigError: the environment knows none.
    """
    symmetries = []
    for vector in task_vectors:
        symmetry = definition.symmetry(vector)
        if symmetry is None:
            raise ConfigError(f"symmetric: {definition.env_id} knows no symmetry of its tasks")
        symmetries.append(symmetry)
    return symmetries, np.stack([own.task(vector) for own, vector in zip(symmetries, task_vectors, strict=True)])


def turned_back(snapshot: Mapping[str, np.ndarray | Tensor], symmetries: Sequence[Symmetry]) -> dict[str, Tensor]:
    """Policies that see and act through a symmetry each, as policies that do without it.

    What it does to observations and actions becomes part of the first and the last layer.

    Args:
        snapshot: of K tanh networks (format 1).
        symmetries: K; each policy sees observations, and gives actions, after its symmetry.

    Returns:
        A snapshot with first axis K.
    """

    def each(of_all: Tensor, by: Sequence[SignedPermutation], axis: int = -1, *, signed: bool = True) -> Tensor:
        parts = (
            t[..., p.index] * torch.from_numpy(p.sign if signed else np.abs(p.sign)).to(t.dtype)
            for t, p in zip(of_all.transpose(axis, -1), by, strict=True)
        )
        return torch.stack(list(parts)).transpose(axis, -1).contiguous()

    tensors = {name: torch.as_tensor(tensor) for name, tensor in snapshot.items()}
    last = sum(name.startswith("weight_") for name in tensors) - 1
    seen = [symmetry.observation.inverse for symmetry in symmetries]
    acted = [symmetry.action.inverse for symmetry in symmetries]
    result = {
        **tensors,
        "observation_mean": each(tensors["observation_mean"], seen),
        "observation_std": each(tensors["observation_std"], seen, signed=False),
        "weight_0": each(tensors["weight_0"], seen, 1),
    }
    result |= {name: each(result[name], acted) for name in (f"weight_{last}", f"bias_{last}")}
    if "log_std" in tensors:
        result["log_std"] = each(tensors["log_std"], acted, signed=False)
    return result


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
    """K source policies at one moment of their learning.

    Args:
        tensors: a snapshot, as this module describes them.
        low: lower bound of each action entry ``[A]``.
        high: upper bound ``[A]``.

    Raises:
        DatasetError: the snapshot is of no policy network, or of a format that this version does not know.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray | Tensor], low: np.ndarray, high: np.ndarray) -> None:
        layers = sum(name.startswith("weight_") for name in tensors)
        if not layers or "observation_mean" not in tensors:
            raise DatasetError(
                f"expected the snapshot of a tanh network or of a ReLU one, got tensors {sorted(tensors)}"
            )
        formats = np.unique(np.asarray(tensors.get("format", CLIPPED_FORMAT))).tolist()
        if formats not in ([CLIPPED_FORMAT], [SQUASHED_FORMAT]):
            raise DatasetError(f"expected a snapshot of format {CLIPPED_FORMAT} or {SQUASHED_FORMAT}, got {formats}")
        self._squashed = formats == [SQUASHED_FORMAT]
        as_float = {name: torch.as_tensor(tensor).float() for name, tensor in tensors.items()}
        self._mean, self._std = as_float["observation_mean"][:, None], as_float["observation_std"][:, None]
        self._weights = [_once(as_float[f"weight_{i}"]) for i in range(layers)]
        self._biases = [_once(as_float[f"bias_{i}"]) for i in range(layers)]
        self._log_std = as_float.get("log_std")
        self._bounds = ActionBounds(low, high)

    def __len__(self) -> int:
        return len(self._mean)

    @property
    def seen_dim(self) -> int:
        """N_o, entries of what the policies see."""
        return self._mean.shape[-1]

    def require_noise(self) -> None:
        """Raise where the snapshot does not say how widely its source explored.

        Raises:
            DatasetError: says which noise there is without.
        """
        if not self._squashed and self._log_std is None:
            raise DatasetError(
                "the snapshots do not tell how widely their source explored; take noise 'annealed' or 'none'"
            )

    @torch.no_grad()
    def act(self, observations: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """Every policy on its own observations: ``[K, N, N_o]`` to actions ``[K, N, A]`` within the bounds.

        Args:
            observations: of each policy.
            noise: ``[K, N, A]``, standard normal to explore as the source did; None for the deterministic action.

        Raises:
            DatasetError: noise, where the snapshot does not say how widely its source explored.
        """
        return self._act(slice(None), observations, noise)

    @torch.no_grad()
    def act_as(self, learner: int, observations: np.ndarray) -> np.ndarray:
        """One learner's policy on observations ``[N, N_o]``: deterministic actions ``[N, A]`` within the bounds."""
        return self._act([learner], observations[None], None)[0]

    @torch.no_grad()
    def act_each(self, learners: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """The policy of learner ``learners[r]`` on observation r: ``[R, N_o]`` to actions ``[R, A]`` within the bounds.

        One product for all where the learners share their weights; else compiled, or one after the other.
        """
        if all(len(weight) == 1 for weight in self._weights):
            return self._act(learners.tolist(), observations[:, None], None)[:, 0]
        if compiled():
            from icrl_agents.training.sources import cpu_mlp  # compiles, and numba may be missing

            at = torch.from_numpy(np.ascontiguousarray(learners))
            x = self._normalized(observations, self._mean[at, 0], self._std[at, 0])
            weights, biases = (
                [p.expand(len(self), -1, -1).contiguous() for p in ps] for ps in (self._weights, self._biases)
            )
            outputs = cpu_mlp.forward_each(weights, biases, learners, x, not self._squashed)
            return self._bounded(gaussian_parameters(outputs)[0] if self._squashed else outputs)
        actions = np.empty((len(learners), len(self._bounds.low)), np.float32)
        for learner in np.unique(learners):
            actions[learners == learner] = self.act_as(int(learner), observations[learners == learner])
        return actions

    def _act(self, chosen: slice | list[int], observations: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        """Observations ``[R, N, N_o]`` of one chosen learner each to ``[R, N, A]``."""
        if noise is not None:
            self.require_noise()
        x = self._normalized(observations, self._mean[chosen], self._std[chosen])
        weights, biases = ([p if len(p) == 1 else p[chosen] for p in ps] for ps in (self._weights, self._biases))
        log_std = None if self._log_std is None else self._log_std[chosen]
        if self._squashed:
            action, log_std = gaussian_parameters(mlp_forward(weights, biases, x, "relu"))
        else:
            action = mlp_forward(weights, biases, x)
        if noise is not None and log_std is not None:
            action = action + log_std.exp() * torch.as_tensor(noise)
        return self._bounded(action)

    def _normalized(self, observations: np.ndarray, mean: Tensor, std: Tensor) -> Tensor:
        """What the networks see."""
        x = (torch.as_tensor(observations, dtype=torch.float32) - mean) / std
        return x if self._squashed else x.clamp(-10, 10)

    def _bounded(self, action: Tensor) -> np.ndarray:
        """What the networks give, within the bounds."""
        if self._squashed:
            return self._bounds.from_unit(torch.tanh(action).numpy())
        return self._bounds.clip(action.numpy())


def _once(parameter: Tensor) -> Tensor:
    """``[K, ...]``, or ``[1, ...]`` where all learners have the same."""
    return parameter[:1].contiguous() if torch.equal(parameter, parameter[:1].expand_as(parameter)) else parameter

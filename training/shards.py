"""One file of a dataset: what a shard's arrays are, and how its file is read again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from icrl_agents.errors import DatasetError
from icrl_agents.training.manifest import Manifest

PER_STEP = ("observations", "actions", "mean_actions", "rewards", "terminated", "truncated")
FLAGS = ("terminated", "truncated")


class OpenShard:
    """A shard as its file is mapped into memory: ``shard[name]`` can be sliced without loading the rest."""

    def __init__(self, path: Path, steps: int, manifest: Manifest) -> None:
        self.steps = steps
        self._observation_dim = manifest.observation_dim
        try:
            self._file = safe_open(path, framework="np")
            for name in PER_STEP:
                shape = tuple(self._file.get_slice(name).get_shape())
                expected = (manifest.histories, steps, *step_shape(name, manifest))
                if shape != expected:
                    raise DatasetError(f"{path}: expected {name} of shape {expected}, got {shape}")
            counts = self._file.get_tensor("episode_counts")
        except (SafetensorError, OSError) as error:
            raise DatasetError(f"{path} is damaged: {error}") from None
        self._bounds = np.concatenate([[0], np.cumsum(counts)])
        self._slices = {name: self._file.get_slice(name) for name in (*PER_STEP, "final_observations")}

    def __getitem__(self, name: str) -> Any:
        return self._slices[name]

    def final_observations(self, h: int) -> np.ndarray:
        """``[n, N_o]`` of the episodes of history ``h`` that end in this shard."""
        first, last = int(self._bounds[h]), int(self._bounds[h + 1])
        if first == last:  # which safetensors refuses to slice
            return np.zeros((0, self._observation_dim), np.float32)
        return self._slices["final_observations"][first:last]


def step_shape(name: str, manifest: Manifest) -> tuple[int, ...]:
    """Shape of one step's entry of an array."""
    if name == "observations":
        return (manifest.observation_dim,)
    return (manifest.action_dim,) if name in ("actions", "mean_actions") else ()


def checked_arrays(arrays: Mapping[str, np.ndarray], manifest: Manifest) -> dict[str, np.ndarray]:
    """The arrays of one shard as stored, from those given to :meth:`HistoryWriter.append`."""
    expected_names = {*PER_STEP, "final_observations"}
    if set(arrays) != expected_names:
        raise DatasetError(f"expected the arrays {sorted(expected_names)}, got {sorted(arrays)}")
    rewards = np.asarray(arrays["rewards"])
    steps = rewards.shape[1] if rewards.ndim == 2 else 0
    if not steps:
        raise DatasetError(f"rewards: expected [H, T] with T > 0, got {rewards.shape}")
    out: dict[str, np.ndarray] = {}
    for name in PER_STEP:
        out[name] = np.asarray(arrays[name], bool if name in FLAGS else np.float32, order="C")
        expected = (manifest.histories, steps, *step_shape(name, manifest))
        if out[name].shape != expected:
            raise DatasetError(f"{name}: expected shape {expected}, got {out[name].shape}")
    counts = (out["terminated"] | out["truncated"]).sum(1, dtype=np.int64)  # [H]
    final = np.asarray(arrays["final_observations"], np.float32, order="C")
    if final.ndim == 3 and final.shape[0] == manifest.histories and (counts == final.shape[1]).all():
        final = final.reshape(-1, final.shape[2])
    if final.shape != (counts.sum(), manifest.observation_dim):
        raise DatasetError(
            f"final_observations: expected {counts.sum()} of {manifest.observation_dim} entries, one for "
            f"each episode that terminated or truncated says has ended, got shape {final.shape}"
        )
    out |= {"final_observations": final, "episode_counts": counts}
    for name, array in out.items():
        if not np.isfinite(array).all():
            raise DatasetError(f"{name} holds values that are not finite")
    return out


def as_arrays(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays or torch tensors as contiguous arrays."""
    out = {}
    for name, value in values.items():
        plain = value.detach().cpu().numpy() if hasattr(value, "detach") else value
        out[name] = np.asarray(plain, order="C")
    return out


def as_half(array: np.ndarray) -> np.ndarray:
    """Floats as fp16, unless some entry is too large for it."""
    if array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if np.array_equal(np.isfinite(half), np.isfinite(array)) else array.astype(np.float32)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file.

    Raises:
        DatasetError: it is damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DatasetError(f"{path} is damaged: {error}") from None

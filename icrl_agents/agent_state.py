"""Everything an agent remembers, apart from its weights, and its file.

B rows, T token entries, A action entries
"""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils import _pytree as pytree

from icrl_agents.atomic import write_atomically
from icrl_agents.backbones import Carry, clone_carry
from icrl_agents.config import AgentConfig, to_dict
from icrl_agents.errors import CheckpointError
from icrl_agents.model import InContextModel

STATE_VERSION = 1
"""Version of the state file; one with another version is refused."""


@dataclass
class AgentState:
    """What an :class:`~icrl_agents.agent.InContextAgent` knows between two calls.

    Attributes:
        single: one environment, scalars in and out; else arrays over B rows.
        autoreset_mode: how a vector environment begins episodes.
        tokens: ``[B, T]`` float32. Between ``observe`` and ``act`` the token of the next decision, except its
            observation; between ``act`` and ``observe`` the token that was decided on.
        actions: ``[B, A]`` float32, the last actions.
        resetting: ``[B]`` bool, rows whose next action the environment ignores, since it resets (NEXT_STEP).
        acted: an action waits for its reward.
        carry: the backbone's carry of B rows.
        generator: random stream of sampled actions.
    """

    single: bool
    autoreset_mode: AutoresetMode
    tokens: np.ndarray
    actions: np.ndarray
    resetting: np.ndarray
    acted: bool
    carry: Carry
    generator: torch.Generator

    @classmethod
    def fresh(
        cls,
        model: InContextModel,
        num_envs: int | None,
        autoreset_mode: AutoresetMode,
        generator: torch.Generator,
    ) -> "AgentState":
        """The state before the first step of a task, for ``num_envs`` rows or (None) one environment."""
        rows, at = num_envs or 1, model.layout
        tokens = np.zeros((rows, at.size), np.float32)
        tokens[:, at.episode_start] = 1.0
        return cls(
            single=num_envs is None,
            autoreset_mode=autoreset_mode,
            tokens=tokens,
            actions=np.zeros((rows, at.action_dim), np.float32),
            resetting=np.zeros(rows, bool),
            acted=False,
            carry=model.backbone.initial_carry(rows),
            generator=generator,
        )

    def copy(self) -> "AgentState":
        """A copy that shares no memory."""
        generator = torch.Generator()
        generator.set_state(self.generator.get_state())
        return AgentState(
            single=self.single,
            autoreset_mode=self.autoreset_mode,
            tokens=self.tokens.copy(),
            actions=self.actions.copy(),
            resetting=self.resetting.copy(),
            acted=self.acted,
            carry=clone_carry(self.carry),
            generator=generator,
        )

    def write(self, path: Path, digest: str) -> None:
        """Write a safetensors file, atomically.

        Args:
            path: the file; its directory is made.
            digest: :func:`checkpoint_digest` of the agent.
        """
        leaves = pytree.tree_leaves(self.carry)
        tensors = {f"carry.{i}": leaf.detach().cpu().clone() for i, leaf in enumerate(leaves)}
        tensors["tokens"] = torch.from_numpy(self.tokens)
        tensors["actions"] = torch.from_numpy(self.actions)
        tensors["resetting"] = torch.from_numpy(self.resetting)
        tensors["generator"] = self.generator.get_state()
        about = {
            "state_version": STATE_VERSION,
            "checkpoint": digest,
            "single": self.single,
            "autoreset_mode": self.autoreset_mode.value,
            "acted": self.acted,
        }
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_atomically(path, lambda temporary: save_file(whole, temporary, {"state": json.dumps(about)}))

    @classmethod
    def read(cls, path: Path, model: InContextModel, digest: str) -> "AgentState":
        """Read what :meth:`write` wrote.

        Args:
            path: the file.
            model: the agent's model.
            digest: :func:`checkpoint_digest` of the agent.

        Raises:
            CheckpointError: no state file, damaged, of another version or of another checkpoint.
        """
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                about = _about(path, (file.metadata() or {}).get("state"), digest)
                names = list(file.keys())
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
                rows = shapes["tokens"][0] if shapes.get("tokens") else 0
                if rows < 1 or (about["single"] and rows != 1):
                    raise CheckpointError(f"{path}: expected a state of at least one row")
                expected = _expected(model, rows)
                _check_shapes(path, shapes, {name: tuple(t.shape) for name, t in expected.items()})
                tensors = {name: file.get_tensor(name) for name in names}
        except FileNotFoundError:
            raise CheckpointError(f"{path} does not exist") from None
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a safetensors file of an agent's state: {error}") from None
        return cls._assemble(path, model, about, tensors, expected)

    @classmethod
    def _assemble(
        cls,
        path: Path,
        model: InContextModel,
        about: dict[str, Any],
        tensors: dict[str, Tensor],
        expected: dict[str, Tensor],
    ) -> "AgentState":
        for name, like in expected.items():
            if tensors[name].dtype != like.dtype:
                raise CheckpointError(f"{path}: {name} is {tensors[name].dtype}, expected {like.dtype}")
        for name in sorted(set(expected) - {"generator"}):
            if not torch.isfinite(tensors[name]).all():
                raise CheckpointError(f"{path}: {name} holds values that are not finite")
        generator = torch.Generator()
        try:
            generator.set_state(tensors["generator"])
        except RuntimeError as error:
            raise CheckpointError(f"{path}: not the state of a random generator: {error}") from None
        structure = pytree.tree_structure(model.backbone.initial_carry(1, device="meta"))
        device = model.token_mean.device
        # Copies: what safetensors gives is the file itself, mapped into memory.
        leaves = [tensors[f"carry.{i}"].to(device, copy=True) for i in range(structure.num_leaves)]
        return cls(
            single=about["single"],
            autoreset_mode=AutoresetMode(about["autoreset_mode"]),
            tokens=tensors["tokens"].numpy().copy(),
            actions=tensors["actions"].numpy().copy(),
            resetting=tensors["resetting"].numpy().copy(),
            acted=about["acted"],
            carry=pytree.tree_unflatten(leaves, structure),
            generator=generator,
        )


def checkpoint_digest(model: InContextModel, config: AgentConfig) -> str:
    """SHA-256 of an agent's config and weights: what a saved state belongs to."""
    digest = sha256(json.dumps(to_dict(config), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _about(path: Path, text: str | None, digest: str) -> dict[str, Any]:
    """The file's metadata, checked."""
    try:
        about = json.loads(text or "")
        version, mode = about["state_version"], about["autoreset_mode"]
        flags = [about["single"], about["acted"]]
        checkpoint = about["checkpoint"]
    except (ValueError, RecursionError, TypeError, KeyError):
        raise CheckpointError(f"{path} holds no agent state; expected a file that save_state wrote") from None
    if version != STATE_VERSION:
        raise CheckpointError(f"{path} has state_version {version!r}; this version reads {STATE_VERSION}")
    if checkpoint != digest:
        raise CheckpointError(f"{path} is the state of another checkpoint: its weights or config differ")
    if mode not in [m.value for m in AutoresetMode] or not all(isinstance(flag, bool) for flag in flags):
        raise CheckpointError(f"{path}: damaged metadata {about!r}")
    return about


def _expected(model: InContextModel, rows: int) -> dict[str, Tensor]:
    """Tensors on the meta device with the shapes and dtypes that a state of ``rows`` rows has."""
    at = model.layout
    leaves = pytree.tree_leaves(model.backbone.initial_carry(1, device="meta"))
    expected = {
        f"carry.{i}": torch.empty((rows, *leaf.shape[1:]), dtype=leaf.dtype, device="meta")
        for i, leaf in enumerate(leaves)
    }
    expected["tokens"] = torch.empty(rows, at.size, dtype=torch.float32, device="meta")
    expected["actions"] = torch.empty(rows, at.action_dim, dtype=torch.float32, device="meta")
    expected["resetting"] = torch.empty(rows, dtype=torch.bool, device="meta")
    expected["generator"] = torch.empty_like(torch.Generator().get_state(), device="meta")
    return expected


def _check_shapes(path: Path, found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
    if set(found) != set(expected):
        differing = ", ".join(sorted(set(found) ^ set(expected)))
        raise CheckpointError(f"{path}: missing or unexpected tensors: {differing}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(f"{path}: {name} has shape {found[name]}, expected {shape}")

"""A backbone on its own, as a directory: what training may start from instead of random weights.

``backbone.json`` says which backbone it is, ``backbone.safetensors`` holds its weights.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from icrl_agents.atomic import write_atomically, write_text_atomically
from icrl_agents.backbones import Backbone, make_backbone
from icrl_agents.config import FORMAT_VERSION, load_json, to_dict
from icrl_agents.errors import CheckpointError

CONFIG_FILE = "backbone.json"
WEIGHTS_FILE = "backbone.safetensors"


@dataclass(frozen=True)
class BackboneConfig:
    """What ``backbone.json`` holds.

    Attributes:
        backbone: registered name.
        options: fields of its config dataclass.
        source: where the weights come from, in words.
        format_version: of the file.
    """

    backbone: str
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    format_version: int = FORMAT_VERSION


def save_backbone(directory: Path, config: BackboneConfig, weights: Mapping[str, Tensor]) -> None:
    """Write a backbone's directory; ``weights`` are those of its state dict."""
    contiguous = {name: weight.detach().contiguous() for name, weight in weights.items()}
    write_atomically(directory / WEIGHTS_FILE, lambda path: save_file(contiguous, path))
    write_text_atomically(directory / CONFIG_FILE, json.dumps(to_dict(config), indent=2) + "\n")


def load_backbone(directory: str | Path) -> Backbone:
    """The backbone in a directory that :func:`save_backbone` wrote, on the CPU.

    Raises:
        ConfigError: ``backbone.json`` is missing or fits no registered backbone.
        UnknownNameError: nobody registered the backbone.
        CheckpointError: the weights are missing, damaged, not finite, or do not fit ``backbone.json``.
    """
    directory = Path(directory)
    config = load_json(BackboneConfig, directory / CONFIG_FILE)
    weights = read_tensors(directory / WEIGHTS_FILE)
    with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten: they cost no random numbers
        backbone = make_backbone(config.backbone, config.options)
    require_fit(weights, backbone.state_dict(), str(directory / WEIGHTS_FILE))
    backbone.load_state_dict(weights)
    return backbone


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; expected weights as safetensors") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file (pickles are never read): {error}") from None


def require_fit(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Names and shapes must be those ``expected``, values finite.

    Raises:
        CheckpointError: they are not; ``where`` and the tensor are named.
    """
    missing, foreign = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or foreign:
        raise CheckpointError(
            f"{where} does not fit its config: missing {missing[:5] or 'none'}, unexpected {foreign[:5] or 'none'} "
            f"({len(missing)} and {len(foreign)} tensors)"
        )
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise CheckpointError(
                f"{where} does not fit its config: {name} is {list(found[name].shape)}, expected {list(tensor.shape)}"
            )
        if not torch.isfinite(found[name]).all():
            raise CheckpointError(f"{where}: {name} holds values that are not finite")

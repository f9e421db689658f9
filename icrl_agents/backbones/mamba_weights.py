"""Weights of language models trained with mamba-ssm, as a :class:`~icrl_agents.backbones.mamba.Mamba` to start from.

Read are a ``config.json`` and safetensors, in the authors' form (``MambaLMHeadModel``) or in that of ``transformers``
(``MambaForCausalLM``); inside a block both name and lay out the weights as this package does. Embedding and language
head stay behind.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from icrl_agents.backbones.mamba import Mamba, MambaConfig
from icrl_agents.backbones.weights import BackboneConfig, read_tensors, require_fit, save_backbone
from icrl_agents.config import from_dict, to_dict
from icrl_agents.errors import CheckpointError

PREFIX = "backbone."
LEFT_BEHIND = {"backbone.embedding.weight", "backbone.embeddings.weight", "lm_head.weight"}

BLOCK_SIZES = ("d_state", "d_conv", "expand", "dt_rank")
ONLY_INITIAL = {"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path"}
"""Options of a mamba-ssm block that trained weights no longer depend on."""
TRANSFORMERS_SIZES = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "d_state": "state_size",
    "d_conv": "conv_kernel",
    "expand": "expand",
    "dt_rank": "time_step_rank",
}

CONVERSION = (
    "import torch; from safetensors.torch import save_file; "
    "weights = torch.load('pytorch_model.bin', weights_only=True, map_location='cpu'); "
    "save_file({k: v.clone() for k, v in weights.items()}, 'model.safetensors')"
)


def import_mamba(source: str | Path, out: str | Path) -> MambaConfig:
    """Write the blocks of a mamba-ssm checkpoint as a backbone's directory (:mod:`icrl_agents.backbones.weights`).

    Args:
        source: directory with ``config.json`` and ``*.safetensors``.
        out: directory; made if need be. Weights become float32.

    Returns:
        The backbone's shape.

    Raises:
        CheckpointError: the checkpoint is no Mamba-1, is incomplete, a pickle, or holds what this backbone has not.
        ConfigError: its sizes are no sizes.
    """
    source = Path(source)
    config = _config(source / "config.json")
    found = _tensors(source)
    weights = {name.removeprefix(PREFIX): weight.float() for name, weight in found.items() if name not in LEFT_BEHIND}
    if config.n_layers > len(found):
        raise CheckpointError(f"{source}: {config.n_layers} layers cannot come from {len(found)} tensors")
    with torch.device("meta"):
        expected = Mamba(config).state_dict()
    require_fit(weights, expected, str(source))
    save_backbone(Path(out), BackboneConfig("mamba", to_dict(config), f"mamba-ssm checkpoint {source.name}"), weights)
    return config


def _config(path: Path) -> MambaConfig:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist: expected a mamba-ssm checkpoint's directory") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is damaged: expected an object, got {type(data).__name__}")
    if "n_layer" in data:
        sizes = _authors_sizes(data, path)
    elif "num_hidden_layers" in data:
        sizes = _transformers_sizes(data, path)
    else:
        raise CheckpointError(f"{path} is no Mamba language model's: neither n_layer nor num_hidden_layers is in it")
    return from_dict(MambaConfig, sizes, where=str(path))


def _authors_sizes(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Sizes from the config of a ``MambaLMHeadModel``."""
    block = dict(data.get("ssm_cfg") or {})
    if block.pop("layer", "Mamba1") != "Mamba1":
        _refuse(path, "Mamba-2 blocks, which are another architecture; only Mamba-1 can be imported")
    if data.get("attn_layer_idx"):
        _refuse(path, "attention layers")
    if data.get("d_intermediate"):
        _refuse(path, "feed-forward layers")
    if not data.get("rms_norm", True):
        _refuse(path, "LayerNorm; this backbone has RMSNorm")
    if block.pop("bias", False) or not block.pop("conv_bias", True):
        _refuse(path, "other biases than Mamba's usual ones (bias=False, conv_bias=True)")
    sizes = {name: block.pop(name) for name in BLOCK_SIZES if name in block}
    foreign = sorted(set(block) - ONLY_INITIAL)
    if foreign:
        _refuse(path, f"block options that are not known here: {', '.join(foreign)}")
    return {"d_model": data.get("d_model"), "n_layers": data["n_layer"]} | sizes


def _transformers_sizes(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Sizes from the config of a ``MambaForCausalLM``."""
    kind = data.get("model_type")
    if kind != "mamba":
        _refuse(path, f"model_type {kind!r}; only 'mamba', which is Mamba-1, can be imported")
    if data.get("use_bias", False) or not data.get("use_conv_bias", True):
        _refuse(path, "other biases than Mamba's usual ones (use_bias=false, use_conv_bias=true)")
    if data.get("hidden_act", "silu") != "silu" or data.get("layer_norm_epsilon", 1e-5) != 1e-5:
        _refuse(path, "another activation than silu or another norm than epsilon 1e-5")
    return {ours: data[theirs] for ours, theirs in TRANSFORMERS_SIZES.items() if theirs in data}


def _refuse(path: Path, what: str) -> NoReturn:
    raise CheckpointError(f"{path} describes {what}")


def _tensors(source: Path) -> dict[str, Tensor]:
    """The tensors of all safetensors files in ``source``."""
    files = sorted(source.glob("*.safetensors"))
    if not files and (source / "pytorch_model.bin").exists():
        raise CheckpointError(
            f"{source} holds its weights as pytorch_model.bin, a pickle, and pickles are never read here. Take the "
            f'checkpoint\'s safetensors version, or convert it yourself: cd {source} && python -c "{CONVERSION}"'
        )
    if not files:
        raise CheckpointError(f"{source} holds no *.safetensors")
    found: dict[str, Tensor] = {}
    for file in files:
        tensors = read_tensors(file)
        twice = sorted(set(found) & set(tensors))
        if twice:
            raise CheckpointError(f"{file} repeats tensors of the files before it: {', '.join(twice[:5])}")
        found |= tensors
    return found

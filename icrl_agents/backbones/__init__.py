"""The registry of backbones: name -> where its class and its config dataclass are."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from icrl_agents.backbones.base import Backbone, Carry, Precision, carry_bytes, clone_carry
from icrl_agents.config import from_dict
from icrl_agents.envs.own_modules import ADVICE, import_own_modules
from icrl_agents.errors import ConfigError, UnknownNameError

_BACKBONES: dict[str, tuple[str, str]] = {
    "mamba": ("icrl_agents.backbones.mamba:Mamba", "icrl_agents.backbones.mamba:MambaConfig"),
    "mamba2": ("icrl_agents.backbones.mamba2:Mamba2", "icrl_agents.backbones.mamba2:Mamba2Config"),
    "transformer": (
        "icrl_agents.backbones.transformer:Transformer",
        "icrl_agents.backbones.transformer:TransformerConfig",
    ),
}


def backbone_names() -> tuple[str, ...]:
    """The registered names, sorted."""
    import_own_modules()
    return tuple(sorted(_BACKBONES))


def register_backbone(name: str, cls: str, config_cls: str) -> None:
    """Make a backbone known by name.

    Args:
        name: the name configs use.
        cls: ``"module:Class"`` of a :class:`Backbone`, built as ``cls(config)``.
        config_cls: ``"module:Class"`` of its frozen config dataclass.

    Raises:
        ConfigError: the name is taken, by another one.
    """
    if _BACKBONES.get(name, (cls, config_cls)) != (cls, config_cls):
        raise ConfigError(f"backbone {name!r} is already registered as {_BACKBONES[name][0]}")
    _BACKBONES[name] = (cls, config_cls)


def make_backbone(name: str, options: Mapping[str, Any]) -> Backbone:
    """Build a registered backbone.

    Args:
        name: a registered name.
        options: fields of its config dataclass.

    Raises:
        UnknownNameError: nobody registered ``name``.
        ConfigError: ``options`` do not fit its config.
    """
    import_own_modules()
    if name not in _BACKBONES:
        raise UnknownNameError("backbone", name, _BACKBONES, ADVICE)
    cls, config_cls = (_load(path) for path in _BACKBONES[name])
    return cls(from_dict(config_cls, options, where=f"{name} options"))


def _load(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


__all__ = [
    "Backbone",
    "Carry",
    "Precision",
    "backbone_names",
    "carry_bytes",
    "clone_carry",
    "make_backbone",
    "register_backbone",
]

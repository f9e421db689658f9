"""The contracts of this package as functions to call from your own tests.

A meta-environment of your own, and a backbone of your own, registered or not::

    def test_my_environment():
        check_meta_env("own/SwimmerDir-v0")

    def test_my_backbone():
        check_backbone(MyBackbone(MyConfig(d_model=16)))

PyTorch is loaded for the second alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from icrl_agents.testing.backbones import check_backbone
    from icrl_agents.testing.meta_envs import check_meta_env

_HOME = {"check_backbone": "backbones", "check_meta_env": "meta_envs"}

__all__ = ["check_backbone", "check_meta_env"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

"""Environments and backbones of users' own: what ``ICRL_IMPORT`` names is imported before a name is looked up.

An environment variable, since the processes of a training or collection have it from the one that started them.
"""

import importlib.util
import os
import sys
from pathlib import Path

from icrl_agents.errors import ConfigError

VARIABLE = "ICRL_IMPORT"
"""Modules that register something, separated by commas: ``ICRL_IMPORT=swimmer_dir icrl-agents list``."""

ADVICE = f"Of your own: {VARIABLE}=MODULE names what registers it."

_imported: set[str] = set()


def import_own_modules() -> None:
    """Import what ``ICRL_IMPORT`` names, each module once.

    Raises:
        ConfigError: one cannot be imported; its own error is the cause.
    """
    for name in (part.strip() for part in os.environ.get(VARIABLE, "").split(",")):
        if not name or name in _imported:
            continue
        _imported.add(name)  # before it: while it is imported it may look names up
        if _is_main(name):
            continue
        try:
            importlib.import_module(name)
        except Exception as error:
            _imported.discard(name)
            raise ConfigError(f"{VARIABLE} names {name!r}, which cannot be imported: {error!r}") from error


def _is_main(name: str) -> bool:
    """Whether the program that runs is that module: it has registered what it has, under another name."""
    try:
        spec = importlib.util.find_spec(name)
    except Exception:  # its own error, which importing it tells
        return False
    running = getattr(sys.modules["__main__"], "__file__", None)
    if spec is None or spec.origin is None or running is None:
        return False
    return Path(spec.origin).resolve() == Path(running).resolve()

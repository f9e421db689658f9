"""Files that are either whole or not there."""

import os
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from icrl_agents.errors import InputError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Replace ``path`` by what ``write`` puts into the file it is given.

    It is written beside its place, flushed to the disk and renamed: a kill at any moment leaves the old file
    or the new one.

    Args:
        path: the file; its directory is made if need be.
        write: called once with the path of a temporary file in the same directory.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors makes its files unreadable for others
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Replace the text file ``path``."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def require_writable(path: Path) -> None:
    """Raise unless a file can be written there; its directory is made.

    Raises:
        InputError: it cannot.
    """
    if path.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"{path} cannot be written: it is {'a directory' if path.is_dir() else 'not yours'}")
    probe = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()  # there are places of which permissions say nothing
        probe.unlink()
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from None

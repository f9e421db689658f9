"""Directories that one process at a time writes in, and what becomes of it when the disk refuses."""

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from socket import gethostname
from types import TracebackType
from typing import Self

from safetensors import SafetensorError

from icrl_agents.errors import DatasetError

LOCK_FILE = ".lock"
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{32}")  # the temporary names of icrl_agents.atomic
_OWN_FOLDERS = (".", "shards", "snapshots", "rounds")  # deeper or elsewhere, another process may be writing


class DirectoryLock:
    """The right to write in a directory; release it or use it in ``with``.

    The operating system drops it when the process ends, however it ends: a lock is never left behind. Files
    that a killed process had not finished writing, in the directory or in a dataset's or run's own folders inside,
    are deleted.

    Args:
        directory: made if it does not exist; a file ``.lock`` is made in it.

    Raises:
        DatasetError: another process writes there, and the message says which; or nobody can.
    """

    def __init__(self, directory: Path) -> None:
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._handle: int | None = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                os.close(self._handle)
                raise DatasetError(f"{directory} cannot be locked, on a file system without locks: {error}") from None
            holder = os.pread(self._handle, 200, 0).decode(errors="replace")
            os.close(self._handle)
            raise DatasetError(
                f"{directory} is in use by another process{f' ({holder})' if holder else ''}; "
                "wait for it or choose another directory"
            ) from None
        os.ftruncate(self._handle, 0)
        with suppress(OSError):  # a full disk may still have room for what the lock is for
            since = datetime.now().astimezone().isoformat(" ", "seconds")
            os.pwrite(self._handle, f"pid {os.getpid()} on {gethostname()}, since {since}".encode(), 0)
        for folder in _OWN_FOLDERS:
            for path in (directory / folder).glob(".*"):
                if _PARTIAL.fullmatch(path.name):
                    path.unlink(missing_ok=True)

    def release(self) -> None:
        """Let others write. Safe to call twice."""
        if self._handle is not None:
            os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """What the disk refuses becomes a DatasetError; nothing half written is ever committed."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DatasetError(
            f"{directory} could not be written: {error}; what was committed before is whole, and the command that "
            "wrote it goes on from there"
        ) from error

"""Whether this process is a forked child, known from the package's first import on.

In a forked child OpenMP waits forever for threads that only its parent has.
"""

import os

forked = False


def _note() -> None:
    global forked
    forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note)

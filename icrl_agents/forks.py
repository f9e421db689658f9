"""Whether this process is a forked child, known from the package's first import on.

In a forked child OpenMP waits forever for threads that only its parent has. The package's own loops look at ``forked``;
PyTorch's are told to do without such threads, as its own data loader tells its workers.
"""

import os
import sys

forked = False


def _note() -> None:
    global forked
    forked = True
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note)

"""How long OpenMP's threads spin when they have nothing to do.

After each of PyTorch's parallel loops its threads wait for the next one in a busy loop: 300,000 turns in libgomp, some
three milliseconds. A physics batch that steps meanwhile on threads of its own shares the cores with them, and in a
program that alternates between networks and physics, as collecting, training and evaluating do, that can cost as much
as the physics. After a few thousand turns, some tens of microseconds, loops that follow each other still find threads
awake. (``GOMP_SPINCOUNT``, https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html)
"""

import os
import sys

SPIN_COUNT = 3_000


def let_idle_threads_sleep() -> bool:
    """Let them sleep after a short spin, in this process and those it starts.

    For programs of their own. Does nothing where the user has set ``GOMP_SPINCOUNT`` or ``OMP_WAIT_POLICY``, or once
    PyTorch, and with it libgomp, is loaded.

    Returns:
        Whether it was this that decided.
    """
    if "torch" in sys.modules or {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
        return False
    os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
    return True

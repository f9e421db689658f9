"""Memory that stays with the process.

Networks of many learners take and free tens of megabytes at every update. glibc gives such blocks back to the system at
once, and the system fills every page with zeros before it lends it again.
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """From now on freed blocks of any size wait in this process for their next use, until it ends.

    For programs that do nothing but collect or train. Returns whether the C library knows how.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, NEVER))

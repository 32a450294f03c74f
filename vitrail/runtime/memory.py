"""Whether memory that is freed goes back to the system."""

from __future__ import annotations

import ctypes
import platform
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""glibc's names for what ``mallopt`` sets."""


def keep_memory() -> None:
    """Have this process keep the memory that it frees, for its next tensors: on Linux with glibc, elsewhere nothing.

    Else every activation of 32 MiB and more is given back and asked for again, and the system clears its pages each
    time, which takes several times as long as what is computed there.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_MAX, 0)
    library.mallopt(_M_TRIM_THRESHOLD, -1)

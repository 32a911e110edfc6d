"""How the C library keeps the memory that this process frees."""

from __future__ import annotations

import ctypes
import platform

# Of mallopt(3): its parameters' numbers, and what they are set to.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
KEPT = 2**28  # bytes: larger blocks go back to the system when they are freed, and so does what is free beyond it
GROWTH = 2**26  # bytes by which the heap grows


def keep_freed_memory() -> bool:
    """Let the C library keep freed blocks for the next ones of all threads; whether it does.

    Networks on a processor allocate and free each layer's tensors. By default glibc gives those back to the system, and
    each new page is cleared by the kernel: that took a third of a depth network's time. To be called before the first
    thread starts. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    wanted = {_M_ARENA_MAX: 1, _M_MMAP_THRESHOLD: KEPT, _M_TRIM_THRESHOLD: KEPT, _M_TOP_PAD: GROWTH}
    return all(mallopt(name, value) == 1 for name, value in wanted.items())

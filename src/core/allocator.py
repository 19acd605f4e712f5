"""Memory of the C library, kept by the process instead of given back to the system."""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt(3)."""

USER_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Keep what is freed from now on for the next allocation of this process.

    torch has a cache of freed blocks for GPUs, none for CPUs: there every large activation comes from the
    system, which clears it page by page, in each step anew. Where that is slow, as on virtual machines, it
    takes up to half of a forward pass. The process stays as large as it was at its peak.

    Returns:
        Whether it does so: not without glibc, nor where the environment says how it is to allocate.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in USER_SETTINGS):
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(M_MMAP_MAX, 0) and library.mallopt(M_TRIM_THRESHOLD, -1))

"""How a process that computes on a CPU keeps its memory."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_MMAP_THRESHOLD = 32 * 2**20  # that glibc takes
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed for what is asked for next; returns whether it does so.

    Left to itself, it hands large tensors back to the kernel as they are freed. The next ones are then
    mapped anew, page by page, as they are first written: some microseconds a page on a virtual machine, as
    much as the arithmetic of an elementwise operation.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # Whichever is set, glibc no longer raises the other as it goes.
    return bool(
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD) and libc.mallopt(M_TRIM_THRESHOLD, NEVER)
    )

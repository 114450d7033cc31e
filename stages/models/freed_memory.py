"""When a process on a CPU gives freed memory back to the kernel: glibc's malloc is told.

glibc takes a block above a threshold from the kernel by itself, and gives it back when it is freed. All other
blocks lie side by side on a heap, which shrinks only at its end. Another C library is left as it is.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LOWEST_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD = 2**20, 32 * 2**20  # bytes; glibc refuses more
NEVER = 2**31 - 1


def return_freed_blocks() -> bool:
    """Make glibc return each tensor from 1 MiB to the kernel once it is freed. Returns whether it does.

    Quantization makes short-lived tensors beside each weight that stays. On a heap, they would leave gaps
    between the weights: 0.7 GiB for a base of 1.2B parameters.
    """
    return _set(M_MMAP_THRESHOLD, LOWEST_MMAP_THRESHOLD)


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the next tensors. Returns whether it does.

    By default, glibc returns large tensors to the kernel when they are freed. The kernel then maps the next
    tensor again, page by page. On a virtual machine, a page takes some microseconds, as much as the
    arithmetic of an elementwise operation.
    """
    # Once one is set, glibc no longer adapts the other.
    return _set(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD) and _set(M_TRIM_THRESHOLD, NEVER)


def return_freed_memory() -> None:
    """Have glibc return the memory that is free now to the kernel. Each thread keeps its own, for itself."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _set(parameter: int, value: int) -> bool:
    return platform.libc_ver()[0] == "glibc" and bool(ctypes.CDLL(None).mallopt(parameter, value))

"""The C library's allocator, told what kind of process it serves."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's <malloc.h>


def keep_freed_memory() -> bool:
    """Let what this process frees serve its next allocations instead of going back to the system.

    By default glibc maps every large tensor anew, and the kernel clears its pages each time: a third of a training step
    on a CPU, which takes and gives back the same gigabytes layer by layer. Taken from one heap, the step also holds
    less at its peak. For processes of one purpose, since what was once needed stays theirs until they end.

    Returns:
        Whether the allocator takes such wishes; others than glibc's are left as they are.
    """
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    return adjust is not None and bool(adjust(M_MMAP_MAX, 0)) and bool(adjust(M_TRIM_THRESHOLD, -1))

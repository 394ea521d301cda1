"""Settings of the C library's allocator."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's <malloc.h>


def keep_freed_memory() -> bool:
    """Let freed memory serve this process's next allocations instead of returning it to the system.

    By default glibc maps every large tensor from the system, and the kernel clears its pages each time: a third of a
    training step on a CPU, which allocates and frees the same gigabytes layer by layer. Allocated from one heap, the
    step also has a lower peak. This suits processes with one purpose, because the memory is theirs until they end.

    Returns:
        Whether the allocator accepts the settings; only glibc's does.
    """
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    return adjust is not None and bool(adjust(M_MMAP_MAX, 0)) and bool(adjust(M_TRIM_THRESHOLD, -1))

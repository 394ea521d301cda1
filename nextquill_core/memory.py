"""Free and used memory of a device, within the limits of containers and batch jobs, and errors that say it ran out."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import psutil
import torch

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "status_alloc_failed")


def free_memory(device: torch.device) -> int:
    """Return the bytes that can still be allocated on a device; on a CPU also within the limit of a container."""
    if device.type in ("cpu", "mps"):
        available: int = psutil.virtual_memory().available
        return min([available, *(left for group in _cgroups() if (left := _left_in(group)) is not None)])
    free, _ = torch.accelerator.get_memory_info(device)
    cached = torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
    return int(free + cached)


def total_memory(device: torch.device) -> int:
    """Return the bytes that a device has; on a CPU those of the machine within the limits above this process."""
    if device.type in ("cpu", "mps"):
        whole: int = psutil.virtual_memory().total
        return min([whole, *(limit for group in _cgroups() if (limit := _limit_of(group)) is not None)])
    return int(torch.accelerator.get_memory_info(device)[1])


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has had on a device; on a CPU its largest resident size."""
    if device.type in ("cpu", "mps"):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return int(torch.accelerator.max_memory_allocated(device))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out; the CPU's allocator and CUDA's libraries say so in words."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(words in str(error).lower() for words in OUT_OF_MEMORY)


def _cgroups() -> list[Path]:
    """Return the groups that this process is in, from the innermost to the outermost (Linux, cgroup v2)."""
    try:
        own = next(line[3:] for line in OWN_CGROUP.read_text("utf-8").splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    inner = CGROUPS / own.strip("/")
    return [group for group in (inner, *inner.parents) if group.is_relative_to(CGROUPS)]


def _limit_of(group: Path) -> int | None:
    try:
        return int((group / "memory.max").read_text("ascii"))  # the text "max" means no limit
    except (OSError, ValueError):
        return None


def _left_in(group: Path) -> int | None:
    """Return what the memory limit of a group leaves, in bytes; None without a limit."""
    limit = _limit_of(group)
    try:
        used = int((group / "memory.current").read_text("ascii"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text("ascii").splitlines())
    except (OSError, ValueError):
        return None
    if limit is None:
        return None
    return max(0, limit - used + int(counts.get("inactive_file", 0)))  # pages that only cache files count as free

"""How much memory is free, on the device and within the limits that this process runs under."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on a device; on a CPU also within what a container or a batch job may have."""
    if device.type in ("cpu", "mps"):
        available: int = psutil.virtual_memory().available
        return min([available, *_left_in_cgroups()])
    free, _ = torch.accelerator.get_memory_info(device)
    kept = torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
    return int(free + kept)  # what torch keeps for later is free as well


def _left_in_cgroups() -> list[int]:
    """What each limit above this process leaves (Linux, cgroup v2); pages that only mirror files count as free."""
    try:
        own = next(line[3:] for line in OWN_CGROUP.read_text("utf-8").splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    inner = CGROUPS / own.strip("/")
    groups = [group for group in (inner, *inner.parents) if group.is_relative_to(CGROUPS)]
    return [left for group in groups if (left := _left_in(group)) is not None]


def _left_in(group: Path) -> int | None:
    try:
        limit = int((group / "memory.max").read_text("ascii"))  # "max" where there is none
        used = int((group / "memory.current").read_text("ascii"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text("ascii").splitlines())
    except (OSError, ValueError):
        return None
    return max(0, limit - used + int(counts.get("inactive_file", 0)))

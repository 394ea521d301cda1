"""What a process holds in memory beyond what it held before, by the kernel's own account (Linux)."""

from __future__ import annotations

import re
from pathlib import Path

SELF = Path("/proc/self")


class ExtraMemory:
    """Counts from the moment it is made: what was needed and given back before plays no part."""

    def __init__(self) -> None:
        (SELF / "clear_refs").write_text("5")  # the peak is now what is held now
        self.before = _held("VmRSS")

    def gb(self) -> float:
        """The highest level since, above the one at the beginning."""
        return (self.peak_gb() * 1e9 - self.before) / 1e9

    def peak_gb(self) -> float:
        """The highest level since."""
        return _held("VmHWM") / 1e9


def _held(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", (SELF / "status").read_text())
    assert found, f"the kernel does not tell {name}"
    return int(found[1]) * 1024

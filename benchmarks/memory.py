"""Memory that a process needs beyond what it held before, as the Linux kernel reports it."""

from __future__ import annotations

import re
from pathlib import Path

SELF = Path("/proc/self")


class ExtraMemory:
    """Measures from its creation on; memory that was used and released before does not count."""

    def __init__(self) -> None:
        (SELF / "clear_refs").write_text("5")  # resets the peak to the present size
        self.before = _held("VmRSS")

    def gb(self) -> float:
        """Return the peak since then in GB, beyond the size at the beginning."""
        return (self.peak_gb() * 1e9 - self.before) / 1e9

    def peak_gb(self) -> float:
        """Return the peak since then in GB."""
        return _held("VmHWM") / 1e9


def _held(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", (SELF / "status").read_text())
    assert found, f"the kernel does not report {name}"
    return int(found[1]) * 1024

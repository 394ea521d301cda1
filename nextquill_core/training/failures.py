"""Which rank failed first, and what it wrote: the others fail after it, of its absence."""

from __future__ import annotations

import os
import re
from pathlib import Path

FOLDER = "rank-logs"
FIRST = "first-to-fail"


def rank_logs(order: Path) -> Path:
    """The folder beside an order where each rank's output goes, a file a rank."""
    return order.parent / FOLDER


def logs_by_rank(order: Path) -> dict[int, Path]:
    """The files there, as DeepSpeed's launcher names them."""
    found = {path: re.search(r"_rank(\d+)\.log$", path.name) for path in sorted(rank_logs(order).glob("*.log"))}
    return {int(match[1]): path for path, match in found.items() if match}


def mark_failed(order: Path) -> None:
    """Note that this rank has failed, unless another was first; the file system decides, on whatever machine."""
    try:
        with (rank_logs(order) / FIRST).open("x", encoding="utf-8") as file:
            file.write(os.environ.get("RANK", "0"))
    except OSError:
        return  # another was first, or there is no such folder: an order that was started by hand


def first_failed(order: Path) -> int | None:
    """The rank that failed first, where a rank could say so."""
    try:
        return int((rank_logs(order) / FIRST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None

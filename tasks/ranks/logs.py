"""Logs of other processes, kept to a size: the beginning says how it was started, the end how it went."""

from __future__ import annotations

from pathlib import Path

LIMIT = 32 << 20
NOTE = b"\n[... %d bytes left out ...]\n"


def bounded(log: Path, limit: int = LIMIT) -> None:
    """Cut the middle out of a log that is longer than `limit` bytes; a quarter of that stays at either end.

    The file is cut where it stands, because its writers have it open; they append (`O_APPEND`), so they go on at its
    new end. What is written in the very moment of the cut may be lost with the middle.

    Args:
        log: May be absent.
        limit: Bytes.
    """
    try:
        size = log.stat().st_size
    except FileNotFoundError:
        return
    if size <= limit:
        return
    part = limit // 4
    with log.open("r+b") as file:
        head = file.read(part)
        head = head[: head.rfind(b"\n") + 1] or head
        file.seek(-part, 2)
        tail = file.read()
        tail = tail[tail.find(b"\n") + 1 :] or tail
        file.seek(len(head))
        file.write(NOTE % (size - len(head) - len(tail)) + tail)
        file.truncate()

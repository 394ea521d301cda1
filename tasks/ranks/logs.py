"""Log files of other processes: read while they grow, merged rank by rank, and kept to a size."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from nextquill_core.training.ranks import logs_by_rank

MAX_BYTES = 32 << 20
"""Default size above which a log loses its middle."""
CUT_NOTE = b"\n[... %d bytes left out ...]\n"


class LineReader:
    """Reads the lines that were appended to a file since the last call.

    A file that was replaced or cut back is read from its beginning again. The inode tells a replaced file from the old
    one, because the new file may already be as long as the old one was.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._position = 0

    def read(self, *, ended: bool = False) -> Iterator[bytes]:
        """Yield the new lines with their line feeds; nothing if the file does not exist.

        Args:
            ended: Whether the writer has ended. A last line without a line feed is then complete too.
        """
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._position:
                    self._inode, self._position = status.st_ino, 0
                file.seek(self._position)
                for line in file:
                    if not line.endswith(b"\n") and not ended:
                        break
                    self._position += len(line)
                    yield line
        except FileNotFoundError:
            return


class RankLogs:
    """Merges the logs of all ranks into one file, in which each line begins with its rank.

    Args:
        order: The training order; the ranks' logs are beside it.
        log: The merged log.
    """

    def __init__(self, order: Path, log: Path) -> None:
        self._order = order
        self._log = log
        self._readers: dict[int, LineReader] = {}

    def merge(self, *, ended: bool = False) -> None:
        """Append the ranks' new lines to the merged log.

        Args:
            ended: Whether the ranks have ended; see `LineReader.read`.
        """
        for rank, path in logs_by_rank(self._order).items():
            reader = self._readers.setdefault(rank, LineReader(path))
            text = b"".join(b"[rank %d] %s\n" % (rank, line.rstrip(b"\r\n")) for line in reader.read(ended=ended))
            if text:
                with self._log.open("ab") as log:
                    log.write(text)


def last_lines(log: Path, count: int) -> list[str]:
    """Return the last `count` lines of a log with their line feeds; none if it cannot be read."""
    try:
        with log.open(encoding="utf-8", errors="replace") as file:
            return list(deque(file, maxlen=count))
    except OSError:
        return []


def limit_size(log: Path, max_bytes: int = MAX_BYTES) -> None:
    """Cut the middle out of a log that is too long; a quarter of `max_bytes` stays at either end.

    The file is cut in place, because its writers have it open in append mode and continue at its new end. What they
    write at the very moment of the cut may be lost with the middle.

    Args:
        log: The log; it need not exist.
        max_bytes: Size up to which the log is left alone.
    """
    try:
        size = log.stat().st_size
    except FileNotFoundError:
        return
    if size <= max_bytes:
        return
    part = max_bytes // 4
    with log.open("r+b") as file:
        head = file.read(part)
        head = head[: head.rfind(b"\n") + 1] or head
        file.seek(-part, 2)
        tail = file.read()
        tail = tail[tail.find(b"\n") + 1 :] or tail
        file.seek(len(head))
        file.write(CUT_NOTE % (size - len(head) - len(tail)) + tail)
        file.truncate()

"""Reading what other processes append to files, while they do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from nextquill_core.training.failures import logs_by_rank


class NewLines:
    """The lines of a file that came since they were last read; a file that was cut back is read anew.

    Whoever cuts a file back puts another in its place, which may be as long again before it is next looked at: what
    tells them apart is not the length but the inode.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._position = 0

    def read(self, *, ended: bool = False) -> Iterator[bytes]:
        """Complete lines with their line feeds; with `ended`, also a last one that has none."""
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


class Follower:
    """Reads the lines that another process appends to a JSON-lines file.

    A resumed run first cuts the file back; what is left of it counts as not seen yet.
    """

    def __init__(self, path: Path) -> None:
        self._lines = NewLines(path)

    def follow(self, on_line: Callable[[dict[str, float]], None]) -> None:
        """Hand over the complete lines that came since the last call."""
        for line in self._lines.read():
            on_line(json.loads(line))


class RankLogs:
    """Joins the ranks' own logs into one, each line headed by its rank."""

    def __init__(self, order: Path, log: Path) -> None:
        self._order = order
        self._log = log
        self._ranks: dict[int, NewLines] = {}

    def follow(self, *, ended: bool = False) -> None:
        """Append what came since the last call."""
        for rank, path in logs_by_rank(self._order).items():
            lines = self._ranks.setdefault(rank, NewLines(path))
            text = b"".join(b"[rank %d] %s\n" % (rank, line.rstrip(b"\r\n")) for line in lines.read(ended=ended))
            if text:
                with self._log.open("ab") as log:
                    log.write(text)

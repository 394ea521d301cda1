"""Progress reports of long-running work, within a process and from a child process to its parent."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from storage.files import read_json

WRITE_EVERY_S = 0.5


class Progress(Protocol):
    """Receives progress from inside loops at any rate; the listener decides what it shows and how often."""

    def __call__(self, done: float, total: float, note: str = "", *, phase: str = "") -> None:
        """Report `done` of `total` units.

        Args:
            done: Units that are done.
            total: Units in all; 0 if their number is not known.
            note: A few words such as "3,120 tokens/s".
            phase: Name of work other than the stage's main work, such as "validating" or "loading the model"; the units
                are then those of the phase.
        """


def silent(*_: object, **__: object) -> None:
    """Show nothing; a `Progress` that ignores all its arguments."""


def advancing(progress: Progress, total: float, done: float = 0) -> Callable[[int], None]:
    """Return a function that receives how many more units are done, and reports how many are done in all.

    Args:
        progress: Receives the reports.
        total: Units in all.
        done: Units that are done already.
    """

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return advance


class PhaseFile:
    """A `Progress` that passes the phase of a child process to its parent through a small file, which the parent polls.

    Errors of the file system are ignored, because the child's real output reports them.

    Args:
        path: The file, which exists while a phase lasts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._phase = ""
        self._written = 0.0
        self._shown = False

    def __call__(self, done: float, total: float, note: str = "", *, phase: str = "") -> None:
        """Write the phase and its progress, or remove the file when the main work continues.

        Args:
            done: Units of the phase that are done.
            total: Units of the phase in all; 0 if their number is not known.
            note: Not passed to the parent.
            phase: Name of the phase; empty for the main work.
        """
        if not phase:
            self.clear()
            return
        now = time.monotonic()
        if phase == self._phase and now - self._written < WRITE_EVERY_S:  # cheap enough for inner loops
            return
        self._phase, self._written = phase, now
        unfinished = self.path.with_name(f".{self.path.name}.tmp")
        with suppress(OSError):
            unfinished.write_text(json.dumps({"phase": phase, "done": done, "total": total}), encoding="utf-8")
            unfinished.replace(self.path)

    def clear(self) -> None:
        """Remove the file: the main work continues."""
        self._phase = ""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def show(self, progress: Progress) -> None:
        """Pass the current phase to `progress`, and once an empty phase after it has ended."""
        try:
            found = read_json(self.path)
        except OSError:
            if self._shown:
                self._shown = False
                progress(0, 0)
            return
        self._shown = True
        progress(found["done"], found["total"], phase=found["phase"])

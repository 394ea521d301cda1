"""How long-running work reports how far it is, without knowing who listens."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from storage.files import read_json

WRITE_EVERY_S = 0.5


class Progress(Protocol):
    """Called from inside loops, as often as convenient; the listener decides what it shows and how often."""

    def __call__(self, done: float, total: float, note: str = "", *, phase: str = "") -> None:
        """Report `done` of `total` units.

        Args:
            done: Units that are done.
            total: Units in all; 0 where their number is not known.
            note: A few words such as "3,120 tokens/s".
            phase: What is being done where it is not the stage's main work, such as "validating" or "loading the
                model"; the units are then those of the phase.
        """


def silent(done: float, total: float, note: str = "", *, phase: str = "") -> None:
    """A listener that shows nothing."""


class PhaseFile:
    """Carries the phase of another process: it writes a small file, and its parent reads it now and then.

    What cannot be written is left out: a full disk is reported by what matters.

    Args:
        path: The file; it is there while a phase lasts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._phase = ""
        self._written = 0.0
        self._shown = False

    def write(self, phase: str, done: float = 0, total: float = 0) -> None:
        """Say what is being done and how far it is; cheap enough for inner loops."""
        now = time.monotonic()
        if phase == self._phase and now - self._written < WRITE_EVERY_S:
            return
        self._phase, self._written = phase, now
        unfinished = self.path.with_name(f".{self.path.name}.tmp")
        with suppress(OSError):
            unfinished.write_text(json.dumps({"phase": phase, "done": done, "total": total}), encoding="utf-8")
            unfinished.replace(self.path)

    def clear(self) -> None:
        """Go back to the main work."""
        self._phase = ""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def show(self, progress: Progress) -> None:
        """Hand the phase on where there is one, and once an empty one after it has ended."""
        try:
            found = read_json(self.path)
        except OSError:
            if self._shown:
                self._shown = False
                progress(0, 0)
            return
        self._shown = True
        progress(found["done"], found["total"], phase=found["phase"])

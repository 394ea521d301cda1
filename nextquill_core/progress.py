"""How long-running work tells how far it is, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called from inside loops, as often as convenient; the listener decides what it shows and how often."""

    def __call__(self, done: float, total: float, note: str = "") -> None:
        """Report `done` of `total` units, with a short note such as "3,120 tokens/s"."""


def silent(done: float, total: float, note: str = "") -> None:
    """A listener that shows nothing."""

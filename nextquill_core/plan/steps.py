"""A step: one artifact to be, and everything that decides it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from storage import fingerprint

# Raised by hand when a stage's code changes what it produces from the same settings.
REVISIONS = {
    "scan": 1,
    "ingest": 2,
    "model": 1,
    "effects": 1,
    "score": 1,
    "train": 1,
    "relevance": 1,
    "summaries": 1,
    "personal": 1,
    "predictions": 2,
    "choice": 1,
    "likelihood": 1,
    "evaluate": 2,
    "sweep": 1,
    "reproduction": 1,
}


@dataclass(frozen=True)
class Step:
    """One artifact to be: its kind, a name people read, what decides it, and what it is made from."""

    kind: str
    name: str
    settings: Mapping[str, Any]
    inputs: tuple[Step, ...] = ()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The fields behind the fingerprint."""
        return {
            "stage": self.kind,
            "revision": REVISIONS[self.kind],
            **self.settings,
            "inputs": {step.name: step.fingerprint for step in self.inputs},
        }

    @cached_property
    def fingerprint(self) -> str:
        """The artifact's address below its kind."""
        return fingerprint(self.identity)

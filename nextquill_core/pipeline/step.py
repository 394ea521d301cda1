"""A step: one artifact to be, and everything that decides it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from storage import fingerprint

# Raised by hand when a stage's code changes what it produces from the same settings.
REVISIONS = {
    "scan": 2,
    "ingest": 3,
    "model": 2,
    "effects": 2,
    "score": 1,
    "train": 2,
    "relevance": 2,
    "summaries": 2,
    "personal": 2,
    "predictions": 3,
    "choice": 2,
    "likelihood": 2,
    "evaluate": 3,
    "sweep": 2,
    "reproduction": 2,
}
# The command of `nextquill` that makes an artifact of each kind. Folds, which `score` trains, are the plan's to know.
COMMANDS = {
    "scan": "ingest",
    "ingest": "ingest",
    "model": "model",
    "effects": "score",
    "score": "score",
    "train": "train",
    "relevance": "evaluate",
    "summaries": "evaluate",
    "personal": "evaluate",
    "predictions": "evaluate",
    "choice": "evaluate",
    "likelihood": "evaluate",
    "evaluate": "evaluate",
    "sweep": "sweep",
    "reproduction": "reproduce",
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

"""Curves: JSON lines, one for each step that was measured, cut back when a run resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from storage.documents import read_lines
from storage.files import write_text

METRICS = "metrics.jsonl"
VALIDATION = "val.jsonl"


class Step(TypedDict):
    """What a report reads of a line of metrics.jsonl: one optimizer step."""

    step: int
    loss: float
    normal: float
    causal: float
    seconds: float
    tokens: float


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines; one that a killed run left half written does not count."""
    return read_lines(path, dict[str, Any], "run the stage with --force") if path.is_file() else []


def cut(path: Path, last: int) -> None:
    """Take out the lines of steps after `last`."""
    kept = [line for line in read(path) if line["step"] <= last]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

"""Answers as they come, in a file: what a killed run or a failed server has written of a shard is not written again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from nextquill_core.generation.engines import Generation, Request


class Journal:
    """JSON lines, one an answer, in a file of its own for each shard.

    An answer is its example's and nothing else's, whatever else is asked beside it, so those of an earlier run stand.

    Args:
        path: The file; it may be there from an earlier run, its last line cut off.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        lines = text.splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        if len(whole) < len(lines):
            path.write_text("".join(whole), encoding="utf-8")
        self._answers = {found["key"]: Generation(**found["answer"]) for found in map(json.loads, whole)}

    def missing(self, requests: Sequence[Request]) -> list[Request]:
        """Those that have no answer yet."""
        return [request for request in requests if request.key not in self._answers]

    def keep(self, request: Request, answer: Generation) -> None:
        """Add an answer."""
        self._answers[request.key] = answer
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": request.key, "answer": asdict(answer)}) + "\n")

    def answers(self, requests: Sequence[Request]) -> list[Generation]:
        """The answers to all of them, in order."""
        return [self._answers[request.key] for request in requests]

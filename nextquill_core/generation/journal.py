"""Answers as they come, in a file: what a killed run or a failed server has written of a shard is not written again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from typing_extensions import TypedDict

from nextquill_core.generation.engines import Generation, Request
from storage.documents import read_lines


class _Line(TypedDict):
    key: str
    answer: Generation


class Journal:
    """JSON lines, one an answer, in a file of its own for each shard.

    An answer is its example's and nothing else's, whatever else is asked beside it, so those of an earlier run stand.

    Args:
        path: The file; it may be there from an earlier run, its last line cut off.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        stored: list[_Line] = read_lines(path, _Line, "run the stage with --force") if path.is_file() else []
        if stored:
            whole, _, unfinished = path.read_bytes().rpartition(b"\n")
            if unfinished:
                path.write_bytes(whole + b"\n")
        self._answers = {found["key"]: found["answer"] for found in stored}

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

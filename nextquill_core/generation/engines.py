"""What an engine is asked, what it answers, what that costs, and the journal of answers.

Imports neither an engine nor torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from typing_extensions import TypedDict

from storage.stored_json import read_lines

STOPPED, CUT = "stop", "length"
"""Why an answer ended: at a stop token, or at the length limit."""
BASE = "__base__"
"""PEFT's name for no adapter at all, as a request's adapter in a model that holds several."""


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to generate.

    Attributes:
        key: The example's id; with the seed it decides what is drawn, so that an answer depends neither on its batch
            nor on its shard.
        prompt: Token ids of the prompt, at least one.
        counterfactual: Token ids of the prompt of the second branch, which the engine contrasts with the first: the
            prompt without history, or the same prompt for another adapter. None for an answer from one branch.
        adapter: Name of the PEFT adapter to use; None for the model as it is: its adapter `default`, or none where it
            holds no adapter of that name.
        limit: Maximum number of tokens in this answer; None for the engine's own limit.
        counterfactual_adapter: Name of the PEFT adapter of the second branch; None for that of the first.
    """

    key: str
    prompt: list[int]
    counterfactual: list[int] | None = None
    adapter: str | None = None
    limit: int | None = None
    counterfactual_adapter: str | None = None

    @property
    def branches(self) -> tuple[tuple[list[int], str | None], ...]:
        """Prompt and adapter of each branch: one, or two that are contrasted; two equal ones are answered as one."""
        first = (self.prompt, self.adapter)
        if self.counterfactual is None:
            return (first,)
        return (first, (self.counterfactual, self.counterfactual_adapter or self.adapter))


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer: its text, its length in tokens (stop token not counted), and why it ended (`stop` or `length`)."""

    text: str
    n_tokens: int
    finish_reason: str


@dataclass
class Usage:
    """What generating has cost so far, summed over all answers of an engine.

    Attributes:
        answers: Number of answers.
        prompt_tokens: Tokens of the prompts, of both where an answer has two branches.
        new_tokens: Generated tokens; stop tokens are not counted.
        seconds: Wall-clock time inside `generate`.
        first_token_seconds: Summed time from the start of an answer's batch (or the sending of its request) to its
            first token.
        peak_bytes: Highest memory use so far: of the process on a CPU, of the accelerator on one; 0 where the model is
            on a server.
        retries: Requests repeated after a server failed, or batches repeated after memory ran out.
    """

    answers: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    first_token_seconds: float = 0.0
    peak_bytes: int = 0
    retries: int = 0


def no_progress(finished: int) -> None:
    """Ignore progress."""


def discard(request: Request, answer: Generation) -> None:
    """Store nothing."""


class Engine(Protocol):
    """Turns prompts into texts."""

    usage: Usage

    def generate(
        self,
        requests: Sequence[Request],
        advance: Callable[[int], None] = no_progress,
        *,
        keep: Callable[[Request, Generation], None] = discard,
    ) -> list[Generation]:
        """Answer every request.

        Args:
            requests: In any order; they are processed in the fastest order.
            advance: Receives from time to time how many more are finished.
            keep: Receives each answer as soon as it exists, so that nothing is lost if a later one fails.

        Returns:
            The answers in the order of the requests.
        """


def request_seed(seed: int, key: str) -> int:
    """Return the seed of one answer from the run's seed and the example's id; 31 bits, which every server accepts."""
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def finished_text(text: str) -> str:
    """Return an answer's text without surrounding blanks and without a character that the limit cut in two.

    Bytes that never became a character are decoded to the replacement character, or are never sent by a server.
    """
    return text.rstrip("\N{REPLACEMENT CHARACTER}").strip()


class _Line(TypedDict):
    key: str
    answer: Generation


class Journal:
    """JSON lines, one per answer, in one file per shard.

    An answer depends on its example alone and not on what else is generated, so those of an earlier run are valid.

    Args:
        path: The file; an earlier run may have left it with its last line cut off.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        stored: list[_Line] = []
        if path.is_file():
            stored = read_lines(path, _Line, "run the stage with --force")
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)  # without the unfinished line
        self._answers = {found["key"]: found["answer"] for found in stored}

    def missing(self, requests: Sequence[Request]) -> list[Request]:
        """Return the requests without an answer."""
        return [request for request in requests if request.key not in self._answers]

    def keep(self, request: Request, answer: Generation) -> None:
        """Append an answer."""
        self._answers[request.key] = answer
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": request.key, "answer": asdict(answer)}) + "\n")

    def answers(self, requests: Sequence[Request]) -> list[Generation]:
        """Return the answers to all requests, in order."""
        return [self._answers[request.key] for request in requests]

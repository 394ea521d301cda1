"""What an engine is asked, what it answers, and what answering has cost; no engine is loaded here, nor torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

STOPPED, CUT = "stop", "length"
BASE = "__base__"
"""PEFT's name for no adapter at all, as a request's adapter in a model that holds many."""


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to write.

    Attributes:
        key: The example's id; with the seed it decides what is drawn, so that an answer depends neither on its batch
            nor on its shard.
        prompt: Prompt ids, at least one.
        without: Ids of the prompt without history, to steer away from; None for an answer that is not steered.
        adapter: Name of the PEFT adapter to answer with; None for the model as it is: its adapter `default`, or none
            where it holds no adapter of that name.
        limit: Most tokens of this answer; None for the engine's own limit.
    """

    key: str
    prompt: list[int]
    without: list[int] | None = None
    adapter: str | None = None
    limit: int | None = None


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
        prompt_tokens: Of both prompts, where an answer is steered.
        new_tokens: Stop tokens not counted.
        seconds: Wall-clock time inside `generate`.
        first_token_seconds: Of each answer, from the moment when its prompt's batch began (or its request was sent)
            to its first token.
        peak_bytes: The most memory held so far: the process's own on a CPU, the accelerator's on one; 0 where the
            model is somewhere else.
        retries: Requests sent once more after a server failed them, or batches begun again when memory ran out.
    """

    answers: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    first_token_seconds: float = 0.0
    peak_bytes: int = 0
    retries: int = 0


def unheard(finished: int) -> None:
    """A listener that shows nothing."""


def unkept(request: Request, answer: Generation) -> None:
    """A keeper that keeps nothing."""


class Engine(Protocol):
    """Whatever turns prompts into texts."""

    usage: Usage

    def generate(
        self,
        requests: Sequence[Request],
        advance: Callable[[int], None] = unheard,
        *,
        keep: Callable[[Request, Generation], None] = unkept,
    ) -> list[Generation]:
        """Answer every request.

        Args:
            requests: In any order; the work is done in the order that is fastest.
            advance: Told now and then how many more are finished.
            keep: Given each answer as soon as it is there, so that nothing is lost if a later one fails.

        Returns:
            The answers in the order of the requests.
        """


def request_seed(seed: int, key: str) -> int:
    """The seed of one answer, from the run's and the example's id; 31 bits, which every server takes."""
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def finished_text(text: str) -> str:
    """An answer's text without blanks around it, and without a character that the limit cut in two.

    Bytes that never became a character are decoded to the replacement character, or are never sent by a server.
    """
    return text.rstrip("\N{REPLACEMENT CHARACTER}").strip()

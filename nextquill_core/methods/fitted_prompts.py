"""Prompts for texts that a model writes before the review: within the limit, with the longest texts cut if need be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nextquill_core.errors import ModelError
from nextquill_core.generation.engines import CUT, Generation
from nextquill_core.prompts import PLAIN, Template
from nextquill_core.records import Item, Review
from nextquill_core.tokens import UserTextTokenizer, opening_ids

Build = Callable[[int | None], str]
"""From a number of characters to the prompt in which no text is longer; None leaves all texts whole."""


class FittedPrompts:
    """Encodes prompts within a limit of tokens.

    Args:
        tokenizer: Tokenizer of the model.
        limit: Maximum number of tokens in a prompt.
        template: Opening and closing around a prompt's text.
    """

    def __init__(self, tokenizer: Any, limit: int, template: Template = PLAIN) -> None:
        self.limit = limit
        self._text = UserTextTokenizer(tokenizer, template)
        self._opening = opening_ids(tokenizer, template)

    def encode(self, build: Build, longest: int, what: str, remedy: str) -> tuple[list[int], bool]:
        """Return a prompt's ids and whether its texts were cut, to the greatest common length at which it fits.

        Args:
            build: Makes the prompt.
            longest: Number of characters of its longest text.
            what: What the prompt is for, for the error message.
            remedy: What else to change, for the error message.

        Raises:
            ModelError: The prompt is too long even with all texts cut to nothing.
        """
        ids = self._ids(build(None))
        if len(ids) <= self.limit:
            return ids, False
        fits, too_long, best = 0, longest, self._ids(build(0))
        if len(best) > self.limit:
            raise ModelError(
                f"the prompt for {what} needs {len(best)} tokens even without their texts",
                "prompt.max_prompt_tokens",
                f"raise it above {self.limit}, or {remedy}",
            )
        while too_long - fits > 1:
            length = (fits + too_long) // 2
            ids = self._ids(build(length))
            if len(ids) <= self.limit:
                fits, best = length, ids
            else:
                too_long = length
        return best, True

    def _ids(self, prompt: str) -> list[int]:
        return self._opening + self._text.encode_prompts([prompt])[0]


def taken(answer: Generation, counts: Counter[str], kind: str) -> str:
    """Return an answer on one line, so that nothing in it looks like a section of a prompt.

    Args:
        answer: The answer.
        counts: Counts it under its kind, under `empty` if it has no text, and under `cut` if it ended at its limit.
        kind: What the answer is.
    """
    text = " ".join(answer.text.split())
    counts[kind] += 1
    counts["empty"] += not text
    counts["cut"] += answer.finish_reason == CUT
    return text


def cut_text(text: str, length: int | None) -> str:
    """Return the beginning of a text; `length` counts characters, None is all of it."""
    return text if length is None else text[:length].rstrip()


def cut_review(review: Review, length: int | None) -> Review:
    """Return a review in which no text is longer than `length` characters; None leaves it as it is."""
    if length is None:
        return review
    item_title, description, title, text = (cut_text(text, length) for text in texts_of(review))
    return replace(review, item=Item(item_title, description), title=title, text=text)


def texts_of(review: Review) -> tuple[str, ...]:
    """Return the texts of a review that can be cut: the item's title and description, the title, and the text."""
    return review.item.title, review.item.description, review.title, review.text

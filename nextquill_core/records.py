"""The records that the code passes around: an item, a review, an example, its token ids.

They are separate from the tables' columns in `schemas`, because they need no Arrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SPLITS = ("train", "val", "test")
TextKind = Literal["post", "abstract", "article", "email", "text", "review"]
"""Kinds of text that a model can be asked for; `prompts.WORDINGS` has their words."""


@dataclass(frozen=True, slots=True)
class Item:
    """The title and description of a product; empty where the data have none."""

    title: str
    description: str


@dataclass(frozen=True, slots=True)
class Review:
    """A review together with the item it is about.

    Attributes:
        item: The item.
        rating: None where the data have none.
        title: Empty where the data have none.
        text: The cleaned text.
        timestamp_ms: UTC milliseconds.
    """

    item: Item
    rating: float | None
    title: str
    text: str
    timestamp_ms: int = 0


@dataclass(frozen=True, slots=True)
class Example:
    """A review to predict from the same user's earlier reviews.

    Attributes:
        example_id: Unique within an artifact.
        split: One of `SPLITS`.
        target: The review to predict.
        history: All earlier reviews of the user, oldest first, before any limit of the prompt.
        summary: A summary of the user's reviews, shown before the history; empty for none.
    """

    example_id: str
    user_id: str
    category: str
    split: str
    target: Review
    history: tuple[Review, ...]
    summary: str = ""


@dataclass(frozen=True, slots=True)
class TokenPair:
    """Token ids of one example.

    Attributes:
        factual: Prompt with history, and with the user's summary if the example has one.
        counterfactual: Prompt without history; equal to `factual` for a user without history.
        target: Answer with the stop token at its end, which is missing only if the answer was cut at the limit.
    """

    example_id: str
    factual: list[int]
    counterfactual: list[int]
    target: list[int]

    @property
    def has_history(self) -> bool:
        """Whether the branches differ."""
        return self.factual != self.counterfactual

    @property
    def tokens(self) -> int:
        """Token positions that computing both branches separately takes."""
        branches = 2 if self.has_history else 1
        return len(self.factual) + (branches - 1) * len(self.counterfactual) + branches * (len(self.target) - 1)


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """The answer of one example, and what the prompt shows of the user's history.

    Attributes:
        example_id: The example.
        text: The true review, whole.
        target_ids: Token ids of the answer, as in `TokenPair.target`.
        spans: Begin and end, in characters of `text`, of what each token stands for; empty for the stop token.
        history: The past reviews in the prompt, oldest first; a text that was cut to fit is cut here too.
        about: What the prompt says of the text to write: title and description of the item, and the review's title.
    """

    example_id: str
    text: str
    target_ids: list[int]
    spans: list[tuple[int, int]]
    history: tuple[Review, ...]
    about: tuple[str, ...] = ()

"""The records that the code passes around: an item, a review, an example.

They stand apart from the tables' columns, because a plan writes prompts and needs no Arrow for it.
"""

from __future__ import annotations

from dataclasses import dataclass

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Item:
    """What a product says of itself; empty where the data say nothing."""

    title: str
    description: str


@dataclass(frozen=True, slots=True)
class Review:
    """A review together with the item it is about.

    Attributes:
        rating: None where the data have none.
        title: Empty where the data have none.
    """

    item: Item
    rating: float | None
    title: str
    text: str
    timestamp_ms: int = 0


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to predict: the user's `target` review, given the reviews written before it.

    Attributes:
        history: The user's past reviews, oldest first; the whole of it, before any limit of the prompt.
        summary: What the user's reviews are like, in words, to be shown before the history; empty for none.
    """

    example_id: str
    user_id: str
    category: str
    split: str
    target: Review
    history: tuple[Review, ...]
    summary: str = ""

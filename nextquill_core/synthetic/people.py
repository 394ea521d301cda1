"""Who reviews what and when in the synthetic world."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nextquill_core.synthetic.catalog import CatalogItem, unique_codes
from nextquill_core.synthetic.world import ReviewText, World, compose_review, compose_title

DAY_MS = 86_400_000
FIRST_REVIEW_MS = 1_451_606_400_000  # 2016-01-01 UTC
REGULAR_REVIEWS = (20, 26)
COLD_REVIEWS = (2, 9)


@dataclass(frozen=True, slots=True)
class Person:
    """A reviewer.

    Attributes:
        kind: `regular` users write enough reviews for the default protocol, `cold` ones do not.
        leniency: What they add to an item's quality when they rate it, in stars.
    """

    user_id: str
    kind: Literal["regular", "cold"]
    style: int
    leniency: float


@dataclass(frozen=True, slots=True)
class WrittenReview:
    """A review as its writer sent it in."""

    person: Person
    item: CatalogItem
    rating: int
    title: str
    body: ReviewText
    timestamp_ms: int

    def row(self, rng: np.random.Generator) -> dict[str, Any]:
        """The review as a line of the raw file."""
        return {
            "rating": float(self.rating),
            "title": self.title,
            "text": self.body.text,
            "images": [],
            "asin": self.item.asin,
            "parent_asin": self.item.asin,
            "user_id": self.person.user_id,
            "timestamp": self.timestamp_ms,
            "helpful_vote": int(rng.poisson(0.5)),
            "verified_purchase": bool(rng.random() < 0.8),
        }


def make_people(world: World, regular: int, cold: int, rng: np.random.Generator) -> list[Person]:
    """Draw the reviewers, regular ones first.

    Each group's styles follow π as closely as whole numbers can, so that a small sample is a fair picture of the
    population over which the exact effects are taken.
    """
    styles = [*_stratified_styles(world, regular, rng), *_stratified_styles(world, cold, rng)]
    codes = unique_codes(regular + cold, "AE", 26, rng)
    return [
        Person(code, "regular" if i < regular else "cold", style, float(rng.normal(0, 0.5)))
        for i, (code, style) in enumerate(zip(codes, styles, strict=True))
    ]


def write_reviews(
    world: World, person: Person, catalog: list[CatalogItem], popularity: np.ndarray, rng: np.random.Generator
) -> Iterator[WrittenReview]:
    """A person's reviews of different items, oldest first."""
    low, high = REGULAR_REVIEWS if person.kind == "regular" else COLD_REVIEWS
    count = int(rng.integers(low, high + 1))
    chosen = rng.choice(len(catalog), size=count, replace=False, p=popularity)
    time = FIRST_REVIEW_MS + int(rng.integers(4 * 365)) * DAY_MS
    for index in chosen:
        time += int(rng.exponential(40) * DAY_MS) + 60_000
        yield write_review(world, person, catalog[int(index)], time, rng)


def write_review(
    world: World, person: Person, item: CatalogItem, timestamp_ms: int, rng: np.random.Generator
) -> WrittenReview:
    """One review. The rating comes from the item and the leniency, never from tastes: the query stays free of them."""
    rating = int(np.clip(round(item.quality + person.leniency + float(rng.normal(0, 1.0))), 1, 5))
    body = compose_review(world, person.style, item.words, rating, rng)
    return WrittenReview(person, item, rating, compose_title(item.words, rating, rng), body, timestamp_ms)


def _stratified_styles(world: World, count: int, rng: np.random.Generator) -> list[int]:
    """One style a person, in shuffled order, at the population's shares."""
    edges = np.cumsum(world.shares)
    places = (np.arange(count) + 0.5) / max(count, 1)
    styles = np.minimum(np.searchsorted(edges, places), len(world.shares) - 1)
    return [int(style) for style in rng.permutation(styles)]

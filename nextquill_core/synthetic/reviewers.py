"""The reviewers of the synthetic world, and what they review and when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nextquill_core.synthetic.catalog import CatalogItem, unique_codes
from nextquill_core.synthetic.world import ReviewText, World, compose_review, compose_title, tastes

DAY_MS = 86_400_000
FIRST_REVIEW_MS = 1_451_606_400_000  # 2016-01-01 UTC
REGULAR_REVIEWS = (20, 26)
COLD_REVIEWS = (2, 9)


@dataclass(frozen=True, slots=True)
class Reviewer:
    """A reviewer.

    Attributes:
        kind: `regular` users write enough reviews for the default protocol, `cold` ones do not.
        taste: Index of the taste that the reviewer holds in all reviews.
        leniency: Added to an item's quality when the reviewer rates it, in stars.
    """

    user_id: str
    kind: Literal["regular", "cold"]
    taste: int
    leniency: float


@dataclass(frozen=True, slots=True)
class WrittenReview:
    """A review with its item and its reviewer."""

    reviewer: Reviewer
    item: CatalogItem
    rating: int
    title: str
    body: ReviewText
    timestamp_ms: int

    def row(self, rng: np.random.Generator) -> dict[str, Any]:
        """Return the review as a row of the raw file."""
        return {
            "rating": float(self.rating),
            "title": self.title,
            "text": self.body.text,
            "images": [],
            "asin": self.item.asin,
            "parent_asin": self.item.asin,
            "user_id": self.reviewer.user_id,
            "timestamp": self.timestamp_ms,
            "helpful_vote": int(rng.poisson(0.5)),
            "verified_purchase": bool(rng.random() < 0.8),
        }


def make_reviewers(world: World, regular: int, cold: int, rng: np.random.Generator) -> list[Reviewer]:
    """Draw the reviewers, regular ones first.

    Each group's tastes follow π as closely as whole numbers can, so that a small sample represents the population over
    which the exact effects are computed.

    Args:
        world: The generative model.
        regular: Number of regular reviewers.
        cold: Number of cold reviewers.
        rng: Source of randomness.
    """
    held = [*_stratified_tastes(world, regular, rng), *_stratified_tastes(world, cold, rng)]
    codes = unique_codes(regular + cold, "AE", 26, rng)
    return [
        Reviewer(code, "regular" if i < regular else "cold", taste, float(rng.normal(0, 0.5)))
        for i, (code, taste) in enumerate(zip(codes, held, strict=True))
    ]


def write_reviews(
    world: World, reviewer: Reviewer, catalog: list[CatalogItem], popularity: np.ndarray, rng: np.random.Generator
) -> Iterator[WrittenReview]:
    """Yield a reviewer's reviews of different items, oldest first.

    Args:
        world: The generative model.
        reviewer: The reviewer.
        catalog: The items.
        popularity: Probability of each item, shape (len(catalog),).
        rng: Source of randomness.
    """
    low, high = REGULAR_REVIEWS if reviewer.kind == "regular" else COLD_REVIEWS
    count = int(rng.integers(low, high + 1))
    chosen = rng.choice(len(catalog), size=count, replace=False, p=popularity)
    time = FIRST_REVIEW_MS + int(rng.integers(4 * 365)) * DAY_MS
    for index in chosen:
        time += int(rng.exponential(40) * DAY_MS) + 60_000
        yield write_review(world, reviewer, catalog[int(index)], time, rng)


def write_review(
    world: World, reviewer: Reviewer, item: CatalogItem, timestamp_ms: int, rng: np.random.Generator
) -> WrittenReview:
    """Write one review.

    The rating depends on the item and the leniency, never on tastes, so that the query does not show them.

    Args:
        world: The generative model.
        reviewer: The reviewer.
        item: The item.
        timestamp_ms: When, in UTC milliseconds.
        rng: Source of randomness.
    """
    rating = int(np.clip(round(item.quality + reviewer.leniency + float(rng.normal(0, 1.0))), 1, 5))
    body = compose_review(world, reviewer.taste, item.words, rating, rng)
    return WrittenReview(reviewer, item, rating, compose_title(item.words, rating, rng), body, timestamp_ms)


def _stratified_tastes(world: World, count: int, rng: np.random.Generator) -> list[int]:
    """Return one taste a reviewer, in shuffled order, at the population's shares."""
    shares = [taste.share for taste in tastes(world)]
    places = (np.arange(count) + 0.5) / max(count, 1)
    held = np.minimum(np.searchsorted(np.cumsum(shares), places), len(shares) - 1)
    return [int(taste) for taste in rng.permutation(held)]

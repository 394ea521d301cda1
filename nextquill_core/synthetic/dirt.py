"""Dirty rows, as real dumps hold them: a careful reader must drop and count them.

Dirty rows are added to the usable ones, so that no regular user loses a review.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nextquill_core.synthetic.catalog import CatalogItem, item_row
from nextquill_core.synthetic.reviewers import DAY_MS, Reviewer, WrittenReview, write_review
from nextquill_core.synthetic.world import World, pick

Row = dict[str, Any]

# Dirty rows of each kind per usable review. Kept under the default `max_bad_share` even if a reader should count
# ratings of 0 among the unreadable rows.
SHORT_TEXT = 0.08
NO_RATING = 0.004
NO_TITLE = 0.005
UNKNOWN_ITEM = 0.006
UNUSABLE_ITEM = 0.03
EXACT_COPY = 0.02
MALFORMED = 0.003
# These stay usable: a second review of the same item replaces the first, HTML follows the last drawn word.
SECOND_REVIEW = 0.01
HTML = 0.012

SHORT_TEXTS = (
    "Great book, would buy again.",
    "Not what I expected.",
    "Came fast and well packed.",
    "A gift for my sister. She likes it.",
    "ok",
)
HTML_TAIL = " <br /><br />It goes back on my shelf now."
GATEWAY_ERROR = b"<html><body>502 Bad Gateway</body></html>"


def unusable_items(items: list[CatalogItem], rng: np.random.Generator) -> Iterator[tuple[str, Row]]:
    """Make every item unusable, for one reason after the other; yields (reason, raw row)."""
    faults: tuple[tuple[str, Row], ...] = (
        ("item_no_description", {"description": []}),
        ("item_empty_heading", {"description": ["Product Description"]}),
        ("item_short_description", {"description": ["A fine book."]}),
        ("item_no_title", {"title": ""}),
        ("item_no_rating_number", {"rating_number": None}),
    )
    for number, item in enumerate(items):
        reason, fault = faults[number % len(faults)]
        yield reason, item_row(item, 1, rng) | fault


def dirty_reviews(
    world: World,
    written: list[WrittenReview],
    reviewers: list[Reviewer],
    unusable: list[CatalogItem],
    rng: np.random.Generator,
) -> Iterator[tuple[str, Row]]:
    """Yield reviews that every reader drops because of a value, as (reason, raw row).

    Args:
        world: The generative model.
        written: The usable reviews.
        reviewers: Who may write them.
        unusable: Items that the protocol drops.
        rng: Source of randomness.
    """

    def stray(item: CatalogItem | None = None) -> Row:
        """Return a full review at a time when there is no other: by any reviewer, of any item or of the one given."""
        reviewer = pick(reviewers, rng)
        time = pick(written, rng).timestamp_ms + int(rng.integers(1, DAY_MS))
        return write_review(world, reviewer, item or pick(written, rng).item, time, rng).row(rng)

    for _ in range(_count(SHORT_TEXT, written)):
        yield "short_text", stray() | {"text": pick(SHORT_TEXTS, rng)}
    for _ in range(_count(NO_RATING, written)):
        yield "no_rating", stray() | {"rating": 0.0}
    for _ in range(_count(NO_TITLE, written)):
        yield "no_title", stray() | {"title": ""}
    for number in range(_count(UNKNOWN_ITEM, written)):
        yield "unknown_item", stray() | {"asin": f"B9UNKNOWN{number}", "parent_asin": f"B9UNKNOWN{number}"}
    for _ in range(_count(UNUSABLE_ITEM, written)):
        yield "unusable_item", stray(pick(unusable, rng))


def add_html(rows: list[Row], rng: np.random.Generator) -> int:
    """Append HTML line breaks to a few texts, after the last drawn word, and return the number of these texts."""
    touched = rng.choice(len(rows), size=_count(HTML, rows), replace=False)
    for index in touched:
        rows[int(index)]["text"] += HTML_TAIL
    return len(touched)


def exact_copies(rows: list[Row], rng: np.random.Generator) -> Iterator[tuple[str, Row]]:
    """Yield copies of some rows."""
    for index in rng.choice(len(rows), size=_count(EXACT_COPY, rows), replace=False):
        yield "exact_copy", rows[int(index)]


def second_reviews(world: World, written: list[WrittenReview], rng: np.random.Generator) -> Iterator[WrittenReview]:
    """Yield later reviews of items that their reviewers had reviewed before.

    Args:
        world: The generative model.
        written: The first reviews.
        rng: Source of randomness.
    """
    for index in rng.choice(len(written), size=_count(SECOND_REVIEW, written), replace=False):
        first = written[int(index)]
        time = first.timestamp_ms + int(rng.integers(2, 60)) * DAY_MS + 1
        yield write_review(world, first.reviewer, first.item, time, rng)


def malformed_lines(lines: list[bytes], rng: np.random.Generator) -> list[bytes]:
    """Return lines that are not JSON, alternately cut off and no record at all."""
    cut = [pick(lines, rng)[:-40] for _ in range(int(MALFORMED * len(lines)))]
    return [line if number % 2 == 0 else GATEWAY_ERROR for number, line in enumerate(cut)]


def _count(share: float, rows: Sequence[object]) -> int:
    return min(max(1, round(share * len(rows))), len(rows))

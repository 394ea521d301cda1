"""What real dumps hold besides usable reviews: rows that a careful reader must drop, and count.

Dirt comes on top of the usable rows, so that it never costs a regular user a review.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nextquill_core.synthetic.catalog import CatalogItem, item_row
from nextquill_core.synthetic.people import DAY_MS, Person, WrittenReview, write_review
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
# Usable all the same: a second review of the same item replaces the first, HTML stands behind the last drawn word.
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
    """Turn every item into one that no protocol can use, the reasons in turn; yields (reason, raw row)."""
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
    people: list[Person],
    unusable: list[CatalogItem],
    rng: np.random.Generator,
) -> Iterator[tuple[str, Row]]:
    """Rows that every reader drops for what they say; yields (reason, raw row)."""

    def stray(item: CatalogItem | None = None) -> Row:
        """A full review at a time of its own: by anyone, of any item or of the one given."""
        person = pick(people, rng)
        time = pick(written, rng).timestamp_ms + int(rng.integers(1, DAY_MS))
        return write_review(world, person, item or pick(written, rng).item, time, rng).row(rng)

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
    """Put HTML line breaks into a few texts, behind the last drawn word; returns into how many."""
    touched = rng.choice(len(rows), size=_count(HTML, rows), replace=False)
    for index in touched:
        rows[int(index)]["text"] += HTML_TAIL
    return len(touched)


def exact_copies(rows: list[Row], rng: np.random.Generator) -> Iterator[tuple[str, Row]]:
    """Rows that are there already."""
    for index in rng.choice(len(rows), size=_count(EXACT_COPY, rows), replace=False):
        yield "exact_copy", rows[int(index)]


def second_reviews(world: World, written: list[WrittenReview], rng: np.random.Generator) -> Iterator[WrittenReview]:
    """Later reviews of items that their writers had reviewed before."""
    for index in rng.choice(len(written), size=_count(SECOND_REVIEW, written), replace=False):
        first = written[int(index)]
        time = first.timestamp_ms + int(rng.integers(2, 60)) * DAY_MS + 1
        yield write_review(world, first.person, first.item, time, rng)


def malformed_lines(lines: list[bytes], rng: np.random.Generator) -> list[bytes]:
    """Lines that are not JSON, by turns cut off in the middle and no record at all."""
    cut = [pick(lines, rng)[:-40] for _ in range(int(MALFORMED * len(lines)))]
    return [line if number % 2 == 0 else GATEWAY_ERROR for number, line in enumerate(cut)]


def _count(share: float, rows: Sequence[object]) -> int:
    return min(max(1, round(share * len(rows))), len(rows))

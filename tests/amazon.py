"""Reviews and items in the layouts of the Amazon 2023 and 2014 releases, with their peculiarities, written by us.

The releases may not be redistributed, so tests that need such data draw about 300 reviews of 20 items with a seed.
Peculiarities, each in several rows: HTML line breaks and entities, non-breaking spaces, `[[VIDEO ...]]` marks, empty
texts, repeats of a text and of an item by a user, several reviews of a user on one day, items whose description is
empty, short or long, titles that are missing, a `store` that is null or empty, reviews of unknown items.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import REAL

DAY_MS = 86_400_000
FIRST_DAY = 13_879  # 2008-01-01
USERS, ITEMS, DAYS = 24, 20, 300
OPENINGS = ("I bought this for the title song", "My brother lent me this record", "After two weeks of listening",
            "The first side is slow, the second is not")  # fmt: skip
OPINIONS = (
    "the guitars are far too loud for such a quiet voice",
    "every song has one line that stays with me for days",
    "the drummer plays as if another band had rehearsed",
    "it is the kind of album that I put on while I cook, and then forget the pot",
    "three of the ten songs are worth the price, the others are not even bad",
    "I have played it so often that the neighbours know the words",
)
BETWEEN = (". ", "; ", ".<br /><br />", ".<br />", "&#34; &#34;. ", ".\u00a0", " &amp; ")


class Category(NamedTuple):
    """Raw files of reviews and items."""

    reviews: Path
    items: Path


def rows(seed: int = 0) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return reviews and items in the 2023 layout; the same seed gives the same rows."""
    draw = random.Random(seed)
    items = [_item(number, draw) for number in range(ITEMS)]
    reviews: list[dict[str, Any]] = []
    for user in range(USERS):
        own: list[dict[str, Any]] = []
        for _ in range(draw.choice((5, 9, 12, 16, 20))):
            item = f"B00{draw.randrange(ITEMS + 1):07d}"  # one number more: an item without metadata
            own.append(_review(f"AE{user:026d}", item, draw, own[-1]["text"] if own and draw.random() < 0.06 else None))
        reviews += own
    draw.shuffle(reviews)
    return reviews, items


def write_2023(folder: Path, seed: int = 0) -> Category:
    """Write JSON lines in gzip, as the release of 2023."""
    reviews, items = rows(seed)
    return Category(
        _write(folder / "Digital_Music.jsonl.gz", map(json.dumps, reviews)),
        _write(folder / "meta_Digital_Music.jsonl.gz", map(json.dumps, items)),
    )


def write_2014(folder: Path, seed: int = 0) -> Category:
    """Write the same reviews and items as the release of 2014: other names, and items as Python literals."""
    reviews, items = rows(seed)
    older_reviews = (
        {
            "reviewerID": row["user_id"], "asin": row["parent_asin"], "helpful": [0, row["helpful_vote"]],
            "reviewText": row["text"], "overall": row["rating"], "summary": row["title"],
            "unixReviewTime": row["timestamp"] // 1000,
        }
        for row in reviews
    )  # fmt: skip
    older_items = (
        {
            "asin": row["parent_asin"], "title": row["title"], "price": row["price"],
            "description": "\n".join(row["description"]), "categories": [row["categories"]],
        }
        for row in items
    )  # fmt: skip
    return Category(
        _write(folder / "reviews_Digital_Music_5.json.gz", map(json.dumps, older_reviews)),
        _write(folder / "meta_Digital_Music.json.gz", map(repr, older_items)),
    )


def real_2023() -> Category:
    """Return a real slice of the 2023 release; skip the test where there is none."""
    return _real("amazon-2023/Digital_Music.jsonl.gz", "amazon-2023/meta_Digital_Music.jsonl.gz")


def real_2014() -> Category:
    """Return the same slice in the 2014 layout; skip the test where there is none."""
    return _real("amazon-2014/reviews_Digital_Music_5.json.gz", "amazon-2014/meta_Digital_Music.json.gz")


def _real(reviews: str, items: str) -> Category:
    found = Category(REAL / reviews, REAL / items)
    if not found.reviews.exists():
        pytest.skip(f"the real slice {found.reviews} is not redistributed; the rows of ours stand for it")
    return found


def _item(number: int, draw: random.Random) -> dict[str, Any]:
    paragraphs = [f"Record number {number} of a band of {draw.randrange(2, 9)}. " + ". ".join(draw.sample(OPINIONS, 3))]
    return {
        "main_category": "Digital Music",
        "title": None if number % 9 == 8 else f"Songs &amp; Airs, Volume {number}",
        "average_rating": round(draw.uniform(3, 5), 1),
        "rating_number": draw.randrange(5, 90),
        "features": [],
        "description": [] if number % 6 == 5 else ["The debut of the band."] if number % 2 else paragraphs,
        "price": draw.choice((None, 9.49, 23.64)),
        "images": [],
        "videos": [],
        "store": draw.choice((None, "", "A small label")),
        "categories": ["CDs & Vinyl", draw.choice(("Pop", "Jazz")), "Digital Music"],
        "details": {},
        "parent_asin": f"B00{number:07d}",
        "bought_together": None,
    }


def _review(user: str, item: str, draw: random.Random, repeated: str | None) -> dict[str, Any]:
    text = draw.choice(OPENINGS) + ", " + draw.choice(BETWEEN).join(draw.sample(OPINIONS, draw.randrange(3, 6))) + "."
    if draw.random() < 0.04:
        text = draw.choice(("", "   ", "Good.", "[[VIDEOID:5ab3]]" + text))
    return {
        "rating": float(draw.randrange(1, 6)),
        "title": draw.choice(("Five stars", "Not &quot;bad&quot;", "Again and again", "?")),
        "text": text if repeated is None else repeated,
        "images": [],
        "asin": item,
        "parent_asin": item,
        "user_id": user,
        "timestamp": (FIRST_DAY + draw.randrange(DAYS)) * DAY_MS,
        "helpful_vote": draw.randrange(4),
        "verified_purchase": False,
    }


def _write(path: Path, lines: Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))
    return path

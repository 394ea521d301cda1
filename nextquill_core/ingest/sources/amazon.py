"""The three Amazon review collections of the McAuley lab, each in its published layout."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from nextquill_core.ingest.batches import Column, Part
from nextquill_core.ingest.sources.base import JsonLines
from nextquill_core.ingest.sources.fetching import fetched_from

# The published procedure drops every false value of these columns, so 0 counts as missing.
_ZERO_IS_MISSING = frozenset({"reviews.timestamp_ms", "items.rating_number"})


class Amazon2023(JsonLines):
    """Amazon Reviews 2023: one JSON object a line."""

    name = "amazon-2023"
    revision = 2
    summary = "Amazon Reviews 2023 (JSON lines, plain or .gz): local files, or a category name fetched from the hub"
    zero_is_missing = _ZERO_IS_MISSING
    # `details`, `price`, `images` and `videos` change type from row to row, so only these keys are ever read.
    columns = {
        "reviews": {
            "user_id": Column("string", ("user_id",), identifies=True),
            "item_id": Column("string", ("parent_asin",), identifies=True),
            "rating": Column("number", ("rating",)),
            "title": Column("string", ("title",)),
            "text": Column("string", ("text",)),
            "timestamp_ms": Column("integer", ("timestamp", "sort_timestamp")),
        },
        "items": {
            "item_id": Column("string", ("parent_asin",), identifies=True),
            "title": Column("string", ("title",), required=False),
            "description": Column("strings", ("description",), required=False),
            "categories": Column("strings", ("categories",), required=False),
            "rating_number": Column("number", ("rating_number",), required=False),
        },
    }
    repository: ClassVar[str] = "McAuley-Lab/Amazon-Reviews-2023"

    def fetched(self, category: str, part: Part, fetch: bool) -> tuple[Path, ...]:
        """Return the category's file of the hub data set, in the hub client's cache; a broken download is resumed.

        Args:
            category: The category, as the data set names it.
            part: Reviews or items.
            fetch: Whether to download; otherwise only an earlier copy counts.

        Raises:
            DataError: There is no such category, no copy, or the download failed.
        """
        folder, prefix = ("review_categories", "") if part == "reviews" else ("meta_categories", "meta_")
        file = f"raw/{folder}/{prefix}{category}.jsonl"
        return fetched_from(self.repository, file, "category", category, part, fetch=fetch)


# The two older collections share their reviews' keys. Reviewers often left no summary, and some dumps no text.
_OLD_REVIEWS = {
    "user_id": Column("string", ("reviewerID",), identifies=True),
    "item_id": Column("string", ("asin",), identifies=True),
    "rating": Column("number", ("overall",)),
    "title": Column("string", ("summary",), required=False),
    "text": Column("string", ("reviewText",), required=False),
    "timestamp_ms": Column("seconds", ("unixReviewTime",)),
}
_OLD_ITEMS = {
    "item_id": Column("string", ("asin",), identifies=True),
    "title": Column("string", ("title",), required=False),
}


class _OlderAmazon(JsonLines):
    absent = frozenset({"items.rating_number"})
    revision = 2
    zero_is_missing = _ZERO_IS_MISSING
    literals = True


class Amazon2018(_OlderAmazon):
    """Amazon Review Data (2018): JSON lines, times in seconds, descriptions and categories as lists of strings."""

    name = "amazon-2018"
    summary = "Amazon Review Data 2018 (JSON lines, plain or .gz): local files"
    columns = {
        "reviews": _OLD_REVIEWS,
        "items": {
            **_OLD_ITEMS,
            "description": Column("strings", ("description",), required=False),
            "categories": Column("strings", ("category",), required=False),
        },
    }


class Amazon2014(_OlderAmazon):
    """Amazon product data (2014): times in seconds; metadata as Python literals, a description is a single text."""

    name = "amazon-2014"
    summary = "Amazon product data 2014 (JSON lines or Python literals, plain or .gz): local files"
    columns = {
        "reviews": _OLD_REVIEWS,
        "items": {
            **_OLD_ITEMS,
            "description": Column("text", ("description",), required=False),
            "categories": Column("lists", ("categories",), required=False),
        },
    }

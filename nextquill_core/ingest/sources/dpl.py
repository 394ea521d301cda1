"""The processed data sets of DPL, on which many papers measure: published examples, with their items in other files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nextquill_core.ingest.batches import Batch, Part
from nextquill_core.ingest.sources.profiles import (
    BadRowError,
    ProfileRow,
    ProfileSource,
    entries,
    identifier,
    milliseconds,
    number,
    text,
)

ITEMS = {"item_id": "asin", "title": "title", "description": "description"}
"""The column of the files of items by canonical column."""


class Dpl(ProfileSource):
    """The data sets that SnowCharmQ/DPL publishes: a configuration a category, with the splits train, val and test.

    A row has `user_id`, `profile`, a list of past reviews, oldest first, and `data`, the review to write. A review has
    `asin`, `rating`, `title`, `text` and `timestamp` in milliseconds. The files of items have `asin`, `title` and
    `description`. Texts are cleaned and users are chosen already, so the protocol `published` takes them as they are.
    """

    name = "dpl"
    summary = "The processed data sets of DPL (Parquet, Arrow or JSON): local files, or a category of the hub"
    repositories = {"reviews": "SnowCharmQ/DPL-main", "items": "SnowCharmQ/DPL-meta"}
    absent = frozenset({"items.categories", "items.rating_number"})

    def read(self, part: Part, path: Path, resume: Any = None) -> Iterator[Batch]:
        """Read a file of examples, or a table of items.

        Args:
            part: Reviews or items.
            path: The file.
            resume: As in `Source.read`; examples are always read from the beginning.
        """
        if part == "reviews":
            return super().read(part, path, resume)
        from nextquill_core.ingest.formats.json_files import read_json
        from nextquill_core.ingest.formats.nested_rows import is_table
        from nextquill_core.ingest.formats.parquet_files import read_parquet
        from nextquill_core.ingest.formats.values import ValueRules

        rules = ValueRules("ms", self.ratings, {}, frozenset())
        if is_table(path):
            return read_parquet(path, ITEMS, rules, part)
        return read_json(path, ITEMS, rules, part, self.batch_bytes, resume)

    def take_apart(self, row: dict[str, Any]) -> ProfileRow:
        """Return the user, the past reviews, and the review to write."""
        data = row.get("data")
        if data is None:
            raise BadRowError("missing-data")
        return ProfileRow(identifier(row, "user_id"), entries(row, "profile"), data)

    def review(self, entry: Any, user: str, place: int, *, own: bool) -> dict[str, Any]:
        """Return the values of a review.

        Args:
            entry: The review.
            user: The user.
            place: Not used: reviews have a time.
            own: Not used: the review to write has the same keys.
        """
        if not isinstance(entry, dict):
            raise BadRowError("not-an-object")
        return {
            "user_id": user,
            "item_id": identifier(entry, "asin"),
            "rating": number(entry, "rating"),
            "title": text(entry, "title"),
            "text": text(entry, "text"),
            "timestamp_ms": milliseconds(entry, "timestamp"),
        }

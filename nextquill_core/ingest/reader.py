"""Reading the ingest artifact back. Needs pyarrow and nothing else, so that it works where the GPUs are.

Sequences and examples come in the order in which they were written: categories as in the config, users by their ids,
targets oldest first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nextquill_core.records import SPLITS
from nextquill_core.schemas import Example, Item, Review
from storage.tables import read_table


def read_examples(folder: Path, splits: Sequence[str] | None = None) -> Iterator[Example]:
    """The examples of an ingest artifact, one shard in memory at a time.

    Reviews and items are shared: a text that stands in many histories is held once.

    Args:
        folder: The artifact's folder.
        splits: Which of train, val and test; None for all.

    Raises:
        ValueError: There is no such split.
    """
    unknown = set(splits or ()) - set(SPLITS)
    if unknown:
        raise ValueError(f"no such split: {', '.join(sorted(unknown))}; there are {', '.join(SPLITS)}")
    wanted = SPLITS if splits is None else tuple(splits)
    for reviews_of, examples in _shards(folder):
        for row in examples:
            if row["split"] not in wanted:
                continue
            reviews = reviews_of[row["category"], row["user_id"]]
            yield Example(
                example_id=row["example_id"],
                user_id=row["user_id"],
                category=row["category"],
                split=row["split"],
                target=reviews[row["target"]],
                history=tuple(reviews[i] for i in row["history"]),
            )


def base_profiles(folder: Path, before_ms: int | None = None) -> list[tuple[Review, ...]]:
    """Each user's base profile, oldest review first: what was written before the first target. It may be empty.

    Args:
        folder: The artifact's folder.
        before_ms: Leave out what was written at this time (UTC ms) or later.
    """
    profiles: list[tuple[Review, ...]] = []
    for reviews_of, examples in _shards(folder):
        first: dict[tuple[str, str], int] = {}
        for row in examples:
            key = row["category"], row["user_id"]
            first[key] = min(row["target"], first.get(key, row["target"]))
        for key, reviews in reviews_of.items():
            profile = reviews[: first[key]]
            profiles.append(tuple(r for r in profile if before_ms is None or r.timestamp_ms < before_ms))
    return profiles


def _shards(folder: Path) -> Iterator[tuple[dict[tuple[str, str], list[Review]], list[dict[str, Any]]]]:
    """Shard by shard, each user's reviews and the rows of the examples; both tables are cut at the same users."""
    items = _items(folder)
    for path in sorted((folder / "sequences").glob("*.parquet")):
        reviews_of = {}
        for user in read_table(path).to_pylist():
            category = user["category"]
            reviews_of[category, user["user_id"]] = [
                Review(
                    items[category, review["item_id"]],
                    review["rating"],
                    review["title"] or "",
                    review["text"],
                    review["timestamp_ms"],
                )
                for review in user["reviews"]
            ]
        yield reviews_of, read_table(folder / "examples" / path.name).to_pylist()


def _items(folder: Path) -> dict[tuple[str, str], Item]:
    items = {}
    for path in sorted((folder / "items").glob("*.parquet")):
        for row in read_table(path).to_pylist():
            items[row["category"], row["item_id"]] = Item(row["title"] or "", row["description"] or "")
    return items

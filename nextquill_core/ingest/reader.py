"""Read the ingest artifact back. Needs only pyarrow, so that it works where the GPUs are.

Sequences and examples come in the order in which they were written: categories as in the config, users by their ids,
targets oldest first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nextquill_core.records import SPLITS, Example, Item, Review
from storage.tables import read_table

MIN_REPEATED_CHARS = 40
"""A shorter text occurs in others by chance, so it counts as repeated only where it is the whole of an earlier one."""


def read_examples(folder: Path, splits: Sequence[str] | None = None) -> Iterator[Example]:
    """Yield the examples of an ingest artifact, one shard in memory at a time.

    Reviews and items are shared: a text that is in many histories is held once.

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
    """Return each user's base profile, oldest review first: the reviews before the first target. It may be empty.

    Args:
        folder: The artifact's folder.
        before_ms: Leave out reviews of this time (UTC ms) or later.
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


def is_repeated(text: str, earlier: Iterable[str]) -> bool:
    """Return whether a target's text stands, character by character, in an earlier review of the same user.

    The protocol keeps one of several equal texts, but a review that is quoted inside a longer, earlier one stays. A
    method that copies from the history gets such a target right without knowing anything about the user.

    Args:
        text: The cleaned text of the target.
        earlier: The cleaned texts of the user's earlier reviews.
    """
    long_enough = len(text) >= MIN_REPEATED_CHARS
    return any(text == other or (long_enough and text in other) for other in earlier)


def repeated_targets(sequences: Sequence[Path], examples: Sequence[Path]) -> Counter[str]:
    """Count the repeated targets of each split.

    Args:
        sequences: Shards of user sequences.
        examples: The shards of examples of the same users, in the same order.
    """
    found: Counter[str] = Counter()
    for sequence_shard, example_shard in zip(sequences, examples, strict=True):
        users = read_table(sequence_shard, columns=["user_id", "reviews"])
        texts = {
            user: [review["text"] for review in reviews]
            for user, reviews in zip(users["user_id"].to_pylist(), users["reviews"].to_pylist(), strict=True)
        }
        for row in read_table(example_shard, columns=["user_id", "split", "target", "history"]).to_pylist():
            mine = texts[row["user_id"]]
            found[row["split"]] += is_repeated(mine[row["target"]], (mine[index] for index in row["history"]))
    return found


def _shards(folder: Path) -> Iterator[tuple[dict[tuple[str, str], list[Review]], list[dict[str, Any]]]]:
    """Yield each user's reviews and the rows of the examples, by shard; both tables are cut at the same users."""
    items = read_items(folder)
    for path in sorted((folder / "sequences").glob("*.parquet")):
        reviews_of = {}
        for user in read_table(path).to_pylist():
            category = user["category"]
            reviews_of[category, user["user_id"]] = [
                review_of(row, items[category, row["item_id"]]) for row in user["reviews"]
            ]
        yield reviews_of, read_table(folder / "examples" / path.name).to_pylist()


def review_of(row: Mapping[str, Any], item: Item) -> Review:
    """Return the review in a row of the column `reviews`, with its item."""
    return Review(item, row["rating"], row["title"] or "", row["text"], row["timestamp_ms"])


def read_items(folder: Path) -> dict[tuple[str, str], Item]:
    """Return the items of an ingest artifact by category and id."""
    items = {}
    for path in sorted((folder / "items").glob("*.parquet")):
        for row in read_table(path).to_pylist():
            items[row["category"], row["item_id"]] = Item(row["title"] or "", row["description"] or "")
    return items

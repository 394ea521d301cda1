"""Targets whose text stands in an earlier review of the same user.

The protocol keeps one of several equal texts, but a review that is quoted inside a longer, earlier one stays. A method
that copies from the history gets such a target right without knowing anything of the user.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from storage.tables import read_table

MIN_CHARS = 40
"""A shorter text is found in others by chance, so it counts only where it is the whole of an earlier one."""


def is_repeated(text: str, earlier: Iterable[str]) -> bool:
    """Return whether a cleaned text stands, character by character, in one of the earlier cleaned texts.

    Args:
        text: Of the target.
        earlier: Of the user's earlier reviews.
    """
    long_enough = len(text) >= MIN_CHARS
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

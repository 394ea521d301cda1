"""What is said where the item ids of the reviews and those of the items are none of them the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from nextquill_core.errors import DataError
from nextquill_core.ingest.tally import shortened

SHOWN = 3  # ids of either side in the message
# Ways in which two systems write the same id, each with what undoes it.
ALIKE: Mapping[str, Callable[[str], str]] = {
    "without the `.0` at the end": lambda value: re.sub(r"\.0+$", "", value),
    "without the blanks around them": str.strip,
    "without leading zeros": lambda value: value.lstrip("0"),
    "in the same case": str.casefold,
    "without hyphens": lambda value: value.replace("-", ""),
    "without quotes": lambda value: value.strip("'\""),
    "as the last part of a path or address": lambda value: re.split(r"[/:#=]", value)[-1],
}


def no_item_matches(reviews: int, ours: Sequence[str], theirs: Sequence[str], files: str, category: str) -> DataError:
    """Say that no review is of a known item, with ids of both sides.

    Args:
        reviews: How many reviews there are.
        ours: Item ids of the reviews.
        theirs: Ids of the items.
        files: The files with the items.
        category: The category's name.
    """
    remedy = "give the metadata of the same category in ingest.inputs[].items"
    if way := same_if(ours, theirs):
        remedy = f"the ids are the same {way}: write them in the same way in both files"
    return DataError(
        f"the metadata matches no review: none of the items of {reviews:,} reviews is in {files}; the reviews have "
        f"{few(ours)}, the items have {few(theirs)}",
        category,
        remedy,
    )


def same_if(ours: Sequence[str], theirs: Sequence[str]) -> str | None:
    """What makes ids of both sides the same, in words; None where nothing known does."""
    for words, change in ALIKE.items():
        if ({change(each) for each in ours} - {""}) & {change(each) for each in theirs}:
            return words
    return None


def few(ids: Sequence[str]) -> str:
    """Some of the ids, for a message."""
    return ", ".join(f"`{shortened(each)}`" for each in ids[:SHOWN]) + (", …" if len(ids) > SHOWN else "")

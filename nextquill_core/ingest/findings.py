"""What the conformance kit finds, and which values can hardly be true."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import polars as pl

from nextquill_core.ingest.sources.base import Part, RawFiles, Source
from nextquill_core.ingest.suspects import SUSPECT, suspect_reason


@dataclass(frozen=True)
class Finding:
    """Something that is not as promised.

    Attributes:
        level: error: the source breaks its contract, so ingesting fails or makes wrong artifacts; warning: it keeps it,
            but this is rarely meant.
        where: The file, or the source's name.
        what: The fault, and what to do about it, in a sentence.
    """

    level: Literal["error", "warning"]
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.what}"


def implausible(source: Source, tables: Mapping[Part, pl.DataFrame], files: RawFiles, whole: bool) -> Iterator[Finding]:
    """What can hardly be true of rows, or is rarely meant.

    Args:
        source: What read them.
        tables: The canonical rows of each part that has any.
        files: Where they are from.
        whole: Whether `tables` holds all items there are.
    """
    empty = {part: [name for name in table.columns if _says_nothing(table[name])] for part, table in tables.items()}
    for part, names in empty.items():
        for name in names:
            if f"{part}.{name}" not in source.absent:
                what = (
                    f"{name} is null or empty in all {tables[part].height:,} rows read; map it, or add {part}.{name} "
                    "to `absent`"
                )
                yield Finding("warning", str(files.of(part)[0]), what)
        for name in tables[part].columns:
            if f"{part}.{name}" in source.absent and name not in names:
                what = f"{part}.{name} is in `absent` but has values; take it out, or the protocol does not ask for it"
                yield Finding("warning", str(files.of(part)[0]), what)
    if "reviews" in tables:
        yield from _suspects(source, tables["reviews"], str(files.reviews[0]))
    if len(tables) == 2 and not tables["reviews"].join(tables["items"], on="item_id", how="semi").height:
        what = "no review read is of an item in the items; make both parts name items by the same id"
        yield Finding("error" if whole else "warning", str(files.items[0]), what)


def _suspects(source: Source, reviews: pl.DataFrame, where: str) -> Iterator[Finding]:
    reasons = reviews.select(suspect_reason(source, int(time.time() * 1000)))[SUSPECT].drop_nulls()
    remedies = {
        "timestamp-in-seconds": "give UTC milliseconds, or set `dated = False` where times only order reviews",
        "negative-timestamp": "give UTC milliseconds",
        "future-timestamp": "give UTC milliseconds",
        "rating-out-of-range": f"`ratings` says {source.ratings[0]} to {source.ratings[1]}",
    }
    for reason, n in sorted(Counter(reasons.to_list()).items()):
        level: Literal["error", "warning"] = "error" if n == reviews.height else "warning"
        yield Finding(level, where, f"{n:,} of {reviews.height:,} reviews are suspect, {reason}; {remedies[reason]}")


def _says_nothing(column: pl.Series) -> bool:
    if column.dtype == pl.String:
        return not (column.fill_null("") != "").any()
    return column.null_count() == len(column)

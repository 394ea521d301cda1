"""What the conformance kit finds, and which values can hardly be true."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import polars as pl

from nextquill_core.ingest.canonical import LINE
from nextquill_core.ingest.joining import few, same_if
from nextquill_core.ingest.sources.base import Part, RawFiles, Source
from nextquill_core.ingest.suspects import SUSPECT, suspect_reason

# What has rows stay in which a column is empty.
ACCEPTS: Mapping[str, str] = {
    "reviews.rating": "set ingest.protocol.require_rating to false",
    "reviews.title": "set ingest.protocol.require_review_title to false",
    "items.title": "set ingest.protocol.require_item_title to false",
    "items.categories": "set ingest.protocol.require_categories to false",
    "items.rating_number": "set ingest.protocol.require_rating_number to false",
    "items.description": "set ingest.protocol.min_description_chars to 0",
}


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
                    f"{name} is null or empty in all {tables[part].height:,} rows read; {_way_out(source, part, name)}"
                )
                yield Finding("warning", str(files.of(part)[0]), what)
        for name in tables[part].columns:
            if f"{part}.{name}" in source.absent and name not in names:
                what = f"{part}.{name} is in `absent` but has values; take it out, or the protocol does not ask for it"
                yield Finding("warning", str(files.of(part)[0]), what)
    if "reviews" in tables:
        yield from _suspects(source, tables["reviews"], str(files.reviews[0]))
    if len(tables) == 2 and not tables["reviews"].join(tables["items"], on="item_id", how="semi").height:
        ours, theirs = (tables[part]["item_id"].unique(maintain_order=True).to_list() for part in ("reviews", "items"))
        way = same_if(ours, theirs)
        what = (
            f"no review read is of an item in the items: the reviews have {few(ours)}, the items have {few(theirs)}; "
            + (f"they are the same {way}: " if way else "")
            + "make both parts name items by the same id"
        )
        yield Finding("error" if whole else "warning", str(files.items[0]), what)


def _suspects(source: Source, reviews: pl.DataFrame, where: str) -> Iterator[Finding]:
    judged = reviews.with_columns(suspect_reason(source, int(time.time() * 1000))).drop_nulls(SUSPECT)
    mapped = source.name == "table"
    remedies = {
        "timestamp-in-seconds": "give UTC milliseconds, or set `dated = False` where times only order reviews",
        "negative-timestamp": "give UTC milliseconds",
        "future-timestamp": "give UTC milliseconds",
        "rating-out-of-range": f"`ratings` says {source.ratings[0]} to {source.ratings[1]}",
    }
    if mapped:
        remedies |= {
            "timestamp-in-seconds": "ingest.options.timestamp says what times are, such as s or ms",
            "rating-out-of-range": f"ingest.options.ratings says {source.ratings[0]} to {source.ratings[1]}",
        }
    for reason, n in sorted(Counter(judged[SUSPECT].to_list()).items()):
        level: Literal["error", "warning"] = "error" if n == reviews.height else "warning"
        first = judged.filter(pl.col(SUSPECT) == reason).row(0, named=True)
        column = "rating" if reason == "rating-out-of-range" else "timestamp_ms"
        what = f"{n:,} of {reviews.height:,} reviews are suspect, {reason}; {remedies[reason]}"
        yield Finding(level, where, f"{what} (the first, line {first[LINE]}, has {column} {first[column]})")


def is_built_in(source: Source) -> bool:
    """Return whether a source comes with NextQuill, so that its user cannot change the class."""
    from nextquill_core.ingest.sources import BUILT_IN

    return type(source) in BUILT_IN.values()


def _way_out(source: Source, part: Part, name: str) -> str:
    """What to do about a column that is empty in every row."""
    if not is_built_in(source):
        return f"map it, or add {part}.{name} to `absent`"
    accepts = ACCEPTS.get(f"{part}.{name}", "no setting accepts such rows")
    if source.name == "table":
        return f"name another column in ingest.options, leave it out there, or {accepts}"
    return accepts


def _says_nothing(column: pl.Series) -> bool:
    if column.dtype == pl.String:
        return not (column.fill_null("") != "").any()
    if column.dtype == pl.List:
        return not (column.list.len().fill_null(0) > 0).any()
    return column.null_count() == len(column)

"""Which of a scanned category's rows the protocol looks at: the rules for single rows, on ids and lengths alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from nextquill_core.config import IngestConfig, ProtocolConfig
from nextquill_core.errors import DataError
from nextquill_core.ingest.canonical import CANONICAL
from nextquill_core.ingest.formats.fields import RAW_CHARS
from nextquill_core.ingest.joining import no_item_matches
from nextquill_core.ingest.report import DUPLICATE, ITEM_DROPPED, UNKNOWN_ITEM, Account
from nextquill_core.ingest.rules import REASON, Rule, counts, first_broken, item_rules, review_rules
from nextquill_core.ingest.sources.base import BadRow, Part, Source
from nextquill_core.ingest.suspects import SUSPECT
from nextquill_core.ingest.tally import Tally, listed, shortened, too_many_bad

SAMPLED = 1000  # item ids of either side that are compared where no review's item is known


@dataclass(frozen=True)
class Scanned:
    """A finished scan.

    Attributes:
        folder: Where its tables are.
        reviews: What was found in the files of reviews.
        items: What was found in those of items.
        empty_files: Names of files without a row, by part; others of the same part have rows.
    """

    category: str
    folder: Path
    reviews: Tally
    items: Tally
    empty_files: Mapping[str, list[str]] = field(default_factory=dict)

    @classmethod
    def open(cls, category: str, folder: Path, stats: Mapping[str, Any]) -> Scanned:
        """A scan with the stats that `scan_category` returned."""
        reviews, items = Tally.from_json(stats["reviews"]), Tally.from_json(stats["items"])
        return cls(category, folder, reviews, items, stats.get("empty_files", {}))

    def parts(self, table: str) -> list[Path]:
        """The Parquet files of a table, in the order of their rows."""
        return sorted((self.folder / table).glob("*.parquet"))

    def table(self, name: str) -> pl.LazyFrame:
        """A table, in the order of its rows."""
        return pl.scan_parquet(self.parts(name))


@dataclass(frozen=True)
class Items:
    """The items of a category by `item`, the hash of their id.

    Attributes:
        kept: `item` and `row` of the items that stay. Where several rows of an item pass the rules, the last counts.
        dropped: `item` of the others.
        account: Where the rows went; those of items that no sequence will need are still among the kept.
    """

    kept: pl.DataFrame
    dropped: pl.Series
    account: Account

    def describe(self, scanned: Scanned, chosen: pl.Series) -> pl.DataFrame:
        """The items with these hashes: item, item_id, title, description, sorted by item_id."""
        rows = self.kept.filter(pl.col("item").is_in(chosen.unique().implode())).select("row")
        columns = ("item", "item_id", pl.col("title").fill_null(""), "description")
        found = scanned.table("items").join(rows.lazy(), on="row", how="semi").select(columns)
        return found.collect().sort("item_id")


@dataclass(frozen=True)
class Selection:
    """The reviews that pass the rules for single rows.

    Attributes:
        rows: As `cohort` wants them, in file order: `row`, `user`, `item`, `text` (hash of the raw text), `time`.
        duplicates: The `row` of each review that repeats an earlier row in every column.
        account: Where the others went.
    """

    rows: pl.DataFrame
    duplicates: pl.Series
    account: Account


def check_bad_rows(scanned: Scanned, config: IngestConfig) -> None:
    """Hold a finished scan to `bad_rows` and `max_bad_share`: it may have been made under other ones.

    Raises:
        DataError: There are bad rows though none may be, or too many.
    """
    parts: tuple[tuple[Part, Tally], ...] = (("items", scanned.items), ("reviews", scanned.reviews))
    for part, tally in parts:
        suspect = tally.suspect if config.suspect_rows == "bad" else Counter[str]()
        whole = Tally(tally.read, bad=tally.bad + suspect, examples=tally.examples, remedies=tally.remedies)
        bad = whole.bad.total()
        if bad and config.bad_rows == "fail":
            reason = next(iter(whole.bad))
            raise DataError(
                f"{reason}: {shortened(tally.examples[reason])}",
                f"{part} of {scanned.category}",
                f"{tally.remedies.get(reason) or 'fix the line'}, or set ingest.bad_rows to quarantine",
            )
        if bad > config.max_bad_share * tally.read:
            raise too_many_bad(whole, part, config.max_bad_share)


def select_items(scanned: Scanned, protocol: ProtocolConfig, source: Source) -> Items:
    """Apply the rules for items.

    Raises:
        RuntimeError: Two item ids share a hash; among five million ids, the chance is about one in a million.
    """
    rules = item_rules(protocol, source)
    rows = scanned.table("items").select("row", "item", "item_id", first_broken(rules)).collect()
    if rows["item_id"].n_unique() != rows["item"].n_unique():
        raise RuntimeError("two item ids share a 64-bit hash")
    account = _account(scanned, "items", rows[REASON])
    account.examples |= _examples(scanned, "items", rules, rows[REASON])
    passed = rows.filter(pl.col(REASON).is_null())
    kept = passed.group_by("item").agg(pl.col("row").max())
    account.dropped["repeat_item"] = passed.height - kept.height
    dropped = rows.select("item").unique().join(kept, on="item", how="anti")["item"]
    return Items(kept, dropped, account)


def select_reviews(scanned: Scanned, config: IngestConfig, items: Items, source: Source) -> Selection:
    """Apply the rules for single reviews: those of their own, then their item has to be one that stays.

    Raises:
        DataError: The items of the reviews are none of the category's.
    """
    rules = review_rules(config.protocol, source)
    reason = first_broken(rules)
    if config.suspect_rows == "bad":
        reason = pl.coalesce(SUSPECT, reason.cast(pl.String)).alias(REASON)
    columns = ("row", "user", "item", "text_hash", "timestamp_ms", "twin")
    judged = scanned.table("reviews").select(*columns, reason).collect()
    account = _account(scanned, "reviews", judged[REASON])
    account.examples |= _examples(scanned, "reviews", rules, judged[REASON])
    if config.suspect_rows == "list":
        account.suspect = Counter(scanned.reviews.suspect)
    passed = judged.filter(pl.col(REASON).is_null()).drop(REASON)
    del judged
    known = passed["item"].is_in(items.kept["item"].implode())
    kept, others = passed.filter(known), passed.filter(~known).select("row", "item")
    ruled_out = others["item"].is_in(items.dropped.implode())
    dropped, unknown = others["row"].filter(ruled_out), others["row"].filter(~ruled_out)
    account.dropped[ITEM_DROPPED], account.dropped[UNKNOWN_ITEM] = len(dropped), len(unknown)
    if len(unknown) and len(unknown) == passed.height:
        raise no_item_matches(
            passed.height,
            item_ids(scanned, "reviews", passed["row"]),
            item_ids(scanned, "items"),
            ", ".join(name for name, _ in scanned.items.files),
            scanned.category,
        )
    for name, rows, why in (
        (ITEM_DROPPED, dropped, "which the rules for items leave out"),
        (UNKNOWN_ITEM, unknown, "which the items do not have; give its metadata in ingest.inputs[].items"),
    ):
        if len(rows):
            (item,) = item_ids(scanned, "reviews", rows.head(1))
            file, line = scanned.reviews.place(rows[0])
            account.examples[name] = f"{file}:{line}: item {shortened(item)!r}, {why}"
    twins = kept["twin"].sort()  # sorting finds them ten times sooner than hashing
    alike = kept.filter(pl.col("twin").is_in(twins.filter(twins == twins.shift(1)).implode()))
    spare = alike.filter(~pl.struct(pl.exclude("row")).is_first_distinct())["row"]
    account.dropped[DUPLICATE] = len(spare)
    chosen = kept.filter(~pl.col("row").is_in(spare.implode()))
    return Selection(chosen.select("row", "user", "item", text="text_hash", time="timestamp_ms"), spare, account)


def duplicates(scanned: Scanned, selection: Selection) -> pl.DataFrame:
    """The rows that repeat an earlier one, for the quarantine: file, line, reason, raw (the row's columns as JSON)."""
    columns = tuple(CANONICAL["reviews"])
    rows = scanned.table("reviews").join(selection.duplicates.to_frame().lazy(), on="row", how="semi")
    found = rows.select("row", *columns).collect().sort("row")
    places = (scanned.reviews.place(row) for row in found["row"])
    raw = (json.dumps(row, ensure_ascii=False) for row in found.select(columns).iter_rows(named=True))
    return listed(
        (file, BadRow(line, DUPLICATE, text[:RAW_CHARS])) for (file, line), text in zip(places, raw, strict=True)
    )


def item_ids(scanned: Scanned, part: Part, rows: pl.Series | None = None) -> list[str]:
    """The item ids of the first rows of a part, each once, at most `SAMPLED` of them; of `rows` if they are given."""
    ids = scanned.table(part).select("row", "item_id")
    if rows is not None:
        ids = ids.filter(pl.col("row").is_in(rows.head(SAMPLED).implode()))
    return ids.head(SAMPLED).collect()["item_id"].unique(maintain_order=True).to_list()


def _account(scanned: Scanned, part: Part, reasons: pl.Series) -> Account:
    tally = scanned.reviews if part == "reviews" else scanned.items
    dropped = Counter(tally.bad)
    dropped["forgotten_user"] = tally.forgotten
    dropped.update(counts(reasons))
    empty = list(scanned.empty_files.get(part, []))
    return Account(read=tally.read, dropped=dropped, examples=dict(tally.examples), empty_files=empty)


def _examples(scanned: Scanned, part: Part, rules: Sequence[Rule], reasons: pl.Series) -> dict[str, str]:
    """For each reason its first row: where it is, what it has, and which setting would accept it."""
    first = (
        reasons.cast(pl.String).to_frame().with_row_index("place").drop_nulls().group_by(REASON).agg(pl.min("place"))
    )
    places = dict(first.iter_rows())
    tally = scanned.reviews if part == "reviews" else scanned.items
    found = {}
    for rule in rules:
        if rule.reason in places:
            one = scanned.table(part).slice(places[rule.reason], 1)
            row, item, value = one.select("row", "item_id", value=rule.value).collect().row(0)
            file, line = tally.place(row)
            found[rule.reason] = f"{file}:{line}: item {shortened(item)!r}, {value}; {rule.remedy}"
    return found

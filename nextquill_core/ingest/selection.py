"""Select the rows of a scanned category that the protocol looks at, by rules for single rows on ids and lengths.

A rule says what the protocol drops and which setting would accept it. Which values are suspect is decided here too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from nextquill_core.config import IngestConfig, ProtocolConfig
from nextquill_core.config.data import HtmlCleaning
from nextquill_core.errors import DataError
from nextquill_core.ingest.account import (
    DUPLICATE,
    ITEM_DROPPED,
    REASON,
    UNKNOWN_ITEM,
    Account,
    RowCounts,
    count_reasons,
    shorten,
    too_many_bad_rows,
)
from nextquill_core.ingest.batches import PARTS, RAW_CHARS, BadRow, Part
from nextquill_core.ingest.canonical import CANONICAL
from nextquill_core.ingest.cohort import KEY
from nextquill_core.ingest.diagnosis import no_item_matches
from nextquill_core.ingest.markup import CLEANED, changed, cleaned_table
from nextquill_core.ingest.sources.base import Source

SAMPLED = 1000  # item ids of each side that are compared where no review's item is known
SUSPECT = "suspect"
# The same number is a date before 3 March 1973 in milliseconds and one before the year 5138 in seconds. There were no
# online reviews before 1973.
SECONDS_BELOW = 100_000_000_000
# The settings of the protocol by which a column may be empty.
REQUIRE: Mapping[str, str] = {
    "reviews.rating": "require_rating",
    "reviews.title": "require_review_title",
    "items.title": "require_item_title",
    "items.categories": "require_categories",
    "items.rating_number": "require_rating_number",
}


@dataclass(frozen=True)
class Scanned:
    """A finished scan.

    Attributes:
        category: The category's name.
        folder: Where its tables are.
        counts: The row counts of the files, by part.
        empty_files: Names of files without a row, by part; others of the same part have rows.
        html: What happens to HTML in the texts of `table` and `read`.
    """

    category: str
    folder: Path
    counts: Mapping[Part, RowCounts]
    empty_files: Mapping[str, list[str]] = field(default_factory=dict)
    html: HtmlCleaning = "keep"

    @classmethod
    def open(cls, category: str, folder: Path, stats: Mapping[str, Any]) -> Scanned:
        """Open a scan.

        Args:
            category: The category's name.
            folder: Where its tables are.
            stats: The stats that `scan_category` returned.
        """
        counts = {part: RowCounts.model_validate(stats[part]) for part in PARTS}
        return cls(category, folder, counts, stats.get("empty_files", {}))

    def parts(self, table: str) -> list[Path]:
        """Return the Parquet files of a table, in the order of their rows."""
        return sorted((self.folder / table).glob("*.parquet"))

    def table(self, part: Part, files: list[Path] | None = None) -> pl.LazyFrame:
        """Return the rows of a part in their order, their texts cleaned.

        Args:
            part: Reviews or items.
            files: Some of its Parquet files; all by default.
        """
        rows = pl.scan_parquet(self.parts(part) if files is None else files)
        return rows if self.html == "keep" else cleaned_table(rows, part, self.html)

    def read(self, part: Part, *columns: str | pl.Expr) -> pl.DataFrame:
        """Return columns of all rows of a part in their order, computed from cleaned texts."""
        rows = self.table(part).select(*columns)
        # all raw texts together do not fit into memory
        return rows.collect(engine="in-memory" if self.html == "keep" else "streaming")

    def changes(self, part: Part) -> dict[str, str]:
        """Return by text column the column that says whether cleaning changed the text; none if HTML is kept."""
        return {} if self.html == "keep" else {name: changed(name) for name in CLEANED[part]}

    def item_ids(self, part: Part, rows: pl.Series | None = None) -> list[str]:
        """Return the item ids of the first rows of a part, or of `rows`: each once, at most `SAMPLED` of them."""
        ids = self.table(part).select("row", "item_id")
        if rows is not None:
            ids = ids.filter(pl.col("row").is_in(rows.head(SAMPLED).implode()))
        return ids.head(SAMPLED).collect()["item_id"].unique(maintain_order=True).to_list()


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
        """Return the items with these hashes: item, item_id, title, description, sorted by item_id."""
        rows = self.kept.filter(pl.col("item").is_in(chosen.unique().implode()))["row"]
        columns = ("item", "item_id", pl.col("title").fill_null(""), "description")
        found = scanned.table("items").filter(pl.col("row").is_in(rows.implode())).select(columns)
        return found.collect().sort("item_id")


@dataclass(frozen=True)
class Selection:
    """The reviews that pass the rules for single rows.

    Attributes:
        rows: In file order, as `cohort` takes them: `row`, `user`, `item`, `text` (hash of the text), `time`.
        duplicates: The `row` of each review that repeats an earlier row in every column.
        account: Where the others went.
    """

    rows: pl.DataFrame
    duplicates: pl.Series
    account: Account


@dataclass(frozen=True)
class Rule:
    """A rule that a single row can break.

    Attributes:
        reason: The name under which rows that break it are counted.
        column: The canonical column that it is about, as `items.title`.
        broken: Whether a row of a scan breaks it.
        value: What the row has instead, as text.
        remedy: The setting that would accept the row, in a few words.
        applies: Whether the protocol asks for it.
    """

    reason: str
    column: str
    broken: pl.Expr
    value: pl.Expr
    remedy: str
    applies: bool = True


def check_bad_rows(scanned: Scanned, config: IngestConfig) -> None:
    """Apply `bad_rows` and `max_bad_share` to a finished scan, which may have been made under other values.

    Raises:
        DataError: There are bad rows though none are allowed, or too many.
    """
    for part in reversed(PARTS):
        counts = scanned.counts[part]
        suspect = counts.suspect if config.suspect_rows == "bad" else Counter[str]()
        whole = counts.model_copy(update={"bad": counts.bad + suspect})
        bad = whole.bad.total()
        if bad and config.bad_rows == "fail":
            reason = next(iter(whole.bad))
            raise DataError(
                f"{reason}: {shorten(counts.examples[reason])}",
                f"{part} of {scanned.category}",
                f"{counts.remedies.get(reason) or 'fix the line'}, or set ingest.bad_rows to quarantine",
            )
        if bad > config.max_bad_share * counts.read:
            raise too_many_bad_rows(whole, part, config.max_bad_share)


def select_items(scanned: Scanned, protocol: ProtocolConfig, source: Source) -> Items:
    """Apply the rules for items.

    Args:
        scanned: The category.
        protocol: The thresholds.
        source: What read the raw files.

    Raises:
        RuntimeError: Two item ids share a hash; among five million ids, the chance is about one in a million.
    """
    rules = item_rules(protocol, source)
    rows = scanned.read("items", "row", "item", "item_id", *scanned.changes("items").values(), first_broken(rules))
    if rows["item_id"].n_unique() != rows["item"].n_unique():
        raise RuntimeError("two item ids share a 64-bit hash")
    account = _account(scanned, "items", rules, rows)
    passed = rows.filter(pl.col(REASON).is_null())
    kept = passed.group_by("item").agg(pl.col("row").max())
    account.dropped["repeat_item"] += passed.height - kept.height
    dropped = rows.select("item").unique().join(kept, on="item", how="anti")["item"]
    return Items(kept, dropped, account)


def select_reviews(scanned: Scanned, config: IngestConfig, items: Items, source: Source) -> Selection:
    """Apply the rules for single reviews, then drop those whose item was dropped, and rows that repeat another one.

    Args:
        scanned: The category.
        config: The protocol, and whether suspect rows are bad.
        items: The items that stay.
        source: What read the raw files.

    Raises:
        DataError: No review is of an item in the category.
    """
    columns = ("row", "user", "item", "text_hash", "timestamp_ms", "twin")
    kept, account = passing_reviews(scanned, config, items, source, columns)
    twins = kept["twin"].sort()  # sorting finds them ten times faster than hashing
    alike = kept.filter(pl.col("twin").is_in(twins.filter(twins == twins.shift(1)).implode()))
    spare = alike.filter(~pl.struct(pl.exclude("row")).is_first_distinct())["row"]
    account.dropped[DUPLICATE] += len(spare)
    chosen = kept.filter(~pl.col("row").is_in(spare.implode()))
    return Selection(chosen.select("row", "user", "item", text="text_hash", time="timestamp_ms"), spare, account)


def passing_reviews(
    scanned: Scanned, config: IngestConfig, items: Items, source: Source, columns: Sequence[str | pl.Expr]
) -> tuple[pl.DataFrame, Account]:
    """Return the reviews that pass the rules for single rows and whose item stays, and where the others went.

    Args:
        scanned: The category.
        config: The protocol, and whether suspect rows are bad.
        items: The items that stay.
        source: What read the raw files.
        columns: What to return of each review; `row` and `item` must be among them.

    Raises:
        DataError: No review is of an item in the category.
    """
    rules = review_rules(config.protocol, source)
    reason = first_broken(rules)
    if config.suspect_rows == "bad":
        reason = pl.coalesce(SUSPECT, reason.cast(pl.String)).alias(REASON)
    judged = scanned.read("reviews", *columns, *scanned.changes("reviews").values(), reason)
    account = _account(scanned, "reviews", rules, judged)
    if config.suspect_rows == "list":
        account.suspect = Counter(scanned.counts["reviews"].suspect)
    passed = judged.filter(pl.col(REASON).is_null()).drop(REASON, *scanned.changes("reviews").values())
    del judged
    known = passed["item"].is_in(items.kept["item"].implode())
    kept, others = passed.filter(known), passed.filter(~known).select("row", "item")
    ruled_out = others["item"].is_in(items.dropped.implode())
    dropped, unknown = others["row"].filter(ruled_out), others["row"].filter(~ruled_out)
    account.dropped.update({ITEM_DROPPED: len(dropped), UNKNOWN_ITEM: len(unknown)})
    if len(unknown) and len(unknown) == passed.height:
        raise no_item_matches(
            passed.height,
            scanned.item_ids("reviews", passed["row"]),
            scanned.item_ids("items"),
            ", ".join(name for name, _ in scanned.counts["items"].files),
            scanned.category,
        )
    for name, rows, why in (
        (ITEM_DROPPED, dropped, "which the rules for items leave out"),
        (UNKNOWN_ITEM, unknown, "which the items do not have; give its metadata in ingest.inputs[].items"),
    ):
        if len(rows):
            (item,) = scanned.item_ids("reviews", rows.head(1))
            file, line = scanned.counts["reviews"].place(rows[0])
            account.examples[name] = f"{file}:{line}: item {shorten(item)!r}, {why}"
    return kept, account


def duplicates(scanned: Scanned, selection: Selection) -> pl.DataFrame:
    """Return the rows that repeat an earlier one, for the quarantine; `raw` is the row's columns as JSON, as read."""
    columns = tuple(CANONICAL["reviews"])
    raw = replace(scanned, html="keep").table("reviews")
    rows = raw.join(selection.duplicates.to_frame().lazy(), on="row", how="semi")
    found = rows.select("row", *columns).collect().sort("row")
    places = (scanned.counts["reviews"].place(row) for row in found["row"])
    texts = (json.dumps(row, ensure_ascii=False) for row in found.select(columns).iter_rows(named=True))
    return quarantine_table(
        (file, BadRow(line, DUPLICATE, text[:RAW_CHARS])) for (file, line), text in zip(places, texts, strict=True)
    )


def quarantine_table(rows: Iterable[tuple[str, BadRow]]) -> pl.DataFrame:
    """Return rows for the quarantine, each given with its file's name: file, line, reason, raw."""
    values = [(file, row.line, row.reason, row.raw) for file, row in rows]
    types = {"file": pl.String, "line": pl.Int64, "reason": pl.String, "raw": pl.String}
    return pl.DataFrame(values, schema=types, orient="row")


def item_rules(protocol: ProtocolConfig, source: Source) -> list[Rule]:
    """Return the rules for items in the order in which they apply.

    Lengths are code points of the joined description.
    """
    chars = pl.col("description").str.len_chars()
    length = pl.format("the description has {} characters", chars)
    rules = [
        Rule(
            "short_description",
            "items.description",
            chars < protocol.min_description_chars,
            length,
            f"lower {KEY}.min_description_chars (now {protocol.min_description_chars:,})",
        ),
        Rule(
            "long_description",
            "items.description",
            chars > protocol.max_description_chars,
            length,
            f"raise {KEY}.max_description_chars (now {protocol.max_description_chars:,})",
        ),
        _required("no_title", "items.title", pl.col("title").fill_null("") == "", pl.lit("title is empty"), protocol),
        _required(
            "no_categories", "items.categories", pl.col("categories") == 0, pl.lit("categories is empty"), protocol
        ),
        _required(
            "no_rating_number",
            "items.rating_number",
            _missing("rating_number", zero="items.rating_number" in source.zero_is_missing),
            _shown("rating_number"),
            protocol,
        ),
    ]
    return _applying(rules, source)


def review_rules(protocol: ProtocolConfig, source: Source) -> list[Rule]:
    """Return the rules for reviews in the order in which they apply.

    Lengths are code points of the text before its white space is cleaned.
    """
    lowest, highest = source.ratings
    rules = [
        Rule(
            "no_text",
            "reviews.text",
            pl.col("chars") == 0,
            pl.lit("text is empty"),
            "no setting accepts a review without a text",
        ),
        Rule(
            "short_text",
            "reviews.text",
            pl.col("chars") < protocol.min_text_chars,
            pl.format("the text has {} characters", pl.col("chars")),
            f"lower {KEY}.min_text_chars (now {protocol.min_text_chars:,})",
        ),
        _required(
            "no_rating",
            "reviews.rating",
            _missing("rating", zero=not lowest <= 0 <= highest),
            _shown("rating"),
            protocol,
            ", or have ingest.options.ratings include 0" * (source.name == "table"),
        ),
        _required("no_title", "reviews.title", ~pl.col("titled"), pl.lit("title is empty"), protocol),
        Rule(
            "no_timestamp",
            "reviews.timestamp_ms",
            _missing("timestamp_ms", zero="reviews.timestamp_ms" in source.zero_is_missing),
            _shown("timestamp_ms"),
            "no setting accepts a review without a time: times order a user's reviews",
        ),
    ]
    return _applying(rules, source)


def first_broken(rules: Sequence[Rule]) -> pl.Expr:
    """Return the reason of the first rule that a row breaks (enum), null for a row that stays."""
    reasons = pl.Enum([rule.reason for rule in rules])  # a byte a row, where a string takes sixteen
    broken = [pl.when(rule.broken).then(pl.lit(rule.reason, dtype=reasons)) for rule in rules]
    return pl.coalesce(pl.lit(None, dtype=reasons), *broken).alias(REASON)


def suspect_reason(source: Source, now_ms: int) -> pl.Expr:
    """Return why a review can be read but is hardly true (str), null for one that is plausible.

    The configuration decides what becomes of suspect reviews. A missing value is not suspect: the protocol drops it.

    Args:
        source: Declares the lowest and highest rating, and whether timestamps are dates.
        now_ms: When the files were read, in UTC milliseconds; reviews cannot be later.
    """
    lowest, highest = source.ratings
    time, rating = pl.col("timestamp_ms"), pl.col("rating")
    dated = pl.lit(source.dated)
    # 0 is how many systems write an unknown time. Where it counts as missing, the protocol drops it.
    from_time = 1 if "reviews.timestamp_ms" in source.zero_is_missing else 0
    return (
        pl.when(dated & (time < 0))
        .then(pl.lit("negative-timestamp"))
        .when(dated & (time >= from_time) & (time < SECONDS_BELOW))
        .then(pl.lit("timestamp-in-seconds"))
        .when(dated & (time > now_ms))
        .then(pl.lit("future-timestamp"))
        .when(~rating.is_between(lowest, highest))
        .then(pl.lit("rating-out-of-range"))
        .alias(SUSPECT)
    )


def _account(scanned: Scanned, part: Part, rules: Sequence[Rule], judged: pl.DataFrame) -> Account:
    """Return the account of a part after the rules for single rows.

    Args:
        scanned: The category.
        part: Reviews or items.
        rules: The rules.
        judged: All rows of the part, with the reason and the columns that say which texts cleaning changed.
    """
    counts, reasons = scanned.counts[part], judged[REASON]
    dropped = Counter(counts.bad)
    dropped["forgotten_user"] += counts.forgotten
    dropped.update(count_reasons(reasons))
    examples = counts.examples | _examples(scanned, part, rules, reasons)
    cleaned = Counter({name: int(judged[column].sum()) for name, column in scanned.changes(part).items()})
    empty = scanned.empty_files.get(part, [])
    return Account(counts.read, dropped=dropped, examples=examples, empty_files=empty, cleaned=cleaned)


def _examples(scanned: Scanned, part: Part, rules: Sequence[Rule], reasons: pl.Series) -> dict[str, str]:
    """Return for each reason its first row: where it is, what it has, and which setting would accept it."""
    first = (
        reasons.cast(pl.String).to_frame().with_row_index("place").drop_nulls().group_by(REASON).agg(pl.min("place"))
    )
    places = dict(first.iter_rows())
    found = {}
    for rule in rules:
        if rule.reason in places:
            one = scanned.table(part).slice(places[rule.reason], 1)
            row, item, value = one.select("row", "item_id", value=rule.value).collect().row(0)
            file, line = scanned.counts[part].place(row)
            found[rule.reason] = f"{file}:{line}: item {shorten(item)!r}, {value}; {rule.remedy}"
    return found


def _applying(rules: Sequence[Rule], source: Source) -> list[Rule]:
    return [rule for rule in rules if rule.applies and rule.column not in source.absent]


def _required(
    reason: str, column: str, broken: pl.Expr, value: pl.Expr, protocol: ProtocolConfig, other_remedy: str = ""
) -> Rule:
    """Return the rule that a value is there, which the protocol can switch off."""
    key = REQUIRE[column]
    return Rule(
        reason, column, broken, value, f"set {KEY}.{key} to false{other_remedy}", applies=getattr(protocol, key)
    )


def _missing(name: str, *, zero: bool) -> pl.Expr:
    return pl.col(name).fill_null(0) == 0 if zero else pl.col(name).is_null()


def _shown(name: str) -> pl.Expr:
    return pl.format(f"{name} is {{}}", pl.col(name).cast(pl.String).fill_null("missing"))

"""The ingest stage: raw files in, user sequences, items, examples and quarantine out, every row accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from nextquill_core.config import IngestConfig, ProtocolConfig
from nextquill_core.errors import DataError
from nextquill_core.ingest import cohort
from nextquill_core.ingest.blocks import BLOCK_BYTES
from nextquill_core.ingest.catalog import Catalog, catalog, item_rules
from nextquill_core.ingest.clean import REASON, counts, review_reason
from nextquill_core.ingest.report import Account, CategoryAccount, nobody_left, stats
from nextquill_core.ingest.scan import Kept, Rules, Scan, Scanner, scratch_for
from nextquill_core.ingest.sequences import gather, write_items, write_quarantine, write_sequences
from nextquill_core.ingest.sources import RawFiles, Source, source
from nextquill_core.progress import Progress
from storage.staging import Staging

SCRATCH_VERSION = 1  # raise it when parts that an earlier version left behind can no longer be taken up
UNKNOWN_ITEM = "unknown_item"


def make_sequences(
    config: IngestConfig,
    files: Sequence[RawFiles],
    staging: Staging,
    progress: Progress,
    *,
    block_bytes: int = BLOCK_BYTES,
) -> dict[str, Any]:
    """Turn raw files into the tables of the ingest artifact.

    Args:
        config: Source, protocol, and what happens to bad rows.
        files: The raw files of each category, in the order in which they are to appear.
        staging: Where the tables go; an interrupted run is taken up. The caller seals it.
        progress: Told of the bytes on disk that were read.
        block_bytes: How much text is read at a time; the outcome does not depend on it.

    Returns:
        The stats, as JSON values: see `report.stats`.

    Raises:
        DataError: A file cannot be used, too many rows are bad, or nobody passes the thresholds.
    """
    meter = _Meter(progress, sum(path.stat().st_size for raw in files for path in (*raw.items, *raw.reviews)))
    layout = source(config.source)
    accounts: dict[str, CategoryAccount] = {}
    for number, raw in enumerate(files):
        accounts[raw.category] = _Category(config, layout, raw, number, staging, meter, block_bytes).make()
    progress(meter.total, meter.total, "done")
    return stats(accounts)


@dataclass
class _Meter:
    progress: Progress
    total: int
    done: int = 0

    def advance(self, read: int, note: str) -> None:
        self.done += read
        self.progress(self.done, self.total, note)


@dataclass(frozen=True)
class _Category:
    config: IngestConfig
    layout: Source
    raw: RawFiles
    number: int
    staging: Staging
    meter: _Meter
    block_bytes: int

    def make(self) -> CategoryAccount:
        """Process one category on its own."""
        protocol, name = self.config.protocol, self.raw.category
        folder = scratch_for(self.staging.scratch / f"{self.number:03d}", self._scratch_key())
        scanner = Scanner(self.config, folder, self.block_bytes)
        item_scan = scanner.scan(
            "items", self.raw.items, self.layout.item_columns, item_rules(protocol), self._note("items")
        )
        items = catalog(item_scan)
        review_scan = scanner.scan(
            "reviews",
            self.raw.reviews,
            self.layout.review_columns,
            review_rules(protocol, items),
            self._note("reviews"),
        )
        reviews = _account(review_scan)
        described = _account(item_scan)
        described.dropped["repeat_item"] = items.repeats
        self._stop_if_strangers(reviews)

        self.meter.advance(0, f"{name}: choosing users")
        rows = review_scan.frame().select("row", "user", "item", "text_hash", "time").collect()
        rows = rows.rename({"text_hash": "text"})
        if rows.is_empty():
            raise nobody_left(name, reviews, described, None, None, protocol)
        first = cohort.core(rows, protocol)
        reviews.dropped.update(first.dropped)
        if first.rows.is_empty():
            raise nobody_left(name, reviews, described, first, None, protocol)
        users = _users(review_scan, first.rows)
        ranked = first.rows.rename({"user": "user_hash"}).join(users, on="user_hash", maintain_order="left")

        self.meter.advance(0, f"{name}: gathering texts")
        texts, hashes = gather(review_scan.parts, ranked.select("row", "user"), folder / "texts")
        second = cohort.split(ranked.drop("text").join(hashes, on="row"), protocol)
        reviews.dropped.update(second.dropped)
        if second.rows.is_empty():
            raise nobody_left(name, reviews, described, first, second, protocol)

        self.meter.advance(0, f"{name}: writing")
        names = items.ids.gather(second.rows["item"]).alias("item_id")
        chosen = second.rows.select("row", "user", "item", names, "time", cohort.TARGET)
        users = users.join(chosen, on="user", how="semi").sort("user").select("user", "user_id")
        examples = write_sequences(self.staging, self.number, name, users, chosen, texts)
        table = items.describe(item_scan, chosen["item"])
        write_items(self.staging, self.number, name, table)
        write_quarantine(self.staging, self.number, [*item_scan.quarantine, *review_scan.quarantine])
        reviews.kept = chosen.height
        described.kept = table.height
        described.dropped["in_no_sequence"] = items.kept - table.height
        return CategoryAccount(reviews, described, users.height, examples)

    def _note(self, what: str) -> Callable[[int], None]:
        return lambda read: self.meter.advance(read, f"{self.raw.category}: reading {what}")

    def _scratch_key(self) -> Mapping[str, Any]:
        """What the parts of a scan depend on."""
        files = [(str(path), path.stat()) for path in (*self.raw.items, *self.raw.reviews)]
        return {
            "version": SCRATCH_VERSION,
            "polars": pl.__version__,  # its hashes may differ between versions
            "block_bytes": self.block_bytes,
            "config": self.config.semantic(),
            "files": [(path, stat.st_size, stat.st_mtime_ns) for path, stat in files],
        }

    def _stop_if_strangers(self, reviews: Account) -> None:
        known = reviews.read - sum(reviews.dropped.values()) + reviews.dropped["item_dropped"]
        if not known and reviews.dropped[UNKNOWN_ITEM]:
            raise DataError(
                f"the metadata matches no review: none of the items of {reviews.dropped[UNKNOWN_ITEM]:,} reviews is in "
                f"{', '.join(str(path) for path in self.raw.items)}",
                self.raw.category,
                "give the metadata of the same category in ingest.inputs[].items",
            )


def review_rules(protocol: ProtocolConfig, items: Catalog) -> Rules:
    """The rules for single reviews: those of their own, then their item has to be one that stays.

    What is stored: `row`, `user_id`, `user` (u64, its hash), `item` (u32, index in the catalog), `text_hash` (u64, of
    the raw text), `time` (i64, UTC ms), `rating` (f32), `title` and the raw `text`.
    """
    stays = items.kept_row.is_not_null()

    def rules(rows: pl.DataFrame) -> Kept:
        judged = rows.with_columns(review_reason(protocol))
        dropped = Counter(counts(judged[REASON]))
        passed = judged.filter(pl.col(REASON).is_null())
        passed = passed.with_columns(items.find(passed["item_id"]).alias("item"))
        known = passed.filter(pl.col("item").is_not_null())
        kept = known.filter(stays.gather(known["item"]))
        dropped[UNKNOWN_ITEM] = passed.height - known.height
        dropped["item_dropped"] = known.height - kept.height
        stored = kept.select(
            "row",
            "user_id",
            pl.col("user_id").hash().alias("user"),
            "item",
            pl.col("text").hash().alias("text_hash"),
            pl.col("timestamp_ms").alias("time"),
            pl.col("rating").cast(pl.Float32),
            "title",
            "text",
        )
        return Kept(stored, dropped)

    return rules


def _account(scan: Scan) -> Account:
    return Account(read=scan.read, dropped=scan.bad + scan.dropped)


def _users(scan: Scan, rows: pl.DataFrame) -> pl.DataFrame:
    """The users of `rows`: `user_hash` (u64), `user_id`, and `user` (u32), their place among the sorted ids."""
    wanted = rows.select("user").unique()
    found = scan.frame().select("user", "user_id").join(wanted.lazy(), on="user", how="semi").unique().collect()
    if found.height != wanted.height:
        raise RuntimeError("two user ids share a 64-bit hash")
    return found.rename({"user": "user_hash"}).sort("user_id").with_row_index("user")

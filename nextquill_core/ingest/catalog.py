"""The items of one category: which there are, which the rules keep, and what they say of themselves."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from nextquill_core.config import ProtocolConfig
from nextquill_core.ingest.clean import REASON, counts, item_reason, joined
from nextquill_core.ingest.scan import Kept, Rules, Scan


@dataclass(frozen=True)
class Catalog:
    """Every item id that was read, sorted, and for each whether it stays.

    Attributes:
        ids: The item ids (str), each once, in order; an item's index is its place here.
        kept_row: For each the row (i64) that describes it, null where no row of it passes the rules. Where several
            do, the last one counts.
        repeats: Rows that pass the rules, but another one describes the item.
    """

    ids: pl.Series
    kept_row: pl.Series
    repeats: int

    def find(self, item_ids: pl.Series) -> pl.Series:
        """Each item's index (u32), null for an item that is not here."""
        if self.ids.is_empty():
            return pl.Series(item_ids.name, [None] * len(item_ids), dtype=pl.UInt32)
        places = self.ids.search_sorted(item_ids).clip(upper_bound=len(self.ids) - 1)
        found = self.ids.gather(places) == item_ids
        return pl.select(pl.when(found).then(places)).to_series().cast(pl.UInt32).alias(item_ids.name)

    @property
    def kept(self) -> int:
        """How many items stay."""
        return len(self.kept_row) - self.kept_row.null_count()

    def describe(self, scan: Scan, chosen: pl.Series) -> pl.DataFrame:
        """The items with these indices (u32): item_id, title, description, sorted by item_id."""
        rows = self.kept_row.gather(chosen.unique().sort()).alias("row").to_frame()
        found = scan.frame().select("row", "item_id", "title", "description").join(rows.lazy(), on="row", how="semi")
        return found.drop("row").collect().sort("item_id")


def item_rules(protocol: ProtocolConfig) -> Rules:
    """The rules for items; every id is stored, but titles and descriptions only of those that stay."""

    def rules(rows: pl.DataFrame) -> Kept:
        judged = rows.with_columns(joined(pl.col("description"))).with_columns(item_reason(protocol))
        stays = pl.col(REASON).is_null()
        stored = judged.select(
            "row",
            "item_id",
            stays.alias("stays"),
            *(pl.when(stays).then(pl.col(name)).alias(name) for name in ("title", "description")),
        )
        return Kept(stored, counts(judged[REASON]))

    return rules


def catalog(scan: Scan) -> Catalog:
    """Collect the items of a scan that was made with `item_rules`."""
    rows = scan.frame().select("row", "item_id", "stays").collect()
    described = pl.when("stays").then("row")
    items = rows.group_by("item_id").agg(described.max().alias("kept_row")).sort("item_id")
    kept = len(items) - items["kept_row"].null_count()
    return Catalog(items["item_id"], items["kept_row"], int(rows["stays"].sum()) - kept)

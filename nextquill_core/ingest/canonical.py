"""The canonical columns: what every source turns its raw rows into."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from nextquill_core.ingest.sources.base import Part

LINE = "line"
STRINGS = pl.List(pl.String)
# Times are UTC milliseconds. All values may be null but the ids.
CANONICAL: Mapping[Part, Mapping[str, pl.DataType]] = {
    "reviews": {
        "user_id": pl.String(),
        "item_id": pl.String(),
        "rating": pl.Float64(),
        "title": pl.String(),
        "text": pl.String(),
        "timestamp_ms": pl.Int64(),
    },
    "items": {
        "item_id": pl.String(),
        "title": pl.String(),
        "description": STRINGS,
        "categories": STRINGS,
        "rating_number": pl.Float64(),
    },
}
IDS: Mapping[Part, tuple[str, ...]] = {"reviews": ("user_id", "item_id"), "items": ("item_id",)}


def canonical(rows: pl.DataFrame, part: Part) -> pl.DataFrame:
    """`line` and the canonical columns of a part in their order; those that `rows` lacks are null."""
    return rows.select(
        pl.col(LINE).cast(pl.Int64),
        *(
            _cast(pl.col(name) if name in rows.columns else pl.lit(None), kind).alias(name)
            for name, kind in CANONICAL[part].items()
        ),
    )


def _cast(value: pl.Expr, kind: pl.DataType) -> pl.Expr:
    value = value.cast(kind)
    # Readers differ in whether they read -0 as 0 or as the negative zero of floating-point numbers.
    return pl.when(value == 0).then(0.0).otherwise(value) if kind == pl.Float64 else value

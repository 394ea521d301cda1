"""Rows that can be read but are hardly true. They are told, and what becomes of them is the configuration's to say."""

from __future__ import annotations

import polars as pl

from nextquill_core.ingest.sources.base import Source

SUSPECT = "suspect"
# The same number is a date before 3 March 1973 in milliseconds and one before the year 5138 in seconds. Nobody
# reviewed anything online before 1973.
SECONDS_BELOW = 100_000_000_000


def suspect_reason(source: Source, now_ms: int) -> pl.Expr:
    """Why a review is suspect (str), null for one that is not. A missing value is not suspect: the protocol drops it.

    Args:
        source: Says which ratings there are, and whether timestamps are dates.
        now_ms: When the files were read; later reviews are not written yet.
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

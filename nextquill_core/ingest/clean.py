"""The protocol's rules for single rows, and how texts are cleaned."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import polars as pl

from nextquill_core.config import ProtocolConfig

REASON = "reason"
# Python's white space is that of Unicode and four control characters more, which `\s` lacks here. Runs of one plain
# blank stay as they are, so that the expression matches only where there is work to do.
_SPACE = r"\s\x1c-\x1f"
_RUN = rf"[{_SPACE}]{{2,}}|[{_SPACE}--[ ]]"
_HEADING = "Product Description"


def cleaned(text: pl.Expr) -> pl.Expr:
    r"""Strip, and turn runs of white space into one blank: Python's `re.sub(r"\s+", " ", text.strip())`."""
    return text.str.replace_all(_RUN, " ").str.strip_chars(" ")


def joined(description: pl.Expr) -> pl.Expr:
    """An item's description (list of str) as one text: joined by blanks, without a leading "Product Description".

    Nulls in the list are left out.
    """
    parts = description.fill_null([])
    headed = parts.list.first().eq(_HEADING).fill_null(False)
    return pl.when(headed).then(parts.list.slice(1)).otherwise(parts).list.join(" ").alias("description")


def item_reason(protocol: ProtocolConfig, absent: Container[str] = ()) -> pl.Expr:
    """Why an item goes (enum), null for one that stays. Lengths are code points of the joined description.

    Args:
        protocol: The thresholds.
        absent: Columns that the raw data do not have at all, as `Source.absent`; nothing is asked of them.
    """
    chars = pl.col("description").str.len_chars()
    rules = {
        "short_description": chars < protocol.min_description_chars,
        "long_description": chars > protocol.max_description_chars,
        "no_title": pl.col("title").fill_null("") == "",
        "no_categories": pl.col("categories") == 0,
        "no_rating_number": _zero("rating_number"),
    }
    asked = ("description", "description", "title", "categories", "rating_number")
    return _first_broken(rules, [f"items.{name}" for name in asked], absent)


def review_reason(protocol: ProtocolConfig, absent: Container[str] = ()) -> pl.Expr:
    """Why a review goes, whatever its item (enum), null for one that stays. Lengths are code points of the raw text.

    Args:
        protocol: The thresholds.
        absent: Columns that the raw data do not have at all, as `Source.absent`; nothing is asked of them.
    """
    rules = {
        "no_text": pl.col("chars") == 0,
        "short_text": pl.col("chars") < protocol.min_text_chars,
        "no_rating": _zero("rating"),
        "no_title": ~pl.col("titled"),
        "no_timestamp": _zero("timestamp_ms"),
    }
    asked = ("text", "text", "rating", "title", "timestamp_ms")
    return _first_broken(rules, [f"reviews.{name}" for name in asked], absent)


def counts(reasons: pl.Series) -> dict[str, int]:
    """How often each reason occurs; nulls are not counted."""
    return dict(
        reasons.drop_nulls().value_counts().with_columns(pl.col(REASON).cast(pl.String)).sort(REASON).iter_rows()
    )


def _first_broken(rules: Mapping[str, pl.Expr], asked: Sequence[str], absent: Container[str]) -> pl.Expr:
    reasons = pl.Enum(list(rules))  # a byte a row, where a string takes sixteen
    broken = [
        pl.when(rule).then(pl.lit(reason, dtype=reasons))
        for (reason, rule), column in zip(rules.items(), asked, strict=True)
        if column not in absent
    ]
    return pl.coalesce(pl.lit(None, dtype=reasons), *broken).alias(REASON)


def _zero(name: str) -> pl.Expr:
    return pl.col(name).fill_null(0) == 0

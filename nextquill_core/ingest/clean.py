"""The protocol's rules for single rows, and how texts are cleaned."""

from __future__ import annotations

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


def item_reason(protocol: ProtocolConfig) -> pl.Expr:
    """Why an item goes (str), null for one that stays; expects a joined description. Lengths are code points."""
    chars = pl.col("description").str.len_chars()
    return (
        pl.when(chars < protocol.min_description_chars)
        .then(pl.lit("short_description"))
        .when(chars > protocol.max_description_chars)
        .then(pl.lit("long_description"))
        .when(_falsy_text("title"))
        .then(pl.lit("no_title"))
        .when(pl.col("categories").list.len().fill_null(0) == 0)
        .then(pl.lit("no_categories"))
        .when(_falsy_number("rating_number"))
        .then(pl.lit("no_rating_number"))
        .alias(REASON)
    )


def review_reason(protocol: ProtocolConfig) -> pl.Expr:
    """Why a review goes, whatever its item (str), null for one that stays. Lengths are code points of the raw text."""
    return (
        pl.when(_falsy_text("text"))
        .then(pl.lit("no_text"))
        .when(pl.col("text").str.len_chars() < protocol.min_text_chars)
        .then(pl.lit("short_text"))
        .when(_falsy_number("rating"))
        .then(pl.lit("no_rating"))
        .when(_falsy_text("title"))
        .then(pl.lit("no_title"))
        .when(_falsy_number("timestamp_ms"))
        .then(pl.lit("no_timestamp"))
        .alias(REASON)
    )


def counts(reasons: pl.Series) -> dict[str, int]:
    """How often each reason occurs; nulls are not counted."""
    return dict(reasons.drop_nulls().value_counts().sort(REASON).iter_rows())


def _falsy_text(name: str) -> pl.Expr:
    return pl.col(name).fill_null("") == ""


def _falsy_number(name: str) -> pl.Expr:
    return pl.col(name).fill_null(0) == 0

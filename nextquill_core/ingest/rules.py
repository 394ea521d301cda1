"""The protocol's rules for single rows: what a row needs to stay, and which setting would accept one that goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from nextquill_core.config import ProtocolConfig
from nextquill_core.ingest.sources.base import Source

REASON = "reason"
KEY = "ingest.protocol"


@dataclass(frozen=True)
class Rule:
    """A rule that a single row can break.

    Attributes:
        reason: The name under which rows that break it are counted.
        column: The canonical column that it asks for, as `items.title`.
        broken: Whether a row of a scan breaks it.
        value: What the row has instead, as text.
        remedy: The setting that would accept the row, in a few words.
        applies: Whether the protocol and the source have it at all.
    """

    reason: str
    column: str
    broken: pl.Expr
    value: pl.Expr
    remedy: str
    applies: bool = True


def item_rules(protocol: ProtocolConfig, source: Source) -> list[Rule]:
    """The rules for items in the order in which they are tried. Lengths are code points of the joined description."""
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
        Rule(
            "no_title",
            "items.title",
            pl.col("title").fill_null("") == "",
            pl.lit("title is empty"),
            _off("require_item_title"),
            protocol.require_item_title,
        ),
        Rule(
            "no_categories",
            "items.categories",
            pl.col("categories") == 0,
            pl.lit("categories is empty"),
            _off("require_categories"),
            protocol.require_categories,
        ),
        Rule(
            "no_rating_number",
            "items.rating_number",
            _missing("rating_number", zero="items.rating_number" in source.zero_is_missing),
            _shown("rating_number"),
            _off("require_rating_number"),
            protocol.require_rating_number,
        ),
    ]
    return [rule for rule in rules if rule.applies and rule.column not in source.absent]


def review_rules(protocol: ProtocolConfig, source: Source) -> list[Rule]:
    """The rules for reviews in the order in which they are tried. Lengths are code points of the raw text."""
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
        Rule(
            "no_rating",
            "reviews.rating",
            _missing("rating", zero=not lowest <= 0 <= highest),
            _shown("rating"),
            _off("require_rating") + ", or have ingest.options.ratings include 0" * (source.name == "table"),
            protocol.require_rating,
        ),
        Rule(
            "no_title",
            "reviews.title",
            ~pl.col("titled"),
            pl.lit("title is empty"),
            _off("require_review_title"),
            protocol.require_review_title,
        ),
        Rule(
            "no_timestamp",
            "reviews.timestamp_ms",
            _missing("timestamp_ms", zero="reviews.timestamp_ms" in source.zero_is_missing),
            _shown("timestamp_ms"),
            "no setting accepts a review without a time: times order a user's reviews",
        ),
    ]
    return [rule for rule in rules if rule.applies and rule.column not in source.absent]


def first_broken(rules: Sequence[Rule]) -> pl.Expr:
    """The reason of the first rule that a row breaks (enum), null for a row that stays."""
    reasons = pl.Enum([rule.reason for rule in rules])  # a byte a row, where a string takes sixteen
    broken = [pl.when(rule.broken).then(pl.lit(rule.reason, dtype=reasons)) for rule in rules]
    return pl.coalesce(pl.lit(None, dtype=reasons), *broken).alias(REASON)


def counts(reasons: pl.Series) -> dict[str, int]:
    """How often each reason occurs; nulls are not counted."""
    return dict(
        reasons.drop_nulls().value_counts().with_columns(pl.col(REASON).cast(pl.String)).sort(REASON).iter_rows()
    )


def _off(key: str) -> str:
    return f"set {KEY}.{key} to false"


def _missing(name: str, *, zero: bool) -> pl.Expr:
    return pl.col(name).fill_null(0) == 0 if zero else pl.col(name).is_null()


def _shown(name: str) -> pl.Expr:
    return pl.format(f"{name} is {{}}", pl.col(name).cast(pl.String).fill_null("missing"))

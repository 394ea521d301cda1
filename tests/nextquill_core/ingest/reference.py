"""The published data procedure in slow, plain Python: lists, dicts, sets, and one review at a time."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, NamedTuple

Row = dict[str, Any]


class Outcome(NamedTuple):
    """The base profile and the targets of each user, oldest first, and the title and description of each item."""

    sequences: dict[str, tuple[list[Row], list[Row]]]
    items: dict[str, tuple[str, str]]


def describe(item: Row) -> str:
    parts = list(item.get("description") or [])
    if parts and parts[0] == "Product Description":
        parts.pop(0)
    return " ".join(parts)


def without_repeats(reviews: list[Row]) -> list[Row]:
    """Newest first, each item and each text once."""
    kept: list[Row] = []
    for review in sorted(reviews, key=lambda review: -review["timestamp"]):
        if all(review["parent_asin"] != other["parent_asin"] and review["text"] != other["text"] for other in kept):
            kept.append(review)
    return kept


def by_user(reviews: list[Row]) -> dict[str, list[Row]]:
    grouped: dict[str, list[Row]] = {}
    for review in reviews:
        grouped.setdefault(review["user_id"], []).append(review)
    return grouped


def procedure(reviews: list[Row], items: list[Row], p: Any) -> Outcome:
    """Run the procedure on readable rows; no user may be left.

    Args:
        reviews: Rows of reviews.
        items: Rows of items.
        p: The thresholds.
    """
    described = {}
    for item in items:
        text = describe(item)
        if p.min_description_chars <= len(text) <= p.max_description_chars and (
            item.get("title") and item.get("categories") and item.get("rating_number")
        ):
            described[item["parent_asin"]] = (item["title"], text)
    rows = [
        review
        for review in reviews
        if review["text"] and len(review["text"]) >= p.min_text_chars and review["rating"] and review["title"]
        if review["timestamp"] and review["parent_asin"] in described
    ]
    before = -1
    while len(rows) != before:
        before = len(rows)
        users_of: dict[str, set[str]] = {}
        for review in rows:
            users_of.setdefault(review["parent_asin"], set()).add(review["user_id"])
        n_reviews = {user: len(without_repeats(mine)) for user, mine in by_user(rows).items()}
        rows = [
            review
            for review in rows
            if len(users_of[review["parent_asin"]]) >= p.min_item_users
            and p.min_user_reviews <= n_reviews[review["user_id"]] <= p.max_user_reviews
        ]
    clean = [review | {"text": re.sub(r"\s+", " ", review["text"].strip())} for review in rows]
    halves = {}
    for user, mine in by_user(clean).items():
        ordered = sorted(without_repeats(mine), key=lambda review: review["timestamp"])
        halves[user] = (ordered[: -p.n_targets], ordered[-p.n_targets :])
    popular = Counter(review["parent_asin"] for profile, _ in halves.values() for review in profile)
    while True:
        smaller = {}
        for user, (profile, targets) in halves.items():
            rest = [review for review in profile if popular[review["parent_asin"]] >= p.min_profile_item_users]
            if len(rest) >= p.min_profile_reviews:
                smaller[user] = (rest, targets)
        popular = Counter(review["parent_asin"] for profile, _ in smaller.values() for review in profile)
        stable, halves = len(smaller) == len(halves), smaller
        if stable:
            return Outcome(halves, described)


def examples(outcome: Outcome) -> list[tuple[str, str, Row, list[Row]]]:
    """User, split, target, history; users by id, targets oldest first."""
    found = []
    for user, (profile, targets) in sorted(outcome.sequences.items()):
        for i, target in enumerate(targets):
            split = {0: "test", 1: "val"}.get(len(targets) - 1 - i, "train")
            found.append((user, split, target, profile + targets[:i]))
    return found

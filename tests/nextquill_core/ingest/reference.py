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


def without_repeats(reviews: list[Row], dropped: Counter[str] | None = None) -> list[Row]:
    """Return one user's reviews newest first, each item and each text once; count the others if asked to."""
    kept: list[Row] = []
    dropped = Counter() if dropped is None else dropped
    for review in sorted(reviews, key=lambda review: -review["timestamp"]):
        if any(review["parent_asin"] == other["parent_asin"] for other in kept):
            dropped["repeat_item"] += 1
        elif any(review["text"] == other["text"] for other in kept):
            dropped["repeat_text"] += 1
        else:
            kept.append(review)
    return kept


def by_user(reviews: list[Row]) -> dict[Any, list[Row]]:
    grouped: dict[Any, list[Row]] = {}
    for review in reviews:
        grouped.setdefault(review["user_id"], []).append(review)
    return grouped


def users_by_item(reviews: list[Row]) -> Counter[Any]:
    """Return the number of distinct users of each item."""
    return Counter(item for item, _ in {(review["parent_asin"], review["user_id"]) for review in reviews})


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
    after = [
        review | {"text": re.sub(r"\s+", " ", review["text"].strip())} for review in first_core(rows, p, Counter())
    ]
    return Outcome(second_core(after, p, Counter()), described)


def first_core(rows: list[Row], p: Any, dropped: Counter[str]) -> list[Row]:
    """Return the reviews that step 3 leaves, and count the others by reason.

    A review whose item is dropped in the same pass counts for its item, whatever its user's number of reviews.
    """
    before = -1
    while len(rows) != before:
        before = len(rows)
        n_users, n_reviews = users_by_item(rows), {u: len(without_repeats(mine)) for u, mine in by_user(rows).items()}
        kept = []
        for review in rows:
            if n_users[review["parent_asin"]] < p.min_item_users:
                dropped["item_too_few_users"] += 1
            elif n_reviews[review["user_id"]] > p.max_user_reviews:
                dropped["user_too_many_reviews"] += 1
            elif n_reviews[review["user_id"]] < p.min_user_reviews:
                dropped["user_too_few_reviews"] += 1
            else:
                kept.append(review)
        rows = kept
    return rows


def second_core(rows: list[Row], p: Any, dropped: Counter[str]) -> dict[Any, tuple[list[Row], list[Row]]]:
    """Return each user's base profile and targets after steps 4 to 6, and count the other reviews by reason."""
    halves = {}
    for user, mine in by_user(rows).items():
        ordered = sorted(without_repeats(mine, dropped), key=lambda review: review["timestamp"])
        halves[user] = (ordered[: -p.n_targets], ordered[-p.n_targets :])
    whole = halves
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
            break
    for user, (profile, targets) in whole.items():
        if user in halves:
            dropped["profile_item_too_few_users"] += len(profile) - len(halves[user][0])
        else:
            dropped["profile_too_few_reviews"] += len(profile) + len(targets)
    return halves


def examples(outcome: Outcome) -> list[tuple[str, str, Row, list[Row]]]:
    """User, split, target, history; users by id, targets oldest first."""
    found = []
    for user, (profile, targets) in sorted(outcome.sequences.items()):
        for i, target in enumerate(targets):
            split = {0: "test", 1: "val"}.get(len(targets) - 1 - i, "train")
            found.append((user, split, target, profile + targets[:i]))
    return found

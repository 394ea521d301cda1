"""Who stays: the published procedure's two cores, on integer ids, times and hashes; no text is looked at.

Frames hold one review a row, with these columns: `row` (i64, file order), `user` and `item` (hashes or other integers),
`text` (u64, hash of the text that counts for repeats) and `time` (i64, UTC ms). Texts are only ever compared among one
user's reviews, so a hash of 64 bits is enough: among 30 million reviews a false repeat has a chance of about one in
10^9.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import polars as pl

from nextquill_core.config import ProtocolConfig
from nextquill_core.ingest.rules import REASON, counts

TARGET = "target"


@dataclass(frozen=True)
class Alone:
    """What each threshold of the first core would do by itself, seen before anything went.

    Attributes:
        enough: Users with at least `min_user_reviews` reviews, repeats not counted.
        not_too_many: Users with at most `max_user_reviews`.
        popular: Items with at least `min_item_users` users.
        most_reviews: The most reviews that any user has.
        most_users: The most users that any item has.
    """

    reviews: int
    users: int
    items: int
    enough: int
    not_too_many: int
    popular: int
    most_reviews: int
    most_users: int


@dataclass(frozen=True)
class Core:
    """The outcome of the first core: the reviews that stay, repeats included, and how many went for which reason."""

    rows: pl.DataFrame
    dropped: Counter[str]
    alone: Alone


@dataclass(frozen=True)
class Split:
    """The outcome of the second core.

    Attributes:
        rows: The reviews of every sequence with `target` (bool), sorted by user and then oldest first.
        dropped: Reviews that went, by reason.
        most_profile: The most profile reviews that any user had left on the first pass.
    """

    rows: pl.DataFrame
    dropped: Counter[str]
    most_profile: int


def repeats(rows: pl.DataFrame) -> pl.DataFrame:
    """The reviews that repeat the item or the text of a newer review that is kept.

    Going through a user's reviews newest first (ties in file order), a review is kept if neither its item nor its
    text is among the kept ones.

    Returns:
        `row`, `user` and `reason` ("repeat_item" or "repeat_text") of the reviews that are not kept.
    """
    # A review that shares nothing is always kept and stands in nobody's way: only the others need an order.
    alike = rows.filter(_perhaps_twice("user", "item") | _perhaps_twice("user", "text"))
    newest_first = alike.sort("user", "time", "row", descending=[False, True, False])
    found: list[tuple[int, int, str]] = []
    current, items, texts = None, set[int](), set[int]()
    for row, user, item, text in newest_first.select("row", "user", "item", "text").iter_rows():
        if user != current:
            current, items, texts = user, set(), set()
        if item in items:
            found.append((row, user, "repeat_item"))
        elif text in texts:
            found.append((row, user, "repeat_text"))
        else:
            items.add(item)
            texts.add(text)
    return pl.DataFrame(found, [("row", pl.Int64), ("user", rows.schema["user"]), (REASON, pl.String)], orient="row")


def core(rows: pl.DataFrame, protocol: ProtocolConfig) -> Core:
    """Drop items with too few users and users with too few or too many reviews until nothing changes.

    In every pass both are decided from the same rows. A user's repeats do not count towards the number of reviews,
    but they count for their items, and those of users who stay go on.
    """
    dropped: Counter[str] = Counter()
    alone = None
    while True:
        users = _review_counts(rows, protocol.min_user_reviews)
        items = _user_counts(rows)
        alone = alone or _alone(rows, users, items, protocol)
        in_number = pl.col("reviews").is_between(protocol.min_user_reviews, protocol.max_user_reviews)
        popular = _among("item", items.filter(pl.col("users") >= protocol.min_item_users)["item"])
        many = _among("user", users.filter(pl.col("reviews") > protocol.max_user_reviews)["user"])
        stays = popular & _among("user", users.filter(in_number)["user"])
        judged = rows.select(popular=popular, many=popular & many, stays=stays)
        kept = rows.filter(judged["stays"])
        n_popular, n_many = int(judged["popular"].sum()), int(judged["many"].sum())
        dropped["item_too_few_users"] += rows.height - n_popular
        dropped["user_too_many_reviews"] += n_many
        dropped["user_too_few_reviews"] += n_popular - n_many - kept.height
        if kept.height == rows.height:
            return Core(kept, dropped, alone)
        rows = kept


def split(rows: pl.DataFrame, protocol: ProtocolConfig) -> Split:
    """Part every user's reviews into base profile and targets, and run the second core on the profiles.

    Args:
        rows: The reviews that the first core left, `text` now the hash of the cleaned text.
        protocol: The thresholds.
    """
    again = repeats(rows)
    dropped = Counter(counts(again[REASON]))
    sequences = rows.join(again, on="row", how="anti").sort("user", "time", "row")
    newest = pl.int_range(pl.len(), 0, step=-1).over("user") <= protocol.n_targets  # counted down: lengths are unsigned
    sequences = sequences.with_columns(newest.alias(TARGET))
    users = sequences.select("user").unique(maintain_order=True)
    profiles = sequences.filter(~pl.col(TARGET))
    most_profile = None
    while True:
        kept_items = _user_counts(profiles).filter(pl.col("users") >= protocol.min_profile_item_users)["item"]
        profiles = profiles.filter(_among("item", kept_items))
        left = users.join(profiles.group_by("user").len("reviews"), on="user", how="left", maintain_order="left")
        left = left.with_columns(pl.col("reviews").fill_null(0))
        most_profile = _most(left["reviews"]) if most_profile is None else most_profile
        stay = left.filter(pl.col("reviews") >= protocol.min_profile_reviews).select("user")
        profiles = profiles.join(stay, on="user", how="semi", maintain_order="left")
        if stay.height == users.height:
            break
        users = stay
    in_profile = _among("row", profiles["row"])
    judged = sequences.with_columns(
        pl.when(~_among("user", stay["user"]))
        .then(pl.lit("profile_too_few_reviews"))
        .when(~pl.col(TARGET) & ~in_profile)
        .then(pl.lit("profile_item_too_few_users"))
        .alias(REASON)
    )
    dropped.update(counts(judged[REASON]))
    return Split(judged.filter(pl.col(REASON).is_null()).drop(REASON), dropped, most_profile)


def _review_counts(rows: pl.DataFrame, enough: int) -> pl.DataFrame:
    """Each user's `reviews`, without repeats where there are at least `enough` with them."""
    runs = rows.select(pl.col("user").sort().rle()).unnest("user")  # sooner than grouping by hash
    users = runs.select(user="value", reviews="len")
    closer = rows.filter(_among("user", users.filter(pl.col("reviews") >= enough)["user"]))
    spare = repeats(closer).group_by("user").len("spare")
    counted = users.join(spare, on="user", how="left")
    return counted.select("user", pl.col("reviews").cast(pl.Int64) - pl.col("spare").fill_null(0))


def _user_counts(rows: pl.DataFrame) -> pl.DataFrame:
    """Each item's number of distinct `users`."""
    return rows.group_by("item").agg(pl.col("user").n_unique().alias("users"))


def _alone(rows: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame, protocol: ProtocolConfig) -> Alone:
    if users.filter(pl.col("reviews") >= protocol.min_user_reviews).is_empty():
        users = _review_counts(rows, 1)  # repeats were left out for users with enough reviews only
    return Alone(
        reviews=rows.height,
        users=users.height,
        items=items.height,
        enough=int((users["reviews"] >= protocol.min_user_reviews).sum()),
        not_too_many=int((users["reviews"] <= protocol.max_user_reviews).sum()),
        popular=int((items["users"] >= protocol.min_item_users).sum()),
        most_reviews=_most(users["reviews"]),
        most_users=_most(items["users"]),
    )


def _perhaps_twice(first: str, second: str) -> pl.Expr:
    """Whether a pair of numbers occurs in several rows; a few that occur once may be among them."""
    pair = pl.col(first).hash() ^ pl.col(second).hash(1)
    in_order = pair.sort()
    return pair.is_in(in_order.filter(in_order == in_order.shift(1)).implode())


def _among(column: str, values: pl.Series) -> pl.Expr:
    return pl.col(column).is_in(values.implode())


def _most(values: pl.Series) -> int:
    return int(values.cast(pl.Int64).extend_constant(0, 1).to_numpy().max())

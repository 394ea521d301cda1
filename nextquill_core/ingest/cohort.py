"""Decide who stays, and which reviews train, validate and test: on integer ids, times and hashes of texts.

The two cores of the published procedure choose users; then each user's targets are assigned to the splits.

Frames hold one review a row, with these columns: `row` (i64, file order), `user` and `item` (hashes or other integers),
`text` (u64, hash of the text that counts for repeats) and `time` (i64, UTC ms). Texts are only ever compared among one
user's reviews, so a hash of 64 bits is enough: among 30 million reviews a false repeat has a chance of about one in
10^9.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time

import polars as pl

from nextquill_core.config import ProtocolConfig
from nextquill_core.errors import DataError
from nextquill_core.ingest.account import REASON, count_reasons
from nextquill_core.ingest.formats.values import FIRST_MS, LAST_MS

KEY = "ingest.protocol"
TARGET = "target"
SPLIT = "split"
DPL_REVIEWS = 3  # of a user who trains under `dpl`: one review for test, one for val, and one to train


@dataclass(frozen=True)
class ThresholdEffects:
    """What each threshold of the first core would leave if it were the only one.

    Attributes:
        reviews: Number of reviews before the first core.
        users: Number of their users.
        items: Number of their items.
        enough: Users with at least `min_user_reviews` reviews, repeats not counted.
        not_too_many: Users with at most `max_user_reviews`.
        popular: Items with at least `min_item_users` users.
        most_reviews: The largest number of reviews of a user.
        most_users: The largest number of users of an item.
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
class FirstCore:
    """The outcome of the first core.

    Attributes:
        rows: The reviews that stay, repeats included.
        dropped: Number of dropped reviews, by reason.
        effects: What each threshold would leave by itself.
    """

    rows: pl.DataFrame
    dropped: Counter[str]
    effects: ThresholdEffects


@dataclass(frozen=True)
class SecondCore:
    """The outcome of the second core.

    Attributes:
        rows: The reviews of every sequence with `target` (bool), sorted by user and then oldest first.
        dropped: Number of dropped reviews, by reason.
        most_profile: The largest number of profile reviews of a user after the first pass.
    """

    rows: pl.DataFrame
    dropped: Counter[str]
    most_profile: int


@dataclass(frozen=True)
class Cuts:
    """The two points in time (UTC ms) of `global-time`: a target trains before the first and tests from the second."""

    val_from: int
    test_from: int


def repeats(rows: pl.DataFrame) -> pl.DataFrame:
    """Find the reviews that repeat the item or the text of a newer review that is kept.

    Going through a user's reviews newest first (ties in file order), a review is kept if neither its item nor its
    text is among the kept ones.

    Returns:
        `row`, `user` and `reason` ("repeat_item" or "repeat_text") of the reviews that are not kept.
    """
    # A review that shares nothing is always kept and makes no other a repeat: only the others need an order.
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


def first_core(rows: pl.DataFrame, protocol: ProtocolConfig) -> FirstCore:
    """Drop items with too few users and users with too few or too many reviews until nothing changes.

    In every pass both are decided from the same rows. A user's repeats do not count towards the number of reviews,
    but they count for their items, and they stay if their user stays.
    """
    dropped: Counter[str] = Counter()
    effects = None
    while True:
        users = _review_counts(rows, protocol.min_user_reviews)
        items = _user_counts(rows)
        effects = effects or _effects(rows, users, items, protocol)
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
            return FirstCore(kept, dropped, effects)
        rows = kept


def second_core(rows: pl.DataFrame, protocol: ProtocolConfig) -> SecondCore:
    """Split every user's reviews into base profile and targets, and run the second core on the profiles.

    Args:
        rows: The reviews that the first core left, `text` now the hash of the cleaned text.
        protocol: The thresholds.
    """
    repeated = repeats(rows)
    dropped = Counter(count_reasons(repeated[REASON]))
    sequences = rows.join(repeated, on="row", how="anti").sort("user", "time", "row")
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
    dropped.update(count_reasons(judged[REASON]))
    return SecondCore(judged.filter(pl.col(REASON).is_null()).drop(REASON), dropped, most_profile)


def find_cuts(targets: Sequence[pl.Series], protocol: ProtocolConfig) -> Cuts | None:
    """Return where `global-time` cuts; None for a protocol without points in time.

    Dates that are not set follow from the targets of all categories together: the newest `test_share` of them test,
    and of the rest those that fill up `val_share` validate. Targets of one moment are never separated.

    Args:
        targets: The times of each category's targets.
        protocol: The dates, or the shares.

    Raises:
        DataError: One of the three splits is empty.
    """
    if protocol.name != "global-time":
        return None
    times = pl.concat(targets).sort(descending=True)
    n_test = max(1, round(protocol.test_share * len(times)))
    n_val = max(1, round(protocol.val_share * len(times)))
    test_from = _ms(protocol.test_from) if protocol.test_from else int(times[min(n_test, len(times)) - 1])
    earlier = times.filter(times < test_from)
    if protocol.val_from:
        val_from = _ms(protocol.val_from)
    else:
        val_from = int(earlier[min(n_val, len(earlier)) - 1]) if len(earlier) else test_from
    sizes = {
        "train": int((times < val_from).sum()),
        "val": int(((times >= val_from) & (times < test_from)).sum()),
        "test": int((times >= test_from).sum()),
    }
    if not all(sizes.values()):
        empty = next(name for name, size in sizes.items() if not size)
        raise DataError(
            f"no target is for {empty}: {sizes['train']:,} before {_day(val_from)}, {sizes['val']:,} before "
            f"{_day(test_from)}, {sizes['test']:,} from then on",
            KEY,
            f"set val_from and test_from between {_day(int(times[-1]))} and {_day(int(times[0]))}",
        )
    return Cuts(val_from, test_from)


def assign_splits(rows: pl.DataFrame, cuts: Cuts | None) -> pl.DataFrame:
    """Return `rows` with `split` (str): train, val or test for a target, null for the rest.

    Args:
        rows: `user`, `time` and `target`, sorted by user, oldest first.
        cuts: Where to cut; None for the published split, by which a user's last target tests and the one before
            validates.
    """
    if cuts:
        test, val = pl.col("time") >= cuts.test_from, pl.col("time") >= cuts.val_from
    else:
        from_end = pl.int_range(pl.len(), 0, step=-1).over("user")
        test, val = from_end == 1, from_end == 2
    name = pl.when(test).then(pl.lit("test")).when(val).then(pl.lit("val")).otherwise(pl.lit("train"))
    return rows.with_columns(pl.when(TARGET).then(name).alias(SPLIT))


def _review_counts(rows: pl.DataFrame, enough: int) -> pl.DataFrame:
    """Return each user's number of `reviews`, without repeats where there are at least `enough` with them."""
    runs = rows.select(pl.col("user").sort().rle()).unnest("user")  # faster than grouping by hash
    users = runs.select(user="value", reviews="len")
    closer = rows.filter(_among("user", users.filter(pl.col("reviews") >= enough)["user"]))
    spare = repeats(closer).group_by("user").len("spare")
    counted = users.join(spare, on="user", how="left")
    return counted.select("user", pl.col("reviews").cast(pl.Int64) - pl.col("spare").fill_null(0))


def _user_counts(rows: pl.DataFrame) -> pl.DataFrame:
    """Return each item's number of distinct `users`."""
    return rows.group_by("item").agg(pl.col("user").n_unique().alias("users"))


def _effects(
    rows: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame, protocol: ProtocolConfig
) -> ThresholdEffects:
    if users.filter(pl.col("reviews") >= protocol.min_user_reviews).is_empty():
        users = _review_counts(rows, 1)  # repeats were left out for users with enough reviews only
    return ThresholdEffects(
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
    """Return whether a pair of numbers occurs in several rows; a few that occur once may be among them."""
    pair = pl.col(first).hash() ^ pl.col(second).hash(1)
    in_order = pair.sort()
    return pair.is_in(in_order.filter(in_order == in_order.shift(1)).implode())


def _among(column: str, values: pl.Series) -> pl.Expr:
    return pl.col(column).is_in(values.implode())


def _most(values: pl.Series) -> int:
    return int(values.cast(pl.Int64).extend_constant(0, 1).to_numpy().max())


def _ms(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp() * 1000)


def _day(ms: int) -> str:
    """Return the day of a time, for a message; raw files may hold times that no calendar has."""
    return datetime.fromtimestamp(min(max(ms, FIRST_MS), LAST_MS) / 1000, UTC).date().isoformat()

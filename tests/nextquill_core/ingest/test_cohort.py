"""The protocol against an independent reference, cases small enough to work out by hand, and the splits."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from nextquill_core.config import ProtocolConfig
from nextquill_core.errors import DataError, UserError
from nextquill_core.ingest.cohort import (
    Cuts,
    ThresholdEffects,
    assign_splits,
    find_cuts,
    first_core,
    repeats,
    second_core,
)
from tests.amazon import real_2023, write_2023
from tests.effort import trials
from tests.nextquill_core.ingest import reference
from tests.nextquill_core.ingest.world import SMALL, World, item, plain_category, review

SHARED = ["a", "b", "a b", "a  b", " a b", "a\tb", "a\x1cb", "a\u2003b\u00a0", "é", "日本", "", "<br />", "c" * 9]
TEXTS = st.sampled_from(SHARED + [f"text {number}" for number in range(40)])
REVIEWS = st.builds(
    review,
    user=st.sampled_from(["u1", "u2", "U", "é"]),
    item=st.sampled_from(["i1", "i2", "i3", "i4", "i5", "i6", "i7", "gone"]),
    time=st.integers(-2, 4),
    text=TEXTS,
    rating=st.sampled_from([5.0, 4, 1.0, 2.0, 3, 3.5, 5, 0.0]),
    title=st.sampled_from(["t", "r", "s", "é", "p", "o", "n", ""]),
)
ITEMS = st.builds(
    item,
    st.sampled_from(["i1", "i2", "i3", "i4", "i5", "i6"]),
    title=st.sampled_from(["T", "S", "T", "", None]),
    description=st.sampled_from(
        [["d"], ["Product Description", "d", "e"], ["Product Description"], [], None, ["x"] * 40]
    ),
    categories=st.sampled_from([["c"], ["c"], []]),
    rating_number=st.sampled_from([1, 2, 3, 0, None]),
)
EVERY_ITEM = [item(f"i{i}") for i in range(1, 8)]
PROTOCOLS = st.fixed_dictionaries(
    {
        "min_text_chars": st.integers(0, 2),
        "min_user_reviews": st.integers(1, 4),
        "max_user_reviews": st.integers(5, 9),
        "min_item_users": st.integers(1, 3),
        "n_targets": st.integers(3, 4),
        "min_profile_reviews": st.integers(0, 2),
        "min_profile_item_users": st.integers(0, 2),
        "min_description_chars": st.integers(0, 1),
    }
)


def agree(world: World, reviews: list[Any], items: list[Any], protocol: dict[str, int]) -> int:
    """Run both, compare the results and return the number of users.

    Args:
        world: Where the files go.
        reviews: Raw rows.
        items: Raw rows.
        protocol: The thresholds.
    """
    wanted = reference.procedure(reviews, items, ProtocolConfig(**SMALL | protocol))
    try:
        stats = world.ingest(reviews, items, **protocol)
    except DataError:
        assert all(len(profile) + len(targets) < 3 for profile, targets in wanted.sequences.values())
        return 0
    assert wanted.sequences

    def seen(row: dict[str, Any]) -> tuple[Any, ...]:
        title, description = wanted.items[row["parent_asin"]]
        return (title, description, row["title"], row["text"], row["timestamp"], row["rating"])

    assert world.examples() == [
        (user, split, seen(target), [seen(past) for past in history])
        for user, split, target, history in reference.examples(wanted)
    ]
    kept = [row for profile, targets in wanted.sequences.values() for row in profile + targets]
    assert stats["users"] == len(wanted.sequences)
    assert stats["reviews"]["kept"] == len(kept)
    assert [row["item_id"] for row in world.table("items")] == sorted({row["parent_asin"] for row in kept})
    for what, rows in (("reviews", reviews), ("items", items)):
        account = stats[what]
        assert account["read"] == len(rows) == account["kept"] + sum(account["dropped"].values())
    return len(wanted.sequences)


@settings(max_examples=trials(30), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    reviews=st.lists(REVIEWS, min_size=30, max_size=60),
    items=st.lists(ITEMS, max_size=8).map(lambda some: some + EVERY_ITEM[len(some) // 4 :]),
    protocol=PROTOCOLS,
)
def test_a_random_dirty_category_agrees_with_the_reference(
    tmp_path_factory: pytest.TempPathFactory, reviews: list[Any], items: list[Any], protocol: dict[str, int]
) -> None:
    agree(World(tmp_path_factory.mktemp("world")), reviews, items, protocol)


@pytest.mark.parametrize(
    "protocol",
    [
        {"min_user_reviews": 4, "min_item_users": 2, "min_profile_reviews": 1, "min_profile_item_users": 2},
        {"min_user_reviews": 5, "min_item_users": 3, "min_profile_reviews": 2, "min_profile_item_users": 2},
        {
            "min_user_reviews": 6,
            "max_user_reviews": 25,
            "min_item_users": 4,
            "n_targets": 4,
            "min_description_chars": 20,
        },
    ],
)
@pytest.mark.parametrize("made", [True, False], ids=["rows of ours", "real rows"])
def test_rows_of_a_release_agree_with_the_reference(tmp_path: Path, protocol: dict[str, int], made: bool) -> None:
    reviews, items = write_2023(tmp_path / "raw") if made else real_2023()

    def read(path: Path) -> list[Any]:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    wanted = {"min_text_chars": 200, "max_description_chars": 2000} | protocol
    assert agree(World(tmp_path), read(reviews), read(items), wanted) > 10


def sequence(world: World, user: str = "u1") -> list[tuple[str, int]]:
    rows = {row["user_id"]: row["reviews"] for row in world.table("sequences")}
    return [(entry["item_id"], entry["timestamp_ms"]) for entry in rows[user]]


def test_of_repeats_the_newest_is_kept_and_a_dropped_one_hides_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    reviews = [
        review(item="i1", time=1, text="x"),  # kept: the review that shares its text is itself dropped
        review(item="i2", time=2, text="x"),  # dropped: i2 comes again later
        review(item="i2", time=3, text="y"),
        review(item="i3", time=4, text="z"),
    ]
    stats = world.ingest(reviews, EVERY_ITEM)
    assert sequence(world) == [("i1", 1), ("i2", 3), ("i3", 4)]
    assert stats["reviews"]["dropped"] == {"repeat_item": 1}


def test_ties_in_time_stay_in_file_order_and_the_first_of_equals_is_kept(tmp_path: Path) -> None:
    world = World(tmp_path)
    reviews = [
        review(item="i3", time=7, text="c"),
        review(item="i1", time=7, text="a"),
        review(item="i1", time=7, text="b", title="again"),
        review(item="i2", time=7, text="d"),
    ]
    world.ingest(reviews, EVERY_ITEM)
    assert sequence(world) == [("i3", 7), ("i1", 7), ("i2", 7)]
    assert "again" not in str(world.table("sequences"))


def test_repeats_are_counted_for_items_but_not_for_users(tmp_path: Path) -> None:
    world = World(tmp_path)
    # u2 has two reviews of one item, so one without repeats: u2 goes, but on the first pass i1 still has two users
    reviews = [review("u1", f"i{i}", i, str(i)) for i in range(1, 4)] + [review("u2", "i1", t, "same") for t in (1, 2)]
    reviews += [review("u3", f"i{i}", i, f"u3 {i}") for i in range(1, 4)]
    stats = world.ingest(reviews, EVERY_ITEM, min_user_reviews=2, min_item_users=2)
    assert stats["users"] == 2
    assert stats["reviews"]["dropped"] == {"user_too_few_reviews": 2}


def test_texts_that_become_equal_by_cleaning_are_repeats_only_after_the_first_core(tmp_path: Path) -> None:
    world = World(tmp_path)
    reviews = [review(item=f"i{i}", time=i, text="a" + " " * i + "b") for i in range(1, 5)]
    reviews += [review("u2", f"i{i}", i, str(i)) for i in range(1, 5)]
    stats = world.ingest(reviews, EVERY_ITEM, min_user_reviews=4)  # four raw texts pass a minimum of four
    assert sequence(world) == [("i4", 4)]
    assert stats["reviews"]["dropped"] == {"repeat_text": 3}
    assert stats["examples"] == {"train": 1, "val": 1, "test": 2}
    assert world.examples()[0][3] == []


def test_a_negative_time_counts_and_a_time_of_zero_does_not(tmp_path: Path) -> None:
    world = World(tmp_path)
    times = (-5, 0, 5, 6)
    stats = world.ingest([review(item=f"i{i}", time=t, text=str(t)) for i, t in enumerate(times, 1)], EVERY_ITEM)
    assert sequence(world) == [("i1", -5), ("i3", 5), ("i4", 6)]
    assert stats["reviews"]["dropped"] == {"no_timestamp": 1}


def test_the_second_core_filters_profiles_and_never_targets(tmp_path: Path) -> None:
    world = World(tmp_path)
    reviews = [review("u1", f"i{i}", i, f"a{i}") for i in range(1, 6)]  # profile i1, i2; targets i3, i4, i5
    reviews += [review("u2", name, t, f"b{t}") for t, name in enumerate(("i1", "i5", "i4", "i3"), 1)]  # profile i1
    stats = world.ingest(reviews, EVERY_ITEM, min_profile_item_users=2, min_profile_reviews=1)
    assert [name for name, _ in sequence(world, "u1")] == ["i1", "i3", "i4", "i5"]  # i2 has one profile only
    assert stats["reviews"]["dropped"] == {"profile_item_too_few_users": 1}
    rows = world.table("examples")
    assert [row["split"] for row in rows if row["user_id"] == "u1"] == ["train", "val", "test"]
    assert [row["history"] for row in rows if row["user_id"] == "u1"] == [[0], [0, 1], [0, 1, 2]]
    assert [row["example_id"] for row in rows] == ["C:u1:1", "C:u1:2", "C:u1:3", "C:u2:1", "C:u2:2", "C:u2:3"]


def test_repeats_are_repeats_of_one_user_alone() -> None:
    """Rows 0 to 3 are user 1's, 4 to 6 user 2's; each has item 10 twice, and text 9 stands once with each of them.

    Newest first, user 1 keeps row 2 (item 12, text 9) and row 1 (item 10, text 6); row 0 repeats item 10, and row 3,
    the oldest, text 9. User 2 keeps rows 6 and 5 and loses row 4 for its item. What one keeps counts nothing for the
    other.
    """
    of_first = [(1, 10, 5, 2), (1, 10, 6, 3), (1, 12, 9, 4), (1, 13, 9, 1)]
    of_second = [(2, 10, 7, 1), (2, 10, 9, 2), (2, 12, 8, 3)]
    found = sorted(repeats(frame(of_first + of_second)).rows())
    assert found == [(0, 1, "repeat_item"), (3, 1, "repeat_text"), (4, 2, "repeat_item")]


COLUMNS = {"row": pl.Int64, "user": pl.Int64, "item": pl.Int64, "text": pl.UInt64, "time": pl.Int64}
NAMES = {"user": "user_id", "item": "parent_asin", "time": "timestamp"}  # in rows of the reference
NUMBERS = st.lists(
    st.tuples(st.integers(1, 5), st.integers(-2, 3), st.integers(0, 30), st.integers(-2, 6)), min_size=12, max_size=60
)
THRESHOLDS = st.builds(
    ProtocolConfig,
    min_user_reviews=st.integers(1, 4),
    max_user_reviews=st.integers(3, 7),
    min_item_users=st.integers(1, 4),
    n_targets=st.just(3),
    min_profile_reviews=st.integers(0, 3),
    min_profile_item_users=st.integers(0, 3),
)


def frame(numbers: list[tuple[int, int, int, int]]) -> pl.DataFrame:
    """Return reviews of (user, item, text, time), given in file order, as a frame in another order."""
    rows = [(row, *values) for row, values in enumerate(numbers)]
    return pl.DataFrame(rows[1::2] + rows[::2], schema=COLUMNS, orient="row")


def plain(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Return the same reviews in file order as the reference takes them."""
    return rows.sort("row").rename(NAMES).to_dicts()


@settings(max_examples=trials(150), deadline=None, derandomize=True)
@example(numbers=[], thresholds=ProtocolConfig())
@example(numbers=[(1, 1, 0, 1), (1, 1, 1, 2)], thresholds=ProtocolConfig())  # a repeat, and no user has enough
@given(numbers=NUMBERS, thresholds=THRESHOLDS)
def test_the_first_core_agrees_with_the_reference(
    numbers: list[tuple[int, int, int, int]], thresholds: ProtocolConfig
) -> None:
    rows = frame(numbers)
    found = first_core(rows, thresholds)
    dropped: Counter[str] = Counter()
    kept = reference.first_core(plain(rows), thresholds, dropped)
    event(f"{len(kept)} of {rows.height}")
    assert found.rows.equals(rows.filter(pl.col("row").is_in([review["row"] for review in kept])))
    assert +found.dropped == dropped

    counts = [len(reference.without_repeats(mine)) for mine in reference.by_user(plain(rows)).values()]
    users = reference.users_by_item(plain(rows)).values()
    assert found.effects == ThresholdEffects(
        reviews=rows.height,
        users=len(counts),
        items=len(users),
        enough=sum(count >= thresholds.min_user_reviews for count in counts),
        not_too_many=sum(count <= thresholds.max_user_reviews for count in counts),
        popular=sum(count >= thresholds.min_item_users for count in users),
        most_reviews=max(counts, default=0),
        most_users=max(users, default=0),
    )


@settings(max_examples=trials(150), deadline=None, derandomize=True)
@example(numbers=[], thresholds=ProtocolConfig())
@given(numbers=NUMBERS, thresholds=THRESHOLDS)
def test_the_second_core_and_the_published_splits_agree_with_the_reference(
    numbers: list[tuple[int, int, int, int]], thresholds: ProtocolConfig
) -> None:
    rows = frame(numbers)
    found = second_core(rows, thresholds)
    dropped: Counter[str] = Counter()
    halves = reference.second_core(plain(rows), thresholds, dropped)
    wanted = []
    for _, (profile, targets) in sorted(halves.items()):
        splits = ["train"] * (len(targets) - 2) + ["val", "test"][-len(targets) :]
        wanted += [(review["row"], False, None) for review in profile]
        wanted += [(review["row"], True, split) for review, split in zip(targets, splits, strict=True)]
    event(f"{len(wanted)} of {rows.height}")
    assert assign_splits(found.rows, None).select("row", "target", "split").rows() == wanted
    assert +found.dropped == +dropped


def test_the_largest_profile_is_measured_before_users_are_left_out() -> None:
    """Users 1 and 2 have profiles of 2 and 3 reviews; item 13 has one user alone."""
    numbers = [(1, 10, 0, 1), (1, 11, 1, 2), (2, 10, 0, 1), (2, 11, 1, 2), (2, 13, 2, 3)]
    numbers += [(user, 20 + time, 10 + time, time) for user in (1, 2) for time in (7, 8, 9)]
    for least, largest, users in ((1, 3, 2), (2, 2, 2)):
        thresholds = ProtocolConfig(n_targets=3, min_profile_reviews=2, min_profile_item_users=least)
        found = second_core(frame(numbers), thresholds)
        assert found.most_profile == largest
        assert found.rows["user"].n_unique() == users
    thresholds = ProtocolConfig(n_targets=3, min_profile_reviews=3, min_profile_item_users=1)
    found = second_core(frame(numbers), thresholds)
    assert (found.most_profile, found.rows["user"].unique().to_list()) == (3, [2])


def test_the_largest_profile_is_that_of_the_first_pass_even_if_nobody_stays() -> None:
    """Both users have items 10 and 11 in their profiles, which is one review too few: the second pass has no users."""
    numbers = [(user, 10 + time, time, time) for user in (1, 2) for time in (0, 1)]
    numbers += [(user, 20 + time, 10 + time, time) for user in (1, 2) for time in (7, 8, 9)]
    thresholds = ProtocolConfig(n_targets=3, min_profile_reviews=3, min_profile_item_users=2)
    found = second_core(frame(numbers), thresholds)
    assert found.most_profile == 2
    assert found.rows.is_empty()
    assert found.dropped == {"profile_too_few_reviews": 10}


DAY = 86_400_000


def protocol(**values: Any) -> ProtocolConfig:
    return ProtocolConfig(name="global-time", **values)


def test_the_newest_tenth_tests_and_the_tenth_before_validates() -> None:
    assert find_cuts([pl.Series(range(60)), pl.Series(range(60, 100))], protocol()) == Cuts(val_from=80, test_from=90)


def test_targets_of_one_moment_are_not_parted() -> None:
    times = pl.Series([1, 2, 3, 4, 5, 6, 7, 7, 9, 9])
    assert find_cuts([times], protocol()) == Cuts(val_from=7, test_from=9)


def test_dates_are_the_first_days_of_val_and_test() -> None:
    start = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp() * 1000)
    times = pl.Series([start + day * DAY for day in range(10)])
    found = find_cuts([times], protocol(val_from=date(2020, 1, 5), test_from=date(2020, 1, 8)))
    assert found == Cuts(start + 4 * DAY, start + 7 * DAY)
    rows = pl.DataFrame({"user": [1] * 10, "time": times, "target": [False] * 2 + [True] * 8})
    assert assign_splits(rows, found)["split"].to_list() == [None] * 2 + ["train"] * 2 + ["val"] * 3 + ["test"] * 3


def test_the_message_about_an_empty_split_gives_the_range_of_dates() -> None:
    with pytest.raises(DataError, match=r"no target is for test: .* between 1970-01-01 and 1970-01-03") as caught:
        find_cuts([pl.Series([0, DAY, 2 * DAY])], protocol(test_from=date(2020, 1, 1)))
    assert "no target is for test: 2 before 1970-01-03, 1 before 2020-01-01, 0 from then on" in str(caught.value)
    with pytest.raises(DataError, match="no target is for train"):
        find_cuts([pl.Series([5, 5, 5])], protocol())
    with pytest.raises(DataError, match="set val_from and test_from between 0001-01-01 and 9999-12-31"):
        find_cuts([pl.Series([-(10**17), 10**17, 10**17])], protocol())  # no calendar has these times


def test_few_targets_leave_at_least_one_for_test_and_val_and_each_share_counts_for_its_own_split() -> None:
    assert find_cuts([pl.Series([1, 2, 3])], protocol()) == Cuts(val_from=2, test_from=3)  # a tenth of 3 rounds to 0
    hundred = [pl.Series(range(100))]
    assert find_cuts(hundred, protocol(test_share=0.2, val_share=0.3)) == Cuts(val_from=50, test_from=80)


def test_a_single_date_leaves_the_other_cut_to_its_share() -> None:
    times = pl.Series([day * DAY for day in range(10)])
    assert find_cuts([times], protocol(test_from=date(1970, 1, 9))) == Cuts(val_from=7 * DAY, test_from=8 * DAY)
    assert find_cuts([times], protocol(val_from=date(1970, 1, 4))) == Cuts(val_from=3 * DAY, test_from=9 * DAY)


def test_the_message_about_an_empty_split_counts_the_targets_between_the_dates() -> None:
    # More targets are wanted for val than are left, so the oldest moment is where val starts.
    times = pl.Series([0, DAY] + [5 * DAY] * 18)
    with pytest.raises(DataError, match="no target is for train: 0 before 1970-01-01, 2 before 1970-01-03, 18 from"):
        find_cuts([times], protocol(test_from=date(1970, 1, 3), val_share=0.2))


def test_a_target_on_the_first_day_of_test_is_not_counted_for_val() -> None:
    with pytest.raises(DataError, match="no target is for val: 1 before 1970-01-03, 0 before 1970-01-06, 1 from"):
        find_cuts([pl.Series([0, 5 * DAY])], protocol(val_from=date(1970, 1, 3), test_from=date(1970, 1, 6)))


def test_the_published_protocol_has_no_points_in_time() -> None:
    assert find_cuts([pl.Series([1, 2, 3])], ProtocolConfig()) is None
    rows = pl.DataFrame({"user": [1] * 4 + [2], "time": [1, 2, 3, 4, 9], "target": [False, True, True, True, True]})
    assert assign_splits(rows, None)["split"].to_list() == [None, "train", "val", "test", "test"]


def test_dates_out_of_order_or_without_the_protocol_are_refused() -> None:
    from nextquill_core.config import parse_config

    for values in (
        {"name": "global-time", "val_from": "2020-01-02", "test_from": "2020-01-01"},
        {"val_from": "2020-01-02"},
    ):
        with pytest.raises(UserError, match="val_from"):
            parse_config({"ingest": {"protocol": values}}, "the test")


TIMES = st.lists(st.integers(1, 30), min_size=18, max_size=60)


@settings(max_examples=trials(25), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(times=TIMES, categories=st.integers(1, 2))
def test_no_training_sample_is_younger_than_any_later_target(
    tmp_path_factory: pytest.TempPathFactory, times: list[int], categories: int
) -> None:
    world = World(tmp_path_factory.mktemp("world"))
    rows = [review(f"u{i % 4}", f"i{i}", time, f"text {i}") for i, time in enumerate(times)]
    items = world.write("i.jsonl", [item(f"i{i}") for i in range(len(times))])
    config = world.config(world.write("r0.jsonl", rows[::categories]), items, name="global-time")
    if categories == 2:
        raw = config.inputs[0].model_copy(update={"category": "D", "reviews": str(world.write("r1.jsonl", rows[1::2]))})
        config = config.model_copy(update={"inputs": (*config.inputs, raw)})
    try:
        stats = world.run(config)
    except DataError as error:
        event(str(error)[:40])
        return
    found = world.examples()
    ages = {split: [target[4] for _, name, target, _ in found if name == split] for split in ("train", "val", "test")}
    assert max(ages["train"]) < min(ages["val"])
    assert max(ages["val"]) < min(ages["test"])
    assert max(ages["train"]) < stats["cuts"]["val_from"] <= min(ages["val"])
    assert all(past[4] <= target[4] for _, _, target, history in found for past in history)
    assert {split: len(some) for split, some in ages.items()} == stats["examples"]


def test_profiles_for_the_base_model_end_where_training_ends(tmp_path: Path) -> None:
    from nextquill_core.ingest.reader import base_profiles

    reviews, items = plain_category()
    world = World(tmp_path)
    stats = world.ingest(reviews, items, name="global-time", val_share=0.4, test_share=0.4)
    before = stats["cuts"]["val_from"]
    cut, whole = base_profiles(world.out, before), base_profiles(world.out)
    assert [[r for r in profile if r.timestamp_ms < before] for profile in whole] == [list(profile) for profile in cut]
    assert all(len(profile) == 3 for profile in whole)

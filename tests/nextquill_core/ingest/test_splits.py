"""Two points in time: nothing trains that is younger than what is tested, whoever wrote it."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from nextquill_core.config import ProtocolConfig
from nextquill_core.errors import DataError, UserError
from nextquill_core.ingest.splits import Cuts, cuts, labelled
from tests.nextquill_core.ingest.world import World, item, plain_category, review

DAY = 86_400_000


def protocol(**values: Any) -> ProtocolConfig:
    return ProtocolConfig(name="global-time", **values)


def test_the_newest_tenth_tests_and_the_tenth_before_validates() -> None:
    assert cuts([pl.Series(range(60)), pl.Series(range(60, 100))], protocol()) == Cuts(val_from=80, test_from=90)


def test_targets_of_one_moment_are_not_parted() -> None:
    times = pl.Series([1, 2, 3, 4, 5, 6, 7, 7, 9, 9])
    assert cuts([times], protocol()) == Cuts(val_from=7, test_from=9)


def test_dates_are_the_first_days_of_val_and_test() -> None:
    start = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp() * 1000)
    times = pl.Series([start + day * DAY for day in range(10)])
    found = cuts([times], protocol(val_from=date(2020, 1, 5), test_from=date(2020, 1, 8)))
    assert found == Cuts(start + 4 * DAY, start + 7 * DAY)
    rows = pl.DataFrame({"user": [1] * 10, "time": times, "target": [False] * 2 + [True] * 8})
    assert labelled(rows, found)["split"].to_list() == [None] * 2 + ["train"] * 2 + ["val"] * 3 + ["test"] * 3


def test_an_empty_split_is_said_with_the_range_of_dates() -> None:
    times = pl.Series([0, DAY, 2 * DAY])
    with pytest.raises(DataError, match=r"no target is for test: .* between 1970-01-01 and 1970-01-03"):
        cuts([times], protocol(test_from=date(2020, 1, 1)))
    with pytest.raises(DataError, match="no target is for train"):
        cuts([pl.Series([5, 5, 5])], protocol())


def test_the_published_protocol_has_no_points_in_time() -> None:
    assert cuts([pl.Series([1, 2, 3])], ProtocolConfig()) is None
    rows = pl.DataFrame({"user": [1] * 4 + [2], "time": [1, 2, 3, 4, 9], "target": [False, True, True, True, True]})
    assert labelled(rows, None)["split"].to_list() == [None, "train", "val", "test", "test"]


def test_dates_out_of_order_or_without_the_protocol_are_refused() -> None:
    from nextquill_core.config import parse_config

    for values in (
        {"name": "global-time", "val_from": "2020-01-02", "test_from": "2020-01-01"},
        {"val_from": "2020-01-02"},
    ):
        with pytest.raises(UserError, match="val_from"):
            parse_config({"ingest": {"protocol": values}}, "the test")


TIMES = st.lists(st.integers(1, 30), min_size=18, max_size=60)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
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

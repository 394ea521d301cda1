"""Single values into canonical ones; the expected values are written down by hand."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextquill_core.ingest.formats.values import NULL_NUMBERS, NULLS, InvalidValueError, Role, ValueRules, convert
from tests.effort import trials

NOON = 1530964800000  # 2018-07-07 12:00 UTC: 17,719 days and a half
UNFIT = object()


def value(role: Role, raw: Any, **rules: Any) -> Any:
    try:
        return ValueRules(**rules).value(role, raw)
    except InvalidValueError:
        return UNFIT


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (4, 4.0), (4.5, 4.5), ("4", 4.0), (" 4.50 ", 4.5), ("1e0", 1.0), ("+3", 3.0), (Decimal("3.5"), 3.5),
        ("4,5", 4.5), ("4,50", 4.5), ("4,500", UNFIT), ("4.0 out of 5 stars", 4.0), ("4/5", 4.0), ("4,5 von 5", 4.5),
        ("3.5 / 5.0", 3.5), ("8/10", UNFIT), ("4 stars", 4.0), ("1 Star", 1.0), ("★★★★", 4.0), ("★★★★☆", 4.0),
        ("★★☆", UNFIT), ("☆☆☆☆☆", 0.0), ("★★★½", 3.5), ("⭐️⭐️", 2.0), (True, 1.0), (False, 0.0), ("true", 1.0),
        ("FALSE", 0.0), ("0", 0.0), ("four", UNFIT), ("inf", UNFIT), (float("inf"), UNFIT), ("1e999", UNFIT),
        (10**400, UNFIT), ([4], UNFIT), ("", None), (" ", None), ("NULL", None), ("nan", None), (float("nan"), None),
        (None, None), ("N/A", None), (r"\N", None),
    ],
)  # fmt: skip
def test_ratings(raw: Any, expected: Any) -> None:
    assert value("rating", raw) == expected


def test_ratings_that_are_words_are_named_in_the_options() -> None:
    words = {"rating_words": {"poor": 1.0, "5": 2.0}}
    assert value("rating", "Poor ", **words) == 1.0
    assert value("rating", "5", **words) == 2.0  # a word counts before a number
    assert value("rating", "13/20", ratings=(0.0, 20.0)) == 13.0
    for raw, remedy in (("good", 'rating_words: {"good": NUMBER}'), ("8/10", "ratings: [1, 10]"), ("1,234", "")):
        with pytest.raises(InvalidValueError) as caught:
            ValueRules().value("rating", raw)
        assert str(caught.value) == (f"set ingest.options.{remedy}" if remedy else "")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (17, "17"), (17.0, "17"), (17.5, UNFIT), (2.0**53, UNFIT), (-3.0, "-3"), ("17.0", "17.0"),
        (2**70, "1180591620717411303424"), (Decimal("9007199254740993"), "9007199254740993"), (Decimal("1.5"), UNFIT),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"), (b"\0" * 15 + b"\1", str(UUID(int=1))),
        (True, UNFIT), ([], UNFIT), ("", None), ("NULL", None), ("nan", None), (float("nan"), None), (r"\N", None),
        ("None", "None"), ("NA", "NA"), (" u", " u"),
    ],
)  # fmt: skip
def test_ids(raw: Any, expected: Any) -> None:
    assert value("id", raw) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a", "a"), ("", ""), ("NULL", "NULL"), ("nan", "nan"), (r"\N", None), (None, None), (float("nan"), None),
        (1984, "1984"), (1984.0, "1984"), (2.5, "2.5"), (True, UNFIT), (["a"], UNFIT), ({}, UNFIT),
    ],
)  # fmt: skip
def test_texts(raw: Any, expected: Any) -> None:
    assert value("text", raw) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a", ["a"]), (["a", None, "b"], ["a", "b"]), ([["a"], [["b"], []]], ["a", "b"]), ([], []), (7, ["7"]),
        ([1, 2.0], ["1", "2"]), ('["a", "b"]', ["a", "b"]), ("['a', \"b\"]", ["a", "b"]),
        ("['a' 'b'\n 'c']", list("abc")),
        ("[new] hat", ["[new] hat"]), ("[1, 2", ["[1, 2"]), ("[open('x')]", ["[open('x')]"]),
        ('[{"a": 1}]', ['[{"a": 1}]']),
        ("", None), ("NULL", None), (None, None), ([{}], UNFIT), ({}, UNFIT), (True, UNFIT),
    ],
)  # fmt: skip
def test_lists(raw: Any, expected: Any) -> None:
    assert value("list", raw) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [("1,234", 1234.0), ("1,234,567.0", 1234567.0), ("12,34", UNFIT), (12, 12.0), ("12", 12.0), (True, UNFIT),
    ("", None)],
)  # fmt: skip
def test_counts(raw: Any, expected: Any) -> None:
    assert value("count", raw) == expected


@pytest.mark.parametrize(
    "raw",
    [
        "2018-07-07T12:00:00+00", "2018-07-07 12:00:00 UTC", "2018-07-07t12:00:00z", "2018-07-07T12:00:00,000Z",
        "2018-07-07 14:00:00.000999+02", "2018-07-07 12:00:00 +0000", "2018-07-07T14:00+02:00[Europe/Berlin]",
        "20180707T120000Z", "2018-07-07T12:00:00.000000000Z", "2018-07-07 12:00:00 GMT", " 2018-07-07 12:00 ",
        "2018-07-07T02:30:00-0930",
    ],
)  # fmt: skip
def test_iso_times(raw: str) -> None:
    assert value("time", raw, times="iso") == NOON


@pytest.mark.parametrize(
    ("times", "raw", "expected"),
    [
        ("s", 1530964800, NOON), ("s", 1530964800.25, NOON + 250), ("s", "1530964800.0", NOON),
        ("s", "1.5309648e9", NOON),
        ("ms", NOON + 0.5, NOON + 1), ("ms", str(NOON), NOON), ("ms", f"{NOON}.0", NOON),
        ("us", NOON * 1000 + 999, NOON),
        ("ns", str(NOON * 10**6), NOON), ("ms", Decimal(NOON), NOON), ("ms", 0, 0), ("s", -1, -1000),
        ("iso", datetime(2018, 7, 7, 12, tzinfo=UTC), NOON), ("ms", datetime(2018, 7, 7, 12), NOON),
        ("ms", date(2018, 7, 7), NOON - 43_200_000), ("ms", "", None), ("iso", "NaT", None), ("s", float("nan"), None),
        ("ms", True, UNFIT), ("ms", NOON * 1000, UNFIT), ("s", NOON, UNFIT), ("ms", "1.2.3", UNFIT),
        ("ms", 10**40, UNFIT),
        ("iso", "2018-02-30", UNFIT), ("iso", "0000-01-01", UNFIT), ("iso", "2018-07-07T12:00+2", UNFIT),
    ],
)  # fmt: skip
def test_times(times: str, raw: Any, expected: Any) -> None:
    assert value("time", raw, times=times) == expected


@pytest.mark.parametrize(
    ("times", "raw", "setting"),
    [
        ("ms", NOON * 1000, "us"), ("ms", str(NOON * 10**6), "ns"), ("s", NOON, "ms"), ("iso", 1530964800, "s"),
        ("iso", "1530964800.5", "s"), ("ms", "2018-07-07 12:00:00 UTC", "iso"),
        ("ms", "07/07/2018", 'a pattern such as "%d/%m/%Y %H:%M"'),
    ],
)  # fmt: skip
def test_a_time_that_does_not_fit_names_the_setting_under_which_it_would(times: str, raw: Any, setting: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        ValueRules(times).value("time", raw)
    assert str(caught.value) == f"set ingest.options.timestamp: {setting}"
    if times != "iso" or setting == "s":
        assert value("time", raw, times=setting) is not UNFIT or "%" in setting


def test_further_texts_may_stand_for_a_missing_value() -> None:
    for role in ("id", "text", "list", "rating", "time"):
        assert value(role, "unknown", nulls=frozenset({"unknown"})) is None


SPELLED = st.sampled_from(
    [*sorted(NULLS | NULL_NUMBERS),
     "4", " 4", "4.", ".5", "1e3", "1e999", "-0", "4,5", "4/5", "★★★", "true", "['a']", "[1]", "[x]",
     "2018-07-07", "2018-07-07 12:00:00.1239", "2018-07-07T12:00:00-09:30", "2018-07-07T12:00:00,5Z", "2018-02-30",
     "0000-01-01", "9999-12-31T23:59:59.999Z", str(NOON), str(NOON * 1000), f"{NOON}.5", "99999999999999999999"]
)  # fmt: skip
COLUMNS = (
    st.tuples(st.just(pl.String()), st.lists(st.none() | SPELLED | st.text(max_size=6))),
    st.tuples(st.just(pl.Int64()), st.lists(st.none() | st.integers(-(2**63), 2**63 - 1) | st.just(NOON))),
    st.tuples(st.just(pl.Float64()), st.lists(st.none() | st.floats() | st.just(NOON + 0.5))),
    st.tuples(st.just(pl.List(pl.String)), st.lists(st.none() | st.lists(st.none() | st.text(max_size=3)))),
)


@settings(max_examples=trials(300), deadline=None)
@given(
    column=st.one_of(COLUMNS),
    role=st.sampled_from(["id", "rating", "count", "text", "list", "time"]),
    times=st.sampled_from(["s", "ms", "us", "ns", "iso"]),
    words=st.sampled_from([{}, {"4": 1.0}]),
)
def test_a_column_becomes_what_each_of_its_values_becomes(
    column: tuple[pl.DataType, list[Any]], role: Role, times: str, words: dict[str, float]
) -> None:
    kind, raw = column
    rules = ValueRules(times, rating_words=words, nulls=frozenset({"[x]"}))
    made, unfit = convert(pl.Series(raw, dtype=kind), role, rules)
    expected: list[Any] = []
    for each in raw:
        try:
            expected.append(rules.value(role, each))
        except InvalidValueError:
            expected.append(UNFIT)
    found = [UNFIT if place in unfit else each for place, each in enumerate(made.to_list())]
    assert [repr(each) for each in found] == [repr(each) for each in expected]

"""Raw columns become canonical ones, and values that do not fit are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.nextquill_core.ingest.tables import (
    CANONICAL,
    NOON,
    ROW,
    accounted,
    bad,
    batches,
    rows,
    write_lines,
    write_parquet,
)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"uid": "u2"}, {"user_id": "u2"}),
        ({"uid": None}, "missing-uid"),
        ({"bid": ""}, "missing-bid"),
        ({"bid": 5}, {"item_id": "5"}),
        ({"bid": True}, "wrong-type-bid"),
        ({"stars": "4.0"}, {}),
        ({"stars": "x"}, "wrong-type-stars"),
        ({"stars": [4]}, "wrong-type-stars"),
        ({"date": str(NOON)}, {}),
        ({"date": "1.0"}, {"timestamp_ms": 1}),
        ({"date": float(NOON)}, {}),
        ({"body": 1984}, {"text": "1984"}),
        ({"body": {"a": 1}}, "wrong-type-body"),
    ],
)
def test_each_value_of_json_lines_is_read_by_its_own_type(
    tmp_path: Path, change: dict[str, Any], expected: Any
) -> None:
    row = ROW | {"uid": 12, "other": {"uid": "x"}}
    found = batches(write_lines(tmp_path, b"garbage", row, row | change, b"", b"[]", row))
    refused = isinstance(expected, str)
    assert bad(found) == [(1, "not-json"), *([(3, expected)] if refused else []), (5, "not-an-object")]
    usual = CANONICAL | {"user_id": "12"}
    assert rows(found) == [usual, *([] if refused else [usual | expected]), usual]
    accounted(found, 6)


@pytest.mark.parametrize(
    ("about", "expected"), [("d", ["d"]), (["d", "e"], ["d", "e"]), ([["d"], ["e"]], ["d", "e"]), (None, None)]
)
def test_an_item_may_hold_text_or_lists_and_a_column_may_serve_twice(
    tmp_path: Path, about: Any, expected: list[str] | None
) -> None:
    options = {"items": {"item_id": "bid", "title": "bid", "description": "cats", "categories": "cats"}}
    path = write_lines(tmp_path, {"bid": "b", "cats": about})
    row = {"item_id": "b", "title": "b", "description": expected, "categories": expected, "rating_number": None}
    assert rows(batches(path, "items", options)) == [row]
    if not isinstance(about, list) or isinstance(about[0], str):
        path = write_parquet(tmp_path, {"bid": ["b"], "cats": [about]})
        assert rows(batches(path, "items", options)) == [row]


def test_a_refused_value_is_shown_with_the_option_that_would_accept_it(tmp_path: Path) -> None:
    table = [ROW | {"stars": "great"}, ROW | {"stars": "8/10"}, ROW | {"date": NOON * 1000}, ROW | {"uid": 1.5}]
    expected = [
        ("wrong-type-stars", "stars is 'great'", 'set ingest.options.rating_words: {"great": NUMBER}'),
        ("wrong-type-stars", "stars is '8/10'", "set ingest.options.ratings: [1, 10]"),
        ("wrong-type-date", f"date is {NOON * 1000}", "set ingest.options.timestamp: us"),
        ("wrong-type-uid", "uid is 1.5", ""),
    ]
    found = batches(write_lines(tmp_path, *table))
    assert [(row.reason, row.detail, row.remedy) for batch in found for row in batch.bad] == expected

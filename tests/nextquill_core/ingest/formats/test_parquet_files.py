"""Parquet: columns of every type."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nextquill_core.errors import DataError
from nextquill_core.ingest.formats import parquet_files
from tests.nextquill_core.ingest.tables import (
    CANONICAL,
    NOON,
    ROW,
    accounted,
    bad,
    batches,
    rows,
    write_parquet,
)

COLUMNS: dict[str, Any] = {key: [value] for key, value in ROW.items()}


def test_parquet_takes_columns_as_they_are_typed(tmp_path: Path) -> None:
    moment = datetime(2018, 7, 7, 12, tzinfo=UTC)
    fixed = {
        "bid": pa.array(["a", "b", "a"]).dictionary_encode(),
        "stars": pa.array([1, None, 5], pa.int8()),
        "head": pa.array(["h", None, "h"], pa.large_string()),
        "body": pa.array([b"x", b"y", "ü".encode()], pa.binary()),
    }
    for kind in (pa.timestamp("s"), pa.timestamp("ns", "UTC"), pa.timestamp("us", "Europe/Berlin"), pa.date32()):
        dates = pa.array([moment if pa.types.is_timestamp(kind) and kind.tz else moment.replace(tzinfo=None)] * 3, kind)
        found = batches(write_parquet(tmp_path, {"uid": pa.array([1, 2, 3], pa.uint64()), **fixed, "date": dates}))
        midday = NOON - (12 * 3600_000 if pa.types.is_date(kind) else 0)
        assert rows(found) == [
            {"user_id": "1", "item_id": "a", "rating": 1.0, "title": "h", "text": "x", "timestamp_ms": midday},
            {"user_id": "2", "item_id": "b", "rating": None, "title": None, "text": "y", "timestamp_ms": midday},
            {"user_id": "3", "item_id": "a", "rating": 5.0, "title": "h", "text": "ü", "timestamp_ms": midday},
        ]
        assert found[-1].position == (tmp_path / "r.parquet").stat().st_size


def test_bad_rows_of_parquet_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_files, "BATCH_ROWS", 2)
    broken = pa.StringArray.from_buffers(5, *pa.array([b"a", b"b", b"\xff", b"d", b"e"], pa.binary()).buffers()[1:])
    columns = {
        "uid": ["u", None, "u", "u", "u"], "bid": ["i", "i", "i", "", "i"], "body": broken, "head": ["h"] * 5,
        "stars": [float("inf"), 1.0, 2.0, 3.0, 4.0], "date": [str(NOON)] * 5,
    }  # fmt: skip
    found = batches(write_parquet(tmp_path, columns))
    assert bad(found) == [(1, "wrong-type-stars"), (2, "missing-uid"), (3, "invalid-utf8"), (4, "missing-bid")]
    assert rows(found) == [CANONICAL | {"user_id": "u", "item_id": "i", "text": "e"}]
    assert json.loads(found[0].bad[1].raw)["bid"] == "i"
    assert found[0].bad[0].detail == "stars is inf"
    accounted(found, 5)


def test_parquet_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, COLUMNS | {"uid": [True]})
    with pytest.raises(DataError, match="column `uid` is bool, which is no user_id; convert it"):
        batches(path)
    path = write_parquet(tmp_path, {("Uid" if key == "uid" else key): value for key, value in COLUMNS.items()})
    with pytest.raises(DataError, match=r"there is no column `uid`; did you mean `Uid`\?"):
        batches(path)
    path = write_parquet(tmp_path, COLUMNS)
    with pytest.raises(DataError, match="column `date` is int64, which is no timestamp"):
        batches(path, options={"timestamp": "iso"})
    data = path.read_bytes()
    for broken in (data[: len(data) // 2], data[:40] + b"\xff" * 200 + data[240:], b"PAR1"):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"r\.parquet: (is no Parquet, or damaged|cannot be read)") as caught:
            batches(path)
        assert "\n" not in str(caught.value)


def test_a_date_of_python_is_a_day(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, COLUMNS | {"date": [date(2018, 7, 7)]})
    assert rows(batches(path)) == [CANONICAL | {"timestamp_ms": NOON - 12 * 3600_000}]


ONE = uuid.UUID(int=1)

UUID_BYTES = pa.array([ONE.bytes, None], pa.binary(16))

IDS = [
    (pa.ExtensionArray.from_storage(pa.uuid(), UUID_BYTES), str(ONE)),
    (UUID_BYTES, str(ONE)),
    (pa.array([str(ONE).encode(), None], pa.binary(36)), str(ONE)),
    (pa.array([Decimal(17), None], pa.decimal128(38, 0)), "17"),
    (pa.array([Decimal("17.00"), None], pa.decimal128(10, 2)), "17"),
    (pa.array([Decimal(2**70), None], pa.decimal256(60, 0)), str(2**70)),
    (pa.array([17.0, None], pa.float64()), "17"),
    (pa.array([17.0, None], pa.float32()), "17"),
    (pa.array([17, None], pa.int32()).dictionary_encode(), "17"),
    (pa.array([2**64 - 1, None], pa.uint64()), str(2**64 - 1)),
    (pa.array(["a", None], pa.string_view()), "a"),
    (pa.array([b"a", None], pa.binary_view()), "a"),
    (pa.array(["a", None], pa.large_string()).dictionary_encode(), "a"),
]  # fmt: skip


@pytest.mark.parametrize(("column", "expected"), IDS, ids=lambda value: str(getattr(value, "type", ""))[:30])
def test_ids_of_parquet(tmp_path: Path, column: pa.Array, expected: str) -> None:
    fixed = {"bid": ["i1", "i1"], "stars": [4, 4], "head": ["h", "h"], "body": ["good", "good"], "date": [NOON, NOON]}
    found = batches(write_parquet(tmp_path, {"uid": column, **fixed}))
    assert rows(found) == [CANONICAL | {"user_id": expected}]
    assert bad(found) == [(2, "missing-uid")]


def test_ids_that_lost_digits_or_are_no_whole_numbers_are_refused(tmp_path: Path) -> None:
    fixed = {"bid": ["i"] * 3, "stars": [4] * 3, "head": ["h"] * 3, "body": ["b"] * 3, "date": [NOON] * 3}
    for kind, lost in ((pa.float64(), 2.0**53), (pa.float32(), 2.0**24)):
        found = batches(write_parquet(tmp_path, {"uid": pa.array([lost, 1.5, float("nan")], kind), **fixed}))
        assert bad(found) == [(1, "wrong-type-uid"), (2, "wrong-type-uid"), (3, "missing-uid")]
        assert "have lost digits: write ids as integers or as text" in found[0].bad[0].remedy
        assert found[0].bad[1].detail == "uid is 1.5"


MOMENT = datetime(2018, 7, 7, 12)

OTHER_COLUMNS: list[tuple[str, pa.Array, str, Any]] = [
    ("stars", pa.array([True]), "rating", 1.0),
    ("stars", pa.array([Decimal("4.5")], pa.decimal128(3, 1)), "rating", 4.5),
    ("stars", pa.array([4.5], pa.float16()), "rating", 4.5),
    ("stars", pa.array([float("nan")]), "rating", None),
    ("stars", pa.array(["4,5"]).dictionary_encode(), "rating", 4.5),
    ("stars", pa.nulls(1), "rating", None),
    ("head", pa.array([1984]), "title", "1984"),
    ("head", pa.nulls(1), "title", None),
    ("date", pa.array([1530964800000.25]), "timestamp_ms", NOON),
    ("date", pa.array([Decimal(NOON)], pa.decimal128(38, 0)), "timestamp_ms", NOON),
    ("date", pa.array([Decimal(NOON)], pa.decimal128(20, 2)), "timestamp_ms", NOON),
    ("date", pa.array([NOON], pa.uint64()), "timestamp_ms", NOON),
    ("date", pa.nulls(1), "timestamp_ms", None),
    ("date", pa.array([MOMENT], pa.timestamp("ns")), "timestamp_ms", NOON),
    ("date", pa.array([MOMENT], pa.timestamp("ms", "America/New_York")), "timestamp_ms", NOON),
    ("date", pa.array([date(2018, 7, 7)], pa.date64()), "timestamp_ms", NOON - 12 * 3600_000),
    ("date", pa.array(["2018-07-07 12:00:00 UTC"]), "timestamp_ms", "wrong-type-date"),
]


@pytest.mark.parametrize(("key", "column", "name", "expected"), OTHER_COLUMNS)
def test_other_columns_of_parquet(tmp_path: Path, key: str, column: pa.Array, name: str, expected: Any) -> None:
    found = batches(write_parquet(tmp_path, COLUMNS | {key: column}))
    if isinstance(expected, str) and expected.startswith("wrong"):
        assert bad(found) == [(1, expected)]
        assert found[0].bad[0].remedy == "set ingest.options.timestamp: iso"
    else:
        assert rows(found) == [CANONICAL | {name: expected}]


LISTS = [
    (pa.list_(pa.string()), ["a", None, "b"], ["a", "b"]),
    (pa.large_list(pa.large_string()), ["a"], ["a"]),
    (pa.list_(pa.string(), 2), ["a", "b"], ["a", "b"]),
    (pa.list_view(pa.string()), ["a", "b"], ["a", "b"]),
    (pa.list_(pa.string_view()), ["a"], ["a"]),
    (pa.list_(pa.binary()), [b"a"], ["a"]),
    (pa.list_(pa.dictionary(pa.int32(), pa.string())), ["a"], ["a"]),
    (pa.list_(pa.list_(pa.string())), [["a"], None, ["b", "c"]], ["a", "b", "c"]),
    (pa.list_(pa.int64()), [1, 2], ["1", "2"]),
    (pa.list_(pa.null()), [], []),
    (pa.string(), "['a', 'b']", ["a", "b"]),
    (pa.null(), None, None),
]


@pytest.mark.parametrize(("kind", "value", "expected"), LISTS, ids=lambda value: str(value)[:30])
def test_lists_of_parquet(tmp_path: Path, kind: pa.DataType, value: Any, expected: Any) -> None:
    columns = {"bid": ["i", "j"], "name": ["n", "n"], "n": [3, 3]}
    lists = pa.array([value, None], kind)
    found = batches(write_parquet(tmp_path, columns | {"about": lists, "cats": lists}), "items")
    assert [(row["description"], row["categories"]) for row in rows(found)] == [(expected, expected), (None, None)]


@pytest.mark.parametrize(
    ("key", "column", "message"),
    [
        ("uid", pa.array([{"a": 1}]), "which is no user_id; convert it"),
        ("uid", pa.array([["a"]]), "which is no user_id; convert it"),
        ("uid", pa.array([MOMENT]), "which is no user_id; convert it"),
        ("stars", pa.array([MOMENT]), "which is no rating; convert it"),
        ("body", pa.array([True]), "which is no text; convert it"),
        ("date", pa.array([True]), "which is no timestamp"),
    ],
)
def test_a_type_of_parquet_of_which_nothing_fits_is_one_line(
    tmp_path: Path, key: str, column: pa.Array, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        batches(write_parquet(tmp_path, COLUMNS | {key: column}))

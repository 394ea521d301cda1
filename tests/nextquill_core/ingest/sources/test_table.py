"""The source `table`: JSON lines, CSV and Parquet with columns that the configuration names."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from nextquill_core.errors import DataError
from nextquill_core.ingest.formats import records
from nextquill_core.ingest.sources import source
from nextquill_core.ingest.sources.base import Batch, Part
from tests.nextquill_core.ingest.world import World

REVIEWS = {"user_id": "uid", "item_id": "bid", "rating": "stars", "title": "head", "text": "body", "timestamp": "date"}
ITEMS = {"item_id": "bid", "title": "name", "description": "about", "categories": "cats", "rating_number": "n"}
OPTIONS: dict[str, Any] = {"reviews": REVIEWS, "items": ITEMS}
NOON = 1530964800000  # 2018-07-07 12:00 UTC: 17,719 days and a half
ROW = {"uid": "u1", "bid": "i1", "stars": 4, "head": "h", "body": "good", "date": NOON}
CANONICAL = {"user_id": "u1", "item_id": "i1", "rating": 4.0, "title": "h", "text": "good", "timestamp_ms": NOON}


def batches(
    path: Path, part: Part = "reviews", options: dict[str, Any] | None = None, size: int | None = None
) -> list[Batch]:
    reader = source("table", OPTIONS | (options or {}))
    if size:
        reader.batch_bytes = size
    return list(reader.read(part, path))


def rows(found: Iterable[Batch]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "line"} for batch in found for row in batch.rows.to_dicts()]


def bad(found: Iterable[Batch]) -> list[tuple[int, str]]:
    return [(row.line, row.reason) for batch in found for row in batch.bad]


def as_csv(table: list[dict[str, Any]], **style: Any) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(table[0]), **style)
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue().encode()


def write_csv(folder: Path, data: bytes, name: str = "r.csv") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def write_lines(folder: Path, *found: Any) -> Path:
    path = folder / "r.jsonl"
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in found))
    return path


def write_parquet(folder: Path, columns: dict[str, Any], name: str = "r.parquet") -> Path:
    pq.write_table(pa.table(columns), folder / name)
    return folder / name


def accounted(found: list[Batch], count: int) -> None:
    """Rows, bad rows and blank ones are all there are, and their numbers rise."""
    last = 0
    for batch in found:
        numbers = sorted([*batch.rows["line"].to_list(), *(row.line for row in batch.bad)])
        assert numbers == sorted(set(numbers))
        assert all(last < number <= batch.last_line for number in numbers)
        last = batch.last_line
    assert sum(batch.rows.height + len(batch.bad) + batch.blank for batch in found) == count


HEADER = b"uid,bid,stars,head,body,date\n"
FINE = b"u1,i1,4,h,good,1530964800000"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"u1,i1,4,h,good", "wrong-number-of-fields"),
        (FINE + b",x", "wrong-number-of-fields"),
        (b"x", "wrong-number-of-fields"),
        (b'u1,i1,4,h,"go"od,1', "not-csv"),
        (b'u1,i1,4,h,"good,1', "not-csv"),
        (FINE.replace(b"good", b"\xff"), "invalid-utf8"),
        (FINE.replace(b"good", b"\xed\xa0\x80"), "invalid-utf8"),
        (FINE.replace(b",4,", b",four,"), "wrong-type-stars"),
        (FINE.replace(b",4,", b",NaN,"), "wrong-type-stars"),
        (FINE.replace(b",4,", b",inf,"), "wrong-type-stars"),
        (FINE.replace(b",4,", b",1e999,"), "wrong-type-stars"),
        (FINE.replace(b",4,", b", 4,"), "wrong-type-stars"),
        (FINE.replace(b"1530964800000", b"1.5"), "wrong-type-date"),
        (FINE.replace(b"1530964800000", b"2018-07-07"), "wrong-type-date"),
        (FINE.replace(b"1530964800000", b"99999999999999999999"), "wrong-type-date"),
        (FINE.replace(b"u1", b""), "missing-uid"),
        (FINE.replace(b"i1", b'""'), "missing-bid"),
    ],
)
def test_a_bad_record_is_named_and_hides_no_other(tmp_path: Path, line: bytes, reason: str) -> None:
    found = batches(write_csv(tmp_path, HEADER + FINE + b"\n" + line + b"\n\n" + FINE + b"\n"))
    assert bad(found) == [(3, reason)]
    assert found[0].bad[0].raw == line.decode(errors="replace")
    assert rows(found) == [CANONICAL, CANONICAL]
    assert found[0].rows["line"].to_list() == [2, 5]
    accounted(found, 4)


def test_csv_may_have_a_mark_windows_line_ends_and_line_ends_in_fields(tmp_path: Path) -> None:
    text = 'two\r\nlines, "quoted" and\n\none more \u2028'
    data = b"\xef\xbb\xbf" + as_csv([ROW | {"body": text, "x": 1}, ROW | {"x": 2}], lineterminator="\r\n")
    for name in ("r.csv", "r.CSV", "r.csv.gz"):
        found = batches(write_csv(tmp_path, data, name))
        assert rows(found) == [CANONICAL | {"text": text}, CANONICAL]
        assert found[0].rows["line"].to_list() == [2, 3]
        assert found[0].raw is not None
        assert found[0].raw(2).endswith(",1")


def test_other_delimiters(tmp_path: Path) -> None:
    assert rows(batches(write_csv(tmp_path, as_csv([ROW], delimiter="\t"), "r.tsv.gz"))) == [CANONICAL]
    path = write_csv(tmp_path, as_csv([ROW], delimiter=";"))
    assert rows(batches(path, options={"delimiter": ";"})) == [CANONICAL]
    with pytest.raises(DataError, match="there is no column `uid`"):
        batches(path)


def test_a_lone_carriage_return_needs_no_quotes(tmp_path: Path) -> None:
    found = batches(write_csv(tmp_path, HEADER + FINE.replace(b"good", b"go\rod") + b"\r\n" + FINE))
    assert [row["text"] for row in rows(found)] == ["go\rod", "good"]


def test_csv_breaks_off(tmp_path: Path) -> None:
    data = HEADER + (FINE + b"\n") * 3 + b'u1,i1,4,h,"never closed\n' + (FINE + b"\n") * 2
    found = batches(write_csv(tmp_path, data))
    assert bad(found) == [(5, "not-csv")]
    assert len(rows(found)) == 5
    path = tmp_path / "r.csv.gz"
    path.write_bytes(gzip.compress(data)[:-12])
    found = batches(path)
    assert bad(found)[-1][1] == "truncated-gzip"
    accounted(found, found[-1].last_line - 1)


def test_a_quote_that_spans_too_much_was_never_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_SPAN", 100)
    found = batches(write_csv(tmp_path, HEADER + b'u1,i1,4,h,"open\n' + (FINE + b"\n") * 30))
    assert bad(found) == [(2, "not-csv")]
    assert len(rows(found)) == 30


def test_the_header_of_csv(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no column `stars`; did you mean `star`\?"):
        batches(write_csv(tmp_path, HEADER.replace(b"stars", b"star") + FINE))
    with pytest.raises(DataError, match="there are 2 columns `stars`"):
        batches(write_csv(tmp_path, HEADER.replace(b"head", b"stars") + FINE))
    with pytest.raises(DataError, match=r"the header cannot be read \(invalid-utf8\)"):
        batches(write_csv(tmp_path, b"\xff" + HEADER + FINE))
    assert batches(write_csv(tmp_path, HEADER)) == []


def test_missing_values_of_csv(tmp_path: Path) -> None:
    found = batches(write_csv(tmp_path, HEADER + b"u1,i1,,,,\n"))
    assert rows(found) == [CANONICAL | {"rating": None, "title": "", "text": "", "timestamp_ms": None}]
    path = write_csv(tmp_path, b"bid,name,about,cats,n\n7,x,,,\n8,y,d,c,12\n", "i.csv")
    assert rows(batches(path, "items")) == [
        {"item_id": "7", "title": "x", "description": None, "categories": None, "rating_number": None},
        {"item_id": "8", "title": "y", "description": ["d"], "categories": ["c"], "rating_number": 12.0},
    ]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text('",\r\n\0 a', max_size=8)


@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    table=st.lists(
        st.tuples(TEXT.filter(bool), TEXT.filter(bool), st.floats(allow_nan=False, allow_infinity=False), TEXT, TEXT,
                  st.integers(-(2**63), 2**63 - 1)),
        min_size=1, max_size=6,
    ),
    style=st.sampled_from([("\r\n", csv.QUOTE_MINIMAL), ("\r\n", csv.QUOTE_ALL), ("\n", csv.QUOTE_ALL)]),
    size=st.integers(1, 200),
)  # fmt: skip
def test_what_the_csv_module_writes_is_read_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, table: list[tuple[Any, ...]], style: tuple[str, Any], size: int
) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator=style[0], quoting=style[1])
    writer.writerow(REVIEWS.values())
    writer.writerows(table)
    found = batches(write_csv(tmp_path_factory.mktemp("csv"), out.getvalue().encode()), size=size)
    assert bad(found) == []
    assert [tuple(row.values()) for row in rows(found)] == table
    accounted(found, len(table))


@pytest.mark.parametrize(
    ("times", "value", "expected"),
    [
        ("ms", NOON, NOON),
        ("s", NOON // 1000, NOON),
        ("s", -1, -1000),
        ("iso", "2018-07-07 12:00:00", NOON),
        ("iso", "2018-07-07T12:00Z", NOON),
        ("iso", "2018-07-07T14:00:00.250+02:00", NOON + 250),
        ("iso", "2018-07-07T02:30:00-0930", NOON),
        ("iso", "2018-07-07", NOON - 12 * 3600_000),
        ("%d.%m.%Y %H:%M", "07.07.2018 12:00", NOON),
        ("%Y-%m-%d", "2018-07-07", NOON - 12 * 3600_000),
        ("%Y-%m-%dT%H:%M:%S.%f%z", "2018-07-07T14:00:00.250+0200", NOON + 250),
    ],
)
def test_times(tmp_path: Path, times: str, value: Any, expected: int) -> None:
    options = {"timestamp": times}
    row = ROW | {"date": value}
    for path in (write_lines(tmp_path, row), write_csv(tmp_path, as_csv([row]))):
        assert rows(batches(path, options=options)) == [CANONICAL | {"timestamp_ms": expected}]
    path = write_parquet(tmp_path, {key: [given] for key, given in row.items()})
    assert rows(batches(path, options=options)) == [CANONICAL | {"timestamp_ms": expected}]


@pytest.mark.parametrize(
    ("times", "value"),
    [
        ("iso", "2018-13-07"),
        ("iso", "2018-07-07 25:00"),
        ("iso", "yesterday"),
        ("iso", "1530964800000"),
        ("iso", "2018-07-07 12:00:00 PM"),
        ("%Y-%m-%d", "2018-07-07 12:00"),
        ("%Y-%m-%d", "2018-02-30"),
        ("s", str(2**62)),
    ],
)
def test_times_that_are_none_are_bad(tmp_path: Path, times: str, value: str) -> None:
    good = "1530964800" if times == "s" else "2018-07-07"
    table = [ROW | {"date": good}, ROW | {"date": value}, ROW | {"date": None}]
    for path, line in ((write_lines(tmp_path, *table), 2), (write_csv(tmp_path, as_csv(table)), 3)):
        found = batches(path, options={"timestamp": times})
        assert bad(found) == [(line, "wrong-type-date")]
        assert [row["timestamp_ms"] is None for row in rows(found)] == [False, True]
        accounted(found, 3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"uid": "u2"}, "wrong-type-uid"),
        ({"uid": None}, "missing-uid"),
        ({"bid": ""}, "missing-bid"),
        ({"bid": 5}, "wrong-type-bid"),
        ({"stars": "4"}, "wrong-type-stars"),
        ({"date": "1"}, "wrong-type-date"),
        ({"body": 3}, "wrong-type-body"),
    ],
)
def test_json_lines_are_as_the_first_object_is(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    row = ROW | {"uid": 12, "other": {"uid": "x"}}
    found = batches(write_lines(tmp_path, b"garbage", row, row | change, b"", b"[]", row))
    assert bad(found) == [(1, "not-json"), (3, reason), (5, "not-an-object")]
    assert rows(found) == [CANONICAL | {"user_id": "12"}] * 2
    accounted(found, 6)


def test_json_lines_without_a_key(tmp_path: Path) -> None:
    row = {key: value for key, value in ROW.items() if key != "stars"}
    found = batches(write_lines(tmp_path, row, ROW, {k: v for k, v in ROW.items() if k != "body"}))
    assert bad(found) == [(3, "missing-body")]
    assert rows(found) == [CANONICAL | {"rating": None}, CANONICAL]
    with pytest.raises(DataError, match=r"no object at its beginning has the key `stars`; did you mean `star`\?"):
        batches(write_lines(tmp_path, row | {"star": 3}))
    with pytest.raises(DataError, match=r"`date` holds numbers, but ingest\.options\.timestamp is iso"):
        batches(write_lines(tmp_path, ROW), options={"timestamp": "iso"})
    with pytest.raises(DataError, match="`stars` cannot be both text and a number"):
        batches(write_lines(tmp_path, ROW), options={"reviews": REVIEWS | {"title": "stars"}})


def test_json_numbers_may_be_text(tmp_path: Path) -> None:
    row = ROW | {"stars": "4.0", "date": str(NOON)}
    found = batches(write_lines(tmp_path, row, row | {"stars": "x"}, row | {"date": "1.0"}, row | {"stars": 4}))
    assert rows(found) == [CANONICAL]
    assert bad(found) == [(2, "wrong-type-stars"), (3, "wrong-type-date"), (4, "wrong-type-stars")]


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "table needs `reviews`"),
        ({"reviews": REVIEWS}, "table needs `items`"),
        (OPTIONS | {"delimeter": ","}, "unknown option `delimeter`; did you mean `delimiter`?"),
        (OPTIONS | {"reviews": REVIEWS | {"txt": "x"}}, "options.reviews: unknown option `txt`; did you mean `text`"),
        (OPTIONS | {"reviews": {"user_id": "u"}}, "ingest.options.reviews: table needs `item_id`"),
        (OPTIONS | {"reviews": REVIEWS | {"text": 7}}, "`text`: Input should be a valid string; got 7"),
        (OPTIONS | {"timestamp": "minutes"}, "`timestamp`: ms, s, iso or a pattern"),
        (OPTIONS | {"timestamp": "%Q"}, "`timestamp`: ms, s, iso or a pattern"),
        (OPTIONS | {"ratings": [5, 1]}, "`ratings`: the lowest rating must be less"),
        (OPTIONS | {"delimiter": ", "}, "`delimiter`: one character is needed"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        source("table", options)
    assert message in str(caught.value)
    assert str(caught.value).startswith("ingest.options")
    assert "\n" not in str(caught.value)


def test_a_pattern_without_a_day_and_a_name_without_a_format(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the pattern '%H:%M' does not tell a time"):
        batches(write_lines(tmp_path, ROW), options={"timestamp": "%H:%M"})
    for name in ("r.txt", "r.parquet.gz", "csv", "r.gz"):
        path = write_csv(tmp_path, b"x", name)
        with pytest.raises(DataError, match="its name does not tell a format"):
            source("table", OPTIONS).find(World(tmp_path).config(path, path).inputs[0], fetch=False)


def test_what_is_not_mapped_is_absent() -> None:
    assert source("table", OPTIONS).absent == set()
    reviews = {key: REVIEWS[key] for key in ("user_id", "item_id", "text", "timestamp")}
    reader = source("table", {"reviews": reviews, "items": {"item_id": "b"}, "ratings": [0, 10]})
    told = {"reviews.rating", "reviews.title", "items.title", "items.description", "items.categories"}
    assert reader.absent == {*told, "items.rating_number"}
    assert reader.ratings == (0, 10)

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
from nextquill_core.ingest.formats.values import FIRST_MS, LAST_MS, NULLS
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
        (FINE.replace(b",4,", b",inf,"), "wrong-type-stars"),
        (FINE.replace(b",4,", b",1e999,"), "wrong-type-stars"),
        (FINE.replace(b",4,", b",4 out of 10,"), "wrong-type-stars"),
        (FINE.replace(b"1530964800000", b"1530964800000000"), "wrong-type-date"),
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
    assert rows(batches(path)) == [CANONICAL]  # only with it has the header all columns
    with pytest.raises(DataError, match=r"there is no column `uid`.*set ingest\.options\.delimiter: ';'"):
        batches(path, options={"reviews": REVIEWS | {"title": "headline"}})


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
    with pytest.raises(
        DataError, match=r"the header cannot be read \(invalid-utf8: .*set ingest\.options\.encoding: cp1252"
    ):
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

IDS = TEXT.filter(lambda text: text not in NULLS)


@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    table=st.lists(
        st.tuples(IDS, IDS, st.floats(allow_nan=False, allow_infinity=False), TEXT, TEXT,
                  st.integers(FIRST_MS, LAST_MS)),
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
    ("change", "expected"),
    [
        ({"uid": "u2"}, {"user_id": "u2"}),
        ({"uid": None}, "missing-uid"),
        ({"bid": ""}, "missing-bid"),
        ({"bid": 5}, {"item_id": "5"}),
        ({"bid": True}, "wrong-type-bid"),
        ({"stars": "4"}, {}),
        ({"stars": [4]}, "wrong-type-stars"),
        ({"date": str(NOON)}, {}),
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


def test_json_lines_without_a_key(tmp_path: Path) -> None:
    row = {key: value for key, value in ROW.items() if key != "stars"}
    found = batches(write_lines(tmp_path, row, ROW, {k: v for k, v in ROW.items() if k != "body"}))
    assert bad(found) == []
    assert rows(found) == [CANONICAL | {"rating": None}, CANONICAL, CANONICAL | {"text": None}]
    with pytest.raises(DataError, match=r"no object has the key `stars`; did you mean `star`\?"):
        batches(write_lines(tmp_path, row | {"star": 3}))
    found = batches(write_lines(tmp_path, ROW), options={"timestamp": "iso"})
    assert [(each.reason, each.detail, each.remedy) for each in found[0].bad] == [
        ("wrong-type-date", "date is 1530964800000", "set ingest.options.timestamp: ms")
    ]


def test_json_numbers_may_be_text(tmp_path: Path) -> None:
    row = ROW | {"stars": "4.0", "date": str(NOON)}
    found = batches(write_lines(tmp_path, row, row | {"stars": "x"}, row | {"date": "1.0"}, row | {"stars": 4}))
    assert rows(found) == [CANONICAL, CANONICAL | {"timestamp_ms": 1}, CANONICAL]
    assert bad(found) == [(2, "wrong-type-stars")]


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
        (OPTIONS | {"delimeter": ","}, "unknown option `delimeter`; did you mean `delimiter`?"),
        (OPTIONS | {"reviews": REVIEWS | {"txt": "x"}}, "options.reviews: unknown option `txt`; did you mean `text`"),
        (OPTIONS | {"reviews": {"user_id": "u"}}, "ingest.options.reviews: table needs `item_id`"),
        (OPTIONS | {"reviews": REVIEWS | {"text": 7.5}}, "`text`: Input should be a valid string; got 7.5"),
        (OPTIONS | {"timestamp": "minutes"}, "`timestamp`: s, ms, us, ns, iso or a pattern"),
        (OPTIONS | {"timestamp": "%Q"}, "`timestamp`: s, ms, us, ns, iso or a pattern"),
        (OPTIONS | {"ratings": [5, 1]}, "`ratings`: the lowest rating must be less"),
        (OPTIONS | {"delimiter": ", "}, "`delimiter`: one character is needed"),
        (OPTIONS | {"encoding": "latin-x"}, "`encoding`: Python knows no such encoding"),
        (OPTIONS | {"encoding": "rot13"}, "`encoding`: Python knows no such encoding"),
        (OPTIONS | {"quote": "''"}, "`quote`: one character or `none` is needed"),
        (OPTIONS | {"header": ["a", "a"]}, "`header`: the name of every column is needed, each once"),
        (OPTIONS | {"rating_words": {True: 1}}, 'put words such as "yes" and "no" in quotes'),
        (OPTIONS | {"files": {"items": {"encodin": "x"}}}, "unknown option `encodin`; did you mean `encoding`?"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        source("table", options)
    assert message in str(caught.value)
    assert str(caught.value).startswith("ingest.options")
    assert "\n" not in str(caught.value)


def test_a_pattern_without_a_day_and_a_name_without_a_format(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the pattern '%H:%M' does not give a date"):
        batches(write_lines(tmp_path, ROW), options={"timestamp": "%H:%M"})
    for name in ("r.txt", "r.parquet.gz", "csv", "r.gz"):
        path = write_csv(tmp_path, b"x", name)
        with pytest.raises(DataError, match="its name does not show a format"):
            source("table", OPTIONS).find(World(tmp_path).config(path, path).inputs[0], fetch=False)


def test_what_is_not_mapped_is_absent() -> None:
    assert source("table", OPTIONS).absent == set()
    reviews = {key: REVIEWS[key] for key in ("user_id", "item_id", "text", "timestamp")}
    reader = source("table", {"reviews": reviews, "items": {"item_id": "b"}, "ratings": [0, 10]})
    told = {"reviews.rating", "reviews.title", "items.title", "items.description", "items.categories"}
    assert reader.absent == {*told, "items.rating_number"}
    assert reader.ratings == (0, 10)


ESCAPED = 'u1,i1,4,h,"say \\"hi\\", C:\\new \\\\ ""x""",1530964800000\n'
DIALECTS: list[tuple[bytes, dict[str, Any], dict[str, Any]]] = [
    (HEADER + ESCAPED.encode(), {"escape": "\\"}, {"text": 'say "hi", C:\\new \\ "x"'}),
    (b"'uid','bid','stars','head','body','date'\n'u1','i1','4','h','it''s \"so\", yes','1530964800000'\n",
     {"quote": "'"}, {"text": 'it\'s "so", yes'}),
    (HEADER + b'u1,i1,4,"h,5" of,good,1530964800000\n'.replace(b",5", b"5"), {"quote": "none"}, {"title": '"h5" of'}),
    (HEADER.replace(b",", b";") + FINE.replace(b",", b";").replace(b";4;", b";4,5;"), {}, {"rating": 4.5}),
    (HEADER.replace(b",", b"|") + FINE.replace(b",", b"|"), {}, {}),
    (b"sep=;\r\n" + HEADER.replace(b",", b";") + FINE.replace(b",", b";"), {}, {}),
    (b'\xef\xbb\xbf"sep=\t"\n' + HEADER.replace(b",", b"\t") + FINE.replace(b",", b"\t"), {}, {}),
    (FINE, {"header": list(REVIEWS.values())}, {}),
    (FINE, {"header": False, "reviews": dict(zip(REVIEWS, range(1, 7), strict=True))}, {}),
    (HEADER + FINE, {"header": False}, {}),  # `uid` is no number, so the first record is a header
    (b"u1\ti1\t\\N\th\\\tx\\ny\\\n\\\\N\tgood\t1530964800000\n",
     {"header": list(REVIEWS.values()), "quote": "none", "escape": "\\", "delimiter": "\t"},
     {"rating": None, "title": "h\tx\ny\n\\N"}),
    (FINE.replace(b",", b"\t"), {"files": {"reviews": {"header": list(REVIEWS.values()), "delimiter": "\t"}}}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("data", "options", "expected"), DIALECTS)
def test_dialects_of_csv(tmp_path: Path, data: bytes, options: dict[str, Any], expected: dict[str, Any]) -> None:
    for size in (None, 1):
        found = batches(write_csv(tmp_path, data), options=options, size=size)
        assert bad(found) == []
        assert rows(found) == [CANONICAL | expected]


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        (HEADER + ESCAPED.encode(), r"set ingest.options.escape: '\'"),
        (HEADER + b"'u1','i1','4','h','good, fine','1'", 'set ingest.options.quote: "\'"'),
        (HEADER + b'u1,i1,4,"h" of,good,1', "if fields have no quotes around them, set ingest.options.quote: none"),
    ],
)
def test_a_record_of_another_dialect_names_the_option(tmp_path: Path, data: bytes, remedy: str) -> None:
    ((found,),) = [batch.bad for batch in batches(write_csv(tmp_path, data))]
    assert found.remedy == remedy


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (FINE, {}, "4, h, good, 1530964800000; if the file has no header, set ingest.options.header"),
        (FINE, {"header": False}, "there is no column `uid`; the file has: 1, 2, 3, 4, 5, 6"),
        (FINE, {"header": ["a"]}, "there is no column `uid`; the file has: a"),
        (b"'uid','bid'\n", {}, "the header has quotes: set ingest.options.quote: \"'\""),
    ],
)  # fmt: skip
def test_a_header_of_another_dialect_names_the_option(
    tmp_path: Path, data: bytes, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        batches(write_csv(tmp_path, data), options=options)
    assert message in str(caught.value)


SIGNS = st.text("\",;\\\n \t'ñx", max_size=8)


@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    table=st.lists(st.tuples(IDS.filter(lambda text: "\r" not in text), SIGNS, SIGNS), min_size=1, max_size=4),
    delimiter=st.sampled_from([",", ";", "\t"]),
    quote=st.sampled_from(['"', "'"]),
    size=st.integers(1, 100),
)
def test_fields_in_quotes_with_escapes_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, table: list[tuple[str, ...]], delimiter: str, quote: str, size: int
) -> None:
    """As Spark writes them: a backslash before quotes and itself, all fields in quotes."""

    def field(text: str) -> str:
        return quote + text.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote

    records = [("uid", "head", "body"), *table]
    data = "".join(delimiter.join(map(field, record)) + "\n" for record in records)
    options = {
        "reviews": {"user_id": "uid", "item_id": "uid", "title": "head", "text": "body", "timestamp": "body"},
        "delimiter": delimiter, "quote": quote, "escape": "\\", "timestamp": "iso",
    }  # fmt: skip
    found = batches(write_csv(tmp_path_factory.mktemp("csv"), data.encode()), options=options, size=size)
    seen = [(row["user_id"], row["title"]) for row in rows(found)]
    refused = {row.line for batch in found for row in batch.bad if row.reason == "wrong-type-body"}
    assert len(refused) == sum(len(batch.bad) for batch in found)
    assert seen == [(uid, head) for line, (uid, head, _) in enumerate(table, 2) if line not in refused]


def test_rows_of_an_array_and_of_python_are_read(tmp_path: Path) -> None:
    table = [ROW, ROW | {"uid": 7.0, "other": float("nan")}, ROW | {"stars": True, "other": {"uid": "x"}}]
    expected = [CANONICAL, CANONICAL | {"user_id": "7"}, CANONICAL | {"rating": 1.0}]
    for indent in (None, 1):
        path = write_csv(tmp_path, ("\n " + json.dumps(table, indent=indent)).encode(), "r.json")
        for size in (None, 1):
            found = batches(path, size=size)
            assert rows(found) == expected
            assert [line for batch in found for line in batch.rows["line"]] == [1, 2, 3]
            accounted(found, 3)
    found = batches(write_csv(tmp_path, b"\n\n" + "\n".join(map(repr, table)).encode(), "r.json.gz"))
    assert rows(found) == expected
    path = write_csv(tmp_path, json.dumps(table).encode()[:-1], "r.json")
    with pytest.raises(DataError, match="the array breaks off in element 3"):
        batches(path)


def test_a_key_that_only_later_rows_or_other_files_have_is_missing_before(tmp_path: Path) -> None:
    keys = {key: value for key, value in ROW.items() if key != "stars"}
    table = [keys] * 2500 + [ROW]
    path = write_csv(tmp_path, b"\n".join(json.dumps(row).encode() for row in table), "a.jsonl")
    assert [row["rating"] for row in rows(batches(path, size=1000))] == [None] * 2500 + [4.0]
    other = write_csv(tmp_path, json.dumps(keys).encode(), "b.jsonl")
    with pytest.raises(DataError, match="no object has the key `stars`"):
        batches(other)
    reader = source("table", OPTIONS)
    reader.find(World(tmp_path).config(tmp_path / "*.jsonl", other).inputs[0], fetch=False)
    assert rows(reader.read("reviews", other)) == [CANONICAL | {"rating": None}]


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

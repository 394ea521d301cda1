"""CSV: records, dialects and headers."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from nextquill_core.errors import DataError
from nextquill_core.ingest.formats import csv_files
from nextquill_core.ingest.formats.values import FIRST_MS, LAST_MS, NULLS
from tests.effort import trials
from tests.nextquill_core.ingest.tables import (
    CANONICAL,
    FINE,
    HEADER,
    REVIEWS,
    ROW,
    accounted,
    as_csv,
    bad,
    batches,
    rows,
    write_csv,
)


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
    monkeypatch.setattr(csv_files, "MAX_SPAN", 100)
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


@settings(max_examples=trials(60), deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
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


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (FINE, {"quote": ","}),
        (FINE, {"escape": ","}),
        (FINE, {"delimiter": ";", "files": {"reviews": {"quote": ";"}}}),
        (b'sep="\n', {}),
        (b"sep=\\\n", {"escape": "\\"}),
    ],
)
def test_characters_that_mean_two_things_are_refused(tmp_path: Path, data: bytes, options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"ingest\.options: delimiter, quote and escape must differ"):
        batches(write_csv(tmp_path, data), options=options)


def test_a_quote_may_be_a_usual_delimiter_where_another_one_is_set(tmp_path: Path) -> None:
    data = (HEADER + FINE).replace(b",", b";").replace(b"good", b",go;od,")
    assert rows(batches(write_csv(tmp_path, data), options={"quote": ",", "delimiter": ";"})) == [
        CANONICAL | {"text": "go;od"}
    ]


SIGNS = st.text("\",;\\\n \t'ñx", max_size=8)


@settings(max_examples=trials(60), deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    table=st.lists(st.tuples(IDS.filter(lambda text: "\r" not in text), SIGNS, SIGNS), min_size=1, max_size=4),
    delimiter=st.sampled_from([",", ";", "\t"]),
    quote=st.sampled_from(['"', "'"]),
    size=st.integers(1, 100),
)
def test_fields_in_quotes_with_escapes_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, table: list[tuple[str, ...]], delimiter: str, quote: str, size: int
) -> None:
    # as Spark writes them: a backslash before quotes and itself, all fields in quotes

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

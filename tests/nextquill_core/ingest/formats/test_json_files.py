"""JSON files: lines, arrays, and keys that are missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nextquill_core.errors import DataError
from nextquill_core.ingest.formats.json_files import elements
from nextquill_core.ingest.sources import source
from tests.nextquill_core.ingest.tables import (
    CANONICAL,
    NOON,
    OPTIONS,
    ROW,
    accounted,
    bad,
    batches,
    rows,
    write_csv,
    write_lines,
)
from tests.nextquill_core.ingest.world import World


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


def test_json_lines_in_another_encoding(tmp_path: Path) -> None:
    line = '{"uid": "u1", "bid": "i1", "stars": 4, "head": "h", "body": "é", "date": 1530964800000, "x": "ü"}'
    other = line.replace("é", "e")
    path = write_csv(tmp_path, f"{line}\n{other}\n".encode("cp1252"), "r.jsonl")
    (batch,) = batches(path)
    assert [(row.line, row.reason) for row in batch.bad] == [(1, "invalid-utf8")]  # in line 2 it is no mapped key
    assert "encoding: cp1252" in batch.bad[0].remedy
    assert [row["text"] for row in rows([batch])] == ["e"]
    found = batches(path, options={"encoding": "latin-1"}, size=20)
    assert [row["text"] for row in rows(found)] == ["é", "e"]
    rest = source("table", OPTIONS | {"encoding": "latin-1"}).read("reviews", path, found[0].resume)
    assert [row["text"] for row in rows(rest)] == ["e"]


def test_elements_do_not_depend_on_where_reading_stops(tmp_path: Path) -> None:
    parts = [b'{"a": "x,]}\\\\\\"[", "b": [1, {"c": []}]}', b" 7", b'"\\\\"', b"[[],[]]", '"é😀"'.encode()]
    path = write_csv(tmp_path, b"\xef\xbb\xbf\n [" + b",".join(parts) + b"] \n", "r.json")
    for size in (3, 4, 7, 1000):
        assert [element for element, _, _ in elements(path, size)] == parts


def test_an_array_in_another_encoding(tmp_path: Path) -> None:
    table = [ROW | {"body": "é", "date": NOON + number} for number in range(3)]
    text = json.dumps(table, ensure_ascii=False, indent=1)
    expected = [CANONICAL | {"text": "é", "timestamp_ms": NOON + number} for number in range(3)]
    for encoding, name in (("cp1252", "r.json"), ("utf-16-le", "r.json.gz"), ("utf-16-be", "r.json")):
        path = write_csv(tmp_path, text.encode(encoding), name)
        for size in (None, 1):
            assert rows(batches(path, options={"encoding": encoding}, size=size)) == expected
    assert rows(batches(write_csv(tmp_path, text.encode("utf-16"), "r.json"))) == expected  # it has a mark
    with pytest.raises(DataError, match="is UTF-16-LE without a byte order mark"):
        batches(write_csv(tmp_path, text.encode("utf-16-le"), "r.json"))

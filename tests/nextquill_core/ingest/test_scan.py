"""Scans: bad rows are named, none is lost, and nothing depends on where blocks end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nextquill_core.errors import DataError
from nextquill_core.ingest import scan
from nextquill_core.ingest.scan import join_description
from nextquill_core.ingest.sources import JsonLines
from tests.nextquill_core.ingest.formats.test_json_parser import BAD, GOOD
from tests.nextquill_core.ingest.reference import describe
from tests.nextquill_core.ingest.world import (
    AS_TABLE,
    World,
    item,
    lines,
    plain_category,
    review,
    trained,
    trained_items,
    without_examples,
)


def test_a_null_among_the_parts_of_a_description_is_left_out(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.ingest([review(), *trained()], [item(description=["a", None, "b"]), *trained_items()])
    assert world.table("items")[0]["description"] == "a b"


def dirty_reviews() -> bytes:
    reviews, _ = plain_category()
    rows: list[bytes] = [json.dumps(row, ensure_ascii=False).encode() for row in reviews]
    for place, (line, _) in enumerate(BAD):
        rows.insert(place * 2 % len(rows), line)
    rows.insert(3, b"")
    rows.insert(9, b"  \t")
    return lines(rows)


def test_nothing_depends_on_blocks_compression_line_ends_or_the_last_newline(tmp_path: Path) -> None:
    data, (_, items) = dirty_reviews(), plain_category()
    world = World(tmp_path)
    world.write("i.jsonl", items)
    stats = without_examples(world.run(world.config(world.write("r.jsonl", data), tmp_path / "i.jsonl")))
    assert stats["users"] == 4
    assert len(world.table("quarantine")) == len(BAD)
    tables = {name: world.table(name) for name in ("sequences", "items", "examples")}
    shards = world.shards()
    variants = {
        "tiny": (data, 7),
        "small": (data, 2000),
        "zipped": (data, 1500),
        "bom": (b"\xef\xbb\xbf" + data, 3000),
        "crlf": (data.replace(b"\n", b"\r\n"), 2500),
        "cut": (data[:-1], 5000),
    }
    for name, (content, block_bytes) in variants.items():
        suffix = ".gz" if name == "zipped" else ""
        out = tmp_path / name
        path = world.write(f"r.jsonl{suffix}", content)
        assert without_examples(world.run(world.config(path, tmp_path / "i.jsonl"), block_bytes, out)) == stats, name
        assert {table: world.table(table, out) for table in tables} == tables, name
        if name not in ("crlf", "zipped"):  # the raw text of bad rows has the line end in it; the file's name differs
            assert world.shards(out) == shards, name


def test_the_quarantine_holds_file_line_reason_and_capped_text(tmp_path: Path) -> None:
    reviews, items = plain_category()
    world = World(tmp_path)
    long = GOOD[:-1] + b', "x": "' + "é".encode() * 6000
    stats = world.ingest([reviews[0], b"", long, *reviews[1:], b"nothing"], [*items, b"{}"])
    assert world.table("quarantine") == [
        {"file": "i.jsonl", "line": 7, "reason": "missing-parent_asin", "raw": "{}"},
        {"file": "r.jsonl", "line": 3, "reason": "not-json", "raw": long.decode()[:2000]},
        {"file": "r.jsonl", "line": 27, "reason": "not-json", "raw": "nothing"},
    ]
    assert stats["reviews"] == {"read": 26, "kept": 24, "dropped": {"not-json": 2}}
    assert stats["items"] == {"read": 7, "kept": 6, "dropped": {"missing-parent_asin": 1}}


def test_bad_rows_can_be_counted_only(tmp_path: Path) -> None:
    reviews, items = plain_category()
    world = World(tmp_path)
    stats = world.ingest([*reviews, b"x"], items, bad_rows="drop")
    assert world.table("quarantine") == []
    assert stats["reviews"]["dropped"] == {"not-json": 1}


def test_bad_rows_can_stop_the_run_at_the_first(tmp_path: Path) -> None:
    reviews, items = plain_category()
    with pytest.raises(DataError, match=r"r\.jsonl, line 3: not-json: x y; fix the line, or set ingest\.bad_rows"):
        World(tmp_path).ingest([*reviews[:2], b"x y", b"z"], items, bad_rows="fail")


def test_too_many_bad_rows_stop_the_run_and_the_commonest_are_shown(tmp_path: Path) -> None:
    reviews, items = plain_category()
    bad = [b"x", b"x2", b"{}", b"{}", b"{}", b"[]", b"\xff", b"[1]", b"{}"]
    with pytest.raises(DataError) as caught:
        World(tmp_path).ingest([*reviews, *bad], items, max_bad_share=0.2)
    message = str(caught.value)
    assert message.startswith("reviews: ")
    assert "9 of 33 rows cannot be read (27.27%, allowed are 20.00%)" in message
    assert "missing-user_id 4× (r.jsonl:27: {})" in message
    assert "not-json 2× (r.jsonl:25: x)" in message
    assert "not-an-object 2× (r.jsonl:30: [])" in message
    assert "invalid-utf8" not in message
    assert "ingest.max_bad_share" in message


GREAT = "wrong-type-rating {}(r.jsonl:{}: rating is 'great')"
SET_WORDS = 'set ingest.options.rating_words: {"great": NUMBER}'


def test_a_message_shows_the_value_and_the_option_that_would_accept_it(tmp_path: Path) -> None:
    reviews, items = plain_category()
    great = [row | {"rating": "great"} for row in reviews]
    settings = {"source": "table", "options": AS_TABLE, "max_bad_share": 0.0}
    with pytest.raises(DataError) as caught:
        World(tmp_path).ingest(great, items, **settings)
    assert f"none of 24 rows can be read, the first is {GREAT.format('', 1)}; {SET_WORDS}" in str(caught.value)
    with pytest.raises(DataError) as caught:
        World(tmp_path / "few").ingest([*reviews, great[0], great[1]], items, **settings)
    assert f"{GREAT.format('2× ', 25)}; {SET_WORDS}, or raise ingest.max_bad_share" in str(caught.value)
    with pytest.raises(DataError) as caught:
        World(tmp_path / "fail").ingest([reviews[0], great[0]], items, **settings, bad_rows="fail")
    assert f"line 2: wrong-type-rating: rating is 'great'; {SET_WORDS}, or set ingest.bad_rows" in str(caught.value)
    words = AS_TABLE | {"rating_words": {"great": 5}}
    assert World(tmp_path / "words").ingest(great, items, **settings | {"options": words})["users"] == 4


def test_a_run_that_goes_wrong_stops_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "TELLING_ROWS", 100)
    reviews, items = plain_category()
    rows: list[Any] = [*reviews, *([b"x"] * 300), *([review("u", f"i{i}", i) for i in range(400)])]
    world = World(tmp_path)
    config = world.config(world.write("r.jsonl", rows), world.write("i.jsonl", items), max_bad_share=0.2)
    with pytest.raises(DataError, match=r"of 4\d\d rows cannot be read .*not-json"):
        world.run(config, batch_bytes=500)
    assert world.run(config.model_copy(update={"max_bad_share": 0.5}), batch_bytes=500)["reviews"]["read"] == 724


def test_bad_rows_at_the_beginning_of_a_good_file_do_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "TELLING_ROWS", 10)
    reviews, items = plain_category()
    world = World(tmp_path)
    config = world.config(
        world.write("r.jsonl", [b"x", b"y", *reviews * 20]), world.write("i.jsonl", items), max_bad_share=0.01
    )
    assert world.run(config, batch_bytes=2000)["reviews"]["dropped"]["not-json"] == 2


def test_a_source_that_does_not_say_how_far_it_has_read_is_judged_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "TELLING_ROWS", 10)
    read = JsonLines.read
    monkeypatch.setattr(JsonLines, "read", lambda *given: (replace(batch, position=0) for batch in read(*given)))
    reviews, items = plain_category()
    world = World(tmp_path)
    config = world.config(world.write("r.jsonl", [b"x", *reviews]), world.write("i.jsonl", items), max_bad_share=0.05)
    assert world.run(config, batch_bytes=2000)["reviews"]["dropped"]["not-json"] == 1
    with pytest.raises(DataError, match="1 of 25 rows cannot be read"):
        world.run(config.model_copy(update={"max_bad_share": 0.01}), out=tmp_path / "again")


def test_a_source_may_name_its_reasons_as_the_protocol_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = JsonLines.read
    reason = "duplicate_row"
    monkeypatch.setattr(
        JsonLines,
        "read",
        lambda *given: (
            replace(batch, bad=[replace(row, reason=reason) for row in batch.bad]) for batch in read(*given)
        ),
    )
    reviews, items = plain_category()
    world = World(tmp_path)
    config = world.config(
        world.write("r.jsonl", [b"x", *reviews, reviews[0]]), world.write("i.jsonl", items), max_bad_share=0.5
    )
    assert world.run(config)["reviews"]["dropped"][reason] == 2


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (None, ""),
        ([], ""),
        (["a"], "a"),
        (["a", "", "b"], "a  b"),
        (["Product Description"], ""),
        (["Product Description", "a", "b"], "a b"),
        (["Product Description", "Product Description"], "Product Description"),
        (["Product Description ", "a"], "Product Description  a"),
        (["a", "Product Description"], "a Product Description"),
    ],
)
def test_a_description_is_its_parts_without_the_heading(parts: list[str] | None, text: str) -> None:
    frame = pl.DataFrame({"description": [parts]}, schema={"description": pl.List(pl.String)})
    assert frame.select(join_description(pl.col("description"))).item() == text == describe({"description": parts})

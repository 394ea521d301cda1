"""Lines that cannot be read: each is named, none vanishes, and nothing depends on where blocks end."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from nextquill_core.errors import DataError
from nextquill_core.ingest.formats import blocks
from nextquill_core.ingest.formats.blocks import Block, read_blocks
from nextquill_core.ingest.formats.fields import layout_fields
from nextquill_core.ingest.formats.parse import Parser
from nextquill_core.ingest.sources import Amazon2023
from tests.nextquill_core.ingest.world import (
    World,
    item,
    lines,
    plain_category,
    review,
    trained,
    trained_items,
    without_examples,
)

GOOD = json.dumps(review()).encode()
BAD = [
    (GOOD[:40], "not-json"),
    (GOOD[:-1], "not-json"),
    (b"garbage", "not-json"),
    (GOOD + GOOD, "not-json"),
    (GOOD + b" x", "not-json"),
    (GOOD[:-1] + b",}", "not-json"),
    (b"null", "not-an-object"),
    (b"[1, 2]", "not-an-object"),
    (b'"text"', "not-an-object"),
    (b"7", "not-an-object"),
    (GOOD.replace(b"5.0", b"-Infinity"), "wrong-type-rating"),
    (GOOD.replace(b"5.0", b"1e999"), "wrong-type-rating"),
    (GOOD.replace(b"5.0", b"05"), "not-json"),
    (GOOD.replace(b"5.0", b'"5.0"'), "wrong-type-rating"),
    (GOOD.replace(b"5.0", b"true"), "wrong-type-rating"),
    (GOOD.replace(b"5.0", b"[5]"), "wrong-type-rating"),
    (GOOD.replace(b'"good"', b"7"), "wrong-type-text"),
    (GOOD.replace(b'"good"', b"true"), "wrong-type-text"),
    (GOOD.replace(b'"good"', b'["good"]'), "wrong-type-text"),
    (GOOD.replace(b'"good"', b'{"a": 1}'), "wrong-type-text"),
    (GOOD.replace(b'"u1"', b"12"), "wrong-type-user_id"),
    (GOOD.replace(b'"timestamp": 1', b'"timestamp": "1"'), "wrong-type-timestamp"),
    (GOOD.replace(b'"timestamp": 1', b'"timestamp": 9007199254740992.0'), "wrong-type-timestamp"),
    (GOOD.replace(b'"timestamp": 1', b'"timestamp": 123456789012345678901'), "wrong-type-timestamp"),
    (GOOD.replace(b'"good"', b'"\\ud800"'), "lone-surrogate"),
    (GOOD.replace(b'"good"', b'"\\udc00\\ud800"'), "lone-surrogate"),
    (GOOD.replace(b'"good"', b'"\\q"'), "not-json"),
    (GOOD.replace(b'"good"', b'"go\x00od"'), "not-json"),
    (GOOD.replace(b'"good"', b'"go\tod"'), "not-json"),
    (GOOD.replace(b'"good"', b'"go\rod"'), "not-json"),
    (GOOD.replace(b'"good"', b'"\xff"'), "invalid-utf8"),
    (GOOD.replace(b'"good"', b'"\xed\xa0\x80"'), "invalid-utf8"),
    (GOOD.replace(b'"good"', b'"\xc0\x80"'), "invalid-utf8"),
    (b"\xff\xfe\x00", "invalid-utf8"),
    (b"\x00\x00\x00", "not-json"),
    (GOOD[:-1] + b', "text": "again"}', "duplicate-text"),
    (GOOD[:-1] + b', "text": null}', "duplicate-text"),
    (b"{}", "missing-user_id"),
    (GOOD.replace(b'"user_id"', b'"reviewerID"'), "missing-user_id"),
    (GOOD.replace(b'"u1"', b"null"), "missing-user_id"),
    (GOOD.replace(b'"i1"', b"null"), "missing-parent_asin"),
    (GOOD.replace(b'"text"', b'"reviewText"'), "missing-text"),
    (GOOD.replace(b'"timestamp"', b'"time"'), "missing-timestamp"),
]
FINE = [
    GOOD,
    b"  " + GOOD + b" \t",
    GOOD.replace(b"5.0", b"5"),
    GOOD.replace(b"5.0", b"null"),
    GOOD.replace(b'"good"', b"null"),
    GOOD.replace(b'"timestamp"', b'"sort_timestamp"'),
    GOOD.replace(b'"good"', b'"\\ud83d\\ude00 \\u0000"'),
    GOOD.replace(b'"good"', '"\u2028\x85"'.encode()),
    GOOD[:-1] + b', "images": [{"text": 5}], "details": {"rating": "x"}, "price": "x"}',
    GOOD[:-1] + b', "price": 3, "price": {"a": [null]}, "videos": []}',
    GOOD[:-1] + b', "price": NaN, "a": -Infinity, "b": [NaN], "c": Inf, "d": nan, "e": 1e999}',
    GOOD[:-1] + b', "x": "\\ud800", "y": "\\q", "z": "tab\there", "\\udc00": 1}',
    GOOD[:-1] + b', "latin": "caf\xe9"}',
    GOOD[:-1] + b', "n": ' + b"9" * 5000 + b"}",
    GOOD.replace(b"5.0", b"NaN"),
    GOOD.replace(b'"timestamp": 1', b'"timestamp": 1.0'),
    GOOD[:-1] + b', "deep": ' + b"[" * 3000 + b"]" * 3000 + b"}",
]


@pytest.fixture(scope="module")
def parser() -> Parser:
    return Parser(layout_fields(Amazon2023.columns["reviews"], "reviews"), "reviews")


@pytest.mark.parametrize(("line", "reason"), BAD, ids=lambda value: repr(value)[:50])
def test_a_bad_line_is_named(parser: Parser, line: bytes, reason: str) -> None:
    parsed = parser.parse(Block(b"\n".join([GOOD, line, GOOD]), first_line=5, end=0, position=0))
    assert [(bad.line, bad.reason) for bad in parsed.bad] == [(6, reason)]
    assert parsed.bad[0].raw == line.decode(errors="replace")
    assert parsed.rows["line"].to_list() == [5, 7]


@pytest.mark.parametrize("line", FINE, ids=lambda value: repr(value)[:50])
def test_a_line_that_is_json_is_a_row_whatever_else_it_holds(parser: Parser, line: bytes) -> None:
    parsed = parser.parse(Block(line + b"\n", 1, 0, 0))
    assert not parsed.bad
    row = json.loads(line if line in FINE[:9] else GOOD)
    rating = None if b'"rating": NaN' in line else row["rating"]
    expected = {
        "line": 1, "user_id": "u1", "item_id": "i1", "rating": rating, "title": "t", "text": row["text"],
        "timestamp_ms": 1,
    }  # fmt: skip
    assert parsed.rows.to_dicts() == [expected]


def test_a_line_has_the_same_outcome_in_any_company(parser: Parser) -> None:
    chance = random.Random(3)
    pool = [(line, reason) for line, reason in BAD] + [(line, None) for line in FINE] + [(b"", ""), (b" \t\r", "")]
    for _ in range(30):
        some = [chance.choice(pool) for _ in range(chance.randrange(1, 40))]
        parsed = parser.parse(Block(b"\n".join(line for line, _ in some) + b"\n", 1, 0, 0))
        assert [(bad.line, bad.reason) for bad in parsed.bad] == [(i, why) for i, (_, why) in enumerate(some, 1) if why]
        assert parsed.rows["line"].to_list() == [i for i, (_, why) in enumerate(some, 1) if why is None]
        assert parsed.blank == sum(why == "" for _, why in some)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"description": "text"}, "wrong-type-description"),
        ({"description": ["a", 5]}, "wrong-type-description"),
        ({"categories": "c"}, "wrong-type-categories"),
        ({"rating_number": "3"}, "wrong-type-rating_number"),
        ({"title": 3}, "wrong-type-title"),
        ({"parent_asin": None}, "missing-parent_asin"),
    ],
)
def test_a_bad_item_is_named(change: dict[str, object], reason: str) -> None:
    parsed = Parser(layout_fields(Amazon2023.columns["items"], "items"), "items").parse(
        Block(lines([item(), item() | change, item()]), 1, 0, 0)
    )
    assert [(bad.line, bad.reason) for bad in parsed.bad] == [(2, reason)]


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


def test_a_line_that_is_too_long_is_one_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.jsonl"
    long = GOOD[:-1] + b', "x": "' + b"y" * 300 + b'"}'
    path.write_bytes(b"\n".join([GOOD, long, GOOD, long]))
    parser = Parser(layout_fields(Amazon2023.columns["reviews"], "reviews"), "reviews", max_line_bytes=200)
    monkeypatch.setattr(blocks, "LONG_LINE_BYTES", 150)
    for block_bytes in (10, 150, 250, 10_000):
        parsed = [parser.parse(b) for b in read_blocks(path, block_bytes=block_bytes, max_line_bytes=200)]
        assert [(bad.line, bad.reason) for p in parsed for bad in p.bad] == [(2, "line-too-long"), (4, "line-too-long")]
        assert [line for p in parsed for line in p.rows["line"]] == [1, 3]
        assert all(bad.raw.startswith(GOOD[:-1].decode()) for p in parsed for bad in p.bad)


TABLE = {
    "reviews": {"user_id": "user_id", "item_id": "parent_asin", "rating": "rating", "text": "text",
                "timestamp": "timestamp"},
    "items": {"item_id": "parent_asin"},
}  # fmt: skip
GREAT = "wrong-type-rating {}(r.jsonl:{}: rating is 'great')"
SET_WORDS = 'set ingest.options.rating_words: {"great": NUMBER}'


def folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def test_a_message_shows_the_value_and_the_option_that_would_accept_it(tmp_path: Path) -> None:
    reviews, items = plain_category()
    great = [row | {"rating": "great"} for row in reviews]
    settings = {"source": "table", "options": TABLE, "max_bad_share": 0.0}
    with pytest.raises(DataError) as caught:
        World(tmp_path).ingest(great, items, **settings)
    assert f"none of 24 rows can be read, the first is {GREAT.format('', 1)}; {SET_WORDS}" in str(caught.value)
    with pytest.raises(DataError) as caught:
        World(folder(tmp_path, "few")).ingest([*reviews, great[0], great[1]], items, **settings)
    assert f"{GREAT.format('2× ', 25)}; {SET_WORDS}, or raise ingest.max_bad_share" in str(caught.value)
    with pytest.raises(DataError) as caught:
        World(folder(tmp_path, "fail")).ingest([reviews[0], great[0]], items, **settings, bad_rows="fail")
    assert f"line 2: wrong-type-rating: rating is 'great'; {SET_WORDS}, or set ingest.bad_rows" in str(caught.value)
    words = TABLE | {"rating_words": {"great": 5}}
    assert World(folder(tmp_path, "words")).ingest(great, items, **settings | {"options": words})["users"] == 4


def test_a_block_may_be_a_blank_line(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"\n" + GOOD + b"\n\n")
    parser = Parser(layout_fields(Amazon2023.columns["reviews"], "reviews"), "reviews")
    parsed = [parser.parse(block) for block in read_blocks(path, block_bytes=1)]
    assert [line for batch in parsed for line in batch.rows["line"]] == [2]
    assert sum(batch.blank for batch in parsed) == 2

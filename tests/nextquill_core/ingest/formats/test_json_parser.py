"""Lines of JSON: what is a row, and that the outcome of a line depends on this line alone."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextquill_core.ingest.batches import Part
from nextquill_core.ingest.canonical import layout_fields, mapped_fields
from nextquill_core.ingest.formats import json_parser, text_files
from nextquill_core.ingest.formats.json_parser import Parser
from nextquill_core.ingest.formats.text_files import Block, read_blocks
from nextquill_core.ingest.formats.values import ValueRules
from nextquill_core.ingest.sources import Amazon2014, Amazon2018, Amazon2023, source
from tests.effort import trials
from tests.nextquill_core.ingest.world import (
    item,
    lines,
    review,
)

KEYS = {"user_id": "u", "item_id": "i", "rating": "r", "title": "h", "text": "b", "timestamp_ms": "t"}
ITEM_KEYS = {"item_id": "i", "title": "i", "description": "d", "categories": "d", "rating_number": "n"}
NOON = 1530964800000
# Values as JSON texts: all that the mapped columns of one table or another hold in one row or another.
VALUES = [
    "1", "7", "1.0", "17.5", "9007199254740993", "9007199254740992.0", "1e3", "123456789012345678901", "1e999", "-0",
    "-0.0",
    str(NOON), f"{NOON}.25", str(NOON * 1000), "null", "NaN", "Infinity", "-Infinity", "true", "false", '""', '"u"',
    '"NULL"',
    '"nan"', '"4"', '"4/5"', '"\\u00e9"', '"é"', '"\\ud83d\\ude00"', '"\\ud83d"', f'"{NOON}"', "[]", '["a", null]',
    '["a", "b"]', '[["a"], []]', "[1, 2.5]", "{}", '{"a": [1]}', "[[[[1]]]]", "\"['x', 'y']\"",
]  # fmt: skip
OTHERS = [
    "NaN", "Inf", "nan", '"\\ud800"', '"\\q"', "9" * 5000, "[" * 2000 + "]" * 2000, '{"u": 1, "u": 2}', "1e999", "null",
    '"x"',
]  # fmt: skip
OLD = {
    "reviewerID": "u1",
    "asin": "i1",
    "overall": 4.0,
    "summary": "t",
    "unixReviewTime": 1400000000,
    "reviewText": "good",
}

LITERALS = [
    (repr(OLD), None),
    (json.dumps(OLD), None),
    (repr(OLD | {"reviewText": 'it\'s "so" é \n'}), None),
    (repr(OLD | {"overall": 1e999}), "not-json"),  # `inf` is no literal
    (repr(OLD).replace("4.0", "1e999"), "wrong-type-overall"),
    (repr(OLD).replace("'good'", "__import__('os').getcwd()"), "not-json"),
    (repr(OLD).replace("'good'", "'a' + 'b'"), "not-json"),
    (repr(OLD).replace("'good'", "b'good'"), "not-json"),
    (repr(OLD).replace("'good'", "7"), "wrong-type-reviewText"),
    (repr(OLD)[:-1] + ", 'asin': 'i2'}", "duplicate-asin"),
    ("{" + "[" * 500 + "}", "not-json"),
    ("{'reviewerID': 'u1'}", "missing-asin"),
    ("{1, 2}", "not-json"),
    ("{**{}}", "not-json"),
]


def shown(parser: Parser, lines: Sequence[bytes]) -> list[tuple[Any, ...]]:
    """Every line's outcome, in order: the row, or why it is none."""
    batch = parser.parse(Block(b"\n".join(lines), 1, 0, 0))
    outcomes = {row["line"]: tuple(map(repr, row.values()))[1:] for row in batch.rows.to_dicts()}
    outcomes |= {bad.line: (bad.reason, bad.raw, bad.detail, bad.remedy) for bad in batch.bad}
    assert len(outcomes) == batch.rows.height + len(batch.bad) == len(lines)
    return [outcomes[line] for line in sorted(outcomes)]


def objects(keys: Sequence[str]) -> st.SearchStrategy[bytes]:
    """Lines with some of these keys, each with any value, and keys that no column is mapped to."""
    pairs = st.tuples(st.sampled_from(keys), st.sampled_from(VALUES))
    other = st.tuples(st.just("x"), st.sampled_from(OTHERS))
    usual = {"u": '"ann"', "i": '"i1"', "r": "4", "h": '"h"', "b": '"b"', "t": str(NOON)}
    changed = st.lists(pairs, max_size=2).map(
        lambda changes: list(({key: usual.get(key, "null") for key in keys} | dict(changes)).items())
    )
    rows = st.builds(lambda some, more: [*some, *more], changed | st.lists(pairs), st.lists(other, max_size=1))
    return rows.map(lambda pairs: ("{" + ", ".join(f'"{key}": {value}' for key, value in pairs) + "}").encode())


PARSERS: list[tuple[str, Parser, list[str]]] = [
    ("reviews", Parser(mapped_fields(KEYS, ValueRules(), "reviews"), "reviews", literals=True), list(KEYS.values())),
    ("items", Parser(mapped_fields(ITEM_KEYS, ValueRules(), "items"), "items", literals=True), ["i", "d", "n"]),
]
for layout in (Amazon2023, Amazon2018, Amazon2014):
    for part in ("reviews", "items"):
        part_name: Part = part  # type: ignore[assignment]
        fields = layout_fields(layout.columns[part_name], part_name)
        keys = [key for column in layout.columns[part_name].values() for key in column.keys]
        PARSERS.append((f"{layout.name} {part}", Parser(fields, part_name), keys))


@pytest.mark.parametrize(("parser", "keys"), [each[1:] for each in PARSERS], ids=[each[0] for each in PARSERS])
def test_the_outcome_of_a_line_depends_on_no_other(
    parser: Parser, keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = 60 if keys in (list(KEYS.values()), ["i", "d", "n"]) else 15

    @settings(max_examples=trials(examples), deadline=None)
    @given(lines=st.lists(objects(keys), min_size=1, max_size=8), chunk=st.integers(1, 4))
    def holds(lines: list[bytes], chunk: int) -> None:
        monkeypatch.setattr(json_parser, "CHUNK_LINES", chunk)
        together = shown(parser, lines)
        assert together == [shown(parser, [line])[0] for line in lines]
        assert together == shown(parser, lines[::-1])[::-1]
        with monkeypatch.context() as patch:  # every line by itself, and never by pyarrow
            patch.setattr(Parser, "_at_once", lambda *_: False)
            assert together == shown(parser, lines)

    holds()


def test_a_block_of_one_type_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading them one by one would give the same in ten times the time."""

    def refuse(*_: Any) -> None:
        raise AssertionError("line by line")

    monkeypatch.setattr(Parser, "_one_by_one", refuse)
    row = {"u": 1, "i": "i", "r": 4, "h": "h", "b": "b", "t": NOON, "x": float("nan")}
    for change in (
        {},
        {"r": 4.5},
        {"t": 1530964800.5},
        {"t": "2018-07-07"},
        {"u": 17.0},
        {"r": None},
        {"h": None},
        {"r": "4"},
    ):
        lines = [json.dumps(row | change).encode() for _ in range(50)]
        times = "iso" if isinstance(change.get("t"), str) else "s" if "t" in change else "ms"
        parser = Parser(mapped_fields(KEYS, ValueRules(times), "reviews"), "reviews")
        assert len(shown(parser, lines)) == 50


def test_a_column_may_change_its_type_after_any_number_of_lines() -> None:
    parser = Parser(mapped_fields(ITEM_KEYS, ValueRules(), "items"), "items")
    lines = [b'{"i": "a", "d": null}'] * 3000 + [b'{"i": 5, "d": ["c"]}', b'{"i": 5.0, "d": "c"}', b'{"i": "5"}']
    found = shown(parser, lines)
    assert found[2999] == ("'a'", "'a'", "None", "None", "None")
    assert found[3000:] == [("'5'", "'5'", "['c']", "['c']", "None")] * 2 + [("'5'", "'5'", "None", "None", "None")]


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


def test_a_line_has_the_same_outcome_in_any_block(parser: Parser) -> None:
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


def test_a_line_that_is_too_long_is_one_bad_row(
    parser: Parser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.jsonl"
    long = GOOD[:-1] + b', "x": "' + b"y" * 300 + b'"}'
    path.write_bytes(b"\n".join([GOOD, long, GOOD, long]))
    monkeypatch.setattr(text_files, "LONG_LINE_BYTES", 150)
    for module in (text_files, json_parser):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 200)
    for block_bytes in (10, 150, 250, 10_000):
        parsed = [parser.parse(b) for b in read_blocks(path, block_bytes=block_bytes)]
        assert [(bad.line, bad.reason) for p in parsed for bad in p.bad] == [(2, "line-too-long"), (4, "line-too-long")]
        assert [line for p in parsed for line in p.rows["line"]] == [1, 3]
        assert all(bad.raw.startswith(GOOD[:-1].decode()) for p in parsed for bad in p.bad)


def test_a_block_may_be_a_blank_line(parser: Parser, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"\n" + GOOD + b"\n\n")
    parsed = [parser.parse(block) for block in read_blocks(path, block_bytes=1)]
    assert [line for batch in parsed for line in batch.rows["line"]] == [2]
    assert sum(batch.blank for batch in parsed) == 2


def test_python_literals_are_read_and_nothing_is_run(tmp_path: Path) -> None:
    path = tmp_path / "reviews.json"
    path.write_text("\n".join(line for line, _ in LITERALS), encoding="utf-8")
    batches = list(source("amazon-2014").read("reviews", path))
    assert [(bad.line, bad.reason) for batch in batches for bad in batch.bad] == [
        (line, reason) for line, (_, reason) in enumerate(LITERALS, 1) if reason
    ]
    rows = [row for batch in batches for row in batch.rows.to_dicts()]
    assert [row["text"] for row in rows] == ["good", "good", 'it\'s "so" é \n']
    assert rows[0] == {
        "line": 1, "user_id": "u1", "item_id": "i1", "rating": 4.0, "title": "t", "text": "good",
        "timestamp_ms": 1400000000000,
    }  # fmt: skip

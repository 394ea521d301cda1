"""Lines of a table whose columns hold values of any type: the outcome of a line depends on this line alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextquill_core.ingest.formats import parse
from nextquill_core.ingest.formats.blocks import Block
from nextquill_core.ingest.formats.fields import layout_fields, mapped_fields
from nextquill_core.ingest.formats.parse import Parser
from nextquill_core.ingest.formats.values import Rules
from nextquill_core.ingest.sources import Amazon2014, Amazon2018, Amazon2023
from nextquill_core.ingest.sources.base import Part

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
    ("reviews", Parser(mapped_fields(KEYS, Rules(), "reviews"), "reviews", literals=True), list(KEYS.values())),
    ("items", Parser(mapped_fields(ITEM_KEYS, Rules(), "items"), "items", literals=True), ["i", "d", "n"]),
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

    @settings(max_examples=examples, deadline=None)
    @given(lines=st.lists(objects(keys), min_size=1, max_size=8), chunk=st.integers(1, 4))
    def holds(lines: list[bytes], chunk: int) -> None:
        monkeypatch.setattr(parse, "CHUNK_LINES", chunk)
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
        parser = Parser(mapped_fields(KEYS, Rules(times), "reviews"), "reviews")
        assert len(shown(parser, lines)) == 50


def test_a_column_may_change_its_type_after_any_number_of_lines() -> None:
    parser = Parser(mapped_fields(ITEM_KEYS, Rules(), "items"), "items")
    lines = [b'{"i": "a", "d": null}'] * 3000 + [b'{"i": 5, "d": ["c"]}', b'{"i": 5.0, "d": "c"}', b'{"i": "5"}']
    found = shown(parser, lines)
    assert found[2999] == ("'a'", "'a'", "None", "None", "None")
    assert found[3000:] == [("'5'", "'5'", "['c']", "['c']", "None")] * 2 + [("'5'", "'5'", "None", "None", "None")]

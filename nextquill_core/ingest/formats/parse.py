"""Blocks of JSON lines into canonical columns; each line that cannot be read is named with its reason.

Whether a line is a row is decided by one parser alone, pyarrow's: it refuses what others let pass in silence (wrong
types turned into strings, lone surrogates, a key given twice). A block goes through it as a whole; only where that
fails are lines looked at one by one. So the outcome for a line never depends on the block it stands in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.compute
import pyarrow.json

from nextquill_core.ingest.canonical import LINE, canonical
from nextquill_core.ingest.formats.blocks import HEAD_BYTES, MAX_LINE_BYTES, Block
from nextquill_core.ingest.formats.literals import as_json_lines
from nextquill_core.ingest.sources.base import BadRow, Batch, Part
from nextquill_core.ingest.sources.columns import Column, Kind

RAW_CHARS = 2000  # of a bad line's raw text
PARSER_BYTES = 4 << 20  # the unit in which pyarrow shares a block among its threads
MAX_SECONDS = 2**63 // 1000  # what milliseconds can hold: 292 million years
CHUNK_LINES = 1024  # lines tried together in a block that fails as a whole
BLANK = b" \t\r\n"
STRINGS = pa.list_(pa.string())
ARROW: dict[Kind, pa.DataType] = {
    "string": pa.string(),
    "number": pa.float64(),
    "integer": pa.int64(),
    "seconds": pa.int64(),
    "strings": STRINGS,
    "text": pa.string(),
    "lists": pa.list_(STRINGS),
}


class Parser:
    """Reads blocks by an explicit narrow schema; all other keys are skipped, whatever their type."""

    def __init__(
        self,
        columns: Mapping[str, Column],
        part: Part,
        *,
        literals: bool = False,
        max_line_bytes: int = MAX_LINE_BYTES,
    ) -> None:
        self._columns = columns
        self._part: Part = part
        self._literals = literals
        self._max_line_bytes = max_line_bytes
        self._schema = pa.schema({key: ARROW[column.kind] for column in columns.values() for key in column.keys})
        self._numbers = [key for column in columns.values() if column.kind == "number" for key in column.keys]

    def parse(self, block: Block) -> Batch:
        """Read a block; rows and bad lines together are all its lines but the blank ones."""
        if block.fault:
            bad = _bad(block.first_line, block.fault, block.data)
            ends = block.fault.endswith("gzip")  # reading the file once more would find its damage once more
            return Batch(
                rows=self._canonical(self._schema.empty_table(), []),
                bad=[bad],
                last_line=block.first_line,
                position=block.position,
                resume="end" if ends else (block.end, block.first_line + 1),
            )
        lines = _Lines(block.data, self._max_line_bytes)
        rows, reasons = self._read(lines, block.data)
        if self._literals and reasons:
            converted = as_json_lines(bytes(block.data), self._schema.names)
            rows, reasons = self._read(_Lines(converted, self._max_line_bytes), converted)
        return Batch(
            rows=rows.with_columns(pl.col(LINE) + block.first_line),
            bad=[_bad(block.first_line + i, reasons[i], lines[i]) for i in sorted(reasons)],
            blank=len(lines.blank),
            last_line=block.first_line + len(lines) - 1,
            position=block.position,
            resume=(block.end, block.first_line + len(lines)),
            raw=lambda line: _shown(lines[line - block.first_line]),
        )

    def _read(self, lines: _Lines, data: bytes | memoryview) -> tuple[pl.DataFrame, dict[int, str]]:
        """The canonical rows, their `line` counted from 0, and for every line that is none the reason."""
        reasons = lines.faults | {i: self.reason(lines[i]) or "not-json" for i in lines.odd}
        good = lines.without([*reasons, *lines.blank])
        table = self._table(data if not reasons else lines.join(good), len(good), lines.longest)
        if table is None:
            reasons |= {i: self._reason_refused(lines[i]) for i in self._refused(lines, good)}
            good = lines.without([*reasons, *lines.blank])
            table = self._table(lines.join(good), len(good), lines.longest)
            if table is None:
                raise RuntimeError("lines that are rows one by one are none together")
        rows = self._canonical(table, good)
        nameless = self._incomplete(rows, table)
        if nameless:
            absent = {int(good[i]): reason for i in nameless if (reason := self.reason(lines[int(good[i])]))}
            reasons |= absent
            rows = rows.filter(~pl.col(LINE).is_in(list(absent)))
        return rows, reasons

    def reason(self, line: bytes) -> str | None:
        """Why this line is not a row; None if nothing is found wrong with it."""
        try:
            line.decode()
        except UnicodeDecodeError:
            return "invalid-utf8"
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            return "not-json"
        if not isinstance(row, dict):
            return "not-an-object"
        for column in self._columns.values():
            for key in column.keys:
                if row.get(key) is not None and not _is(column.kind, row[key]):
                    return f"wrong-type-{key}"
                if row.get(key) is not None and not _fits(column, key, row[key]):
                    return f"missing-{key}" if column.identifies else f"wrong-type-{key}"
        for column in self._columns.values():
            if column.required and not any(key in row for key in column.keys):
                return f"missing-{column.keys[0]}"
            if column.identifies and all(row.get(key) is None for key in column.keys):
                return f"missing-{column.keys[0]}"
        return None

    def _reason_refused(self, line: bytes) -> str:
        """The reason for a line that the parser refuses; keys given twice escape `reason`."""
        found = self.reason(line)
        if found:
            return found
        keys = _outer_keys(line)
        twice = [key for key in self._schema.names if keys.count(key) > 1]
        return f"duplicate-{twice[0]}" if twice else "not-json"

    def _refused(self, lines: _Lines, good: npt.NDArray[np.int64]) -> Iterator[int]:
        """Those of the lines `good` that the parser does not take."""
        for start in range(0, len(good), CHUNK_LINES):
            chunk = good[start : start + CHUNK_LINES]
            if self._table(lines.join(chunk), len(chunk), lines.longest) is not None:
                continue
            suspects = [i for i in chunk.tolist() if self.reason(lines[i])]
            others = np.setdiff1d(chunk, suspects)
            if self._table(lines.join(others), len(others), lines.longest) is None:
                suspects = chunk.tolist()
            yield from (i for i in suspects if self._table(lines[i], 1, lines.longest) is None)

    def _table(self, data: bytes | memoryview, rows: int, longest: int) -> pa.Table | None:
        """The raw columns of `rows` lines, each holding one object; None if any of them is not a row."""
        if not rows:
            return self._schema.empty_table()
        try:
            table = pa.json.read_json(
                pa.BufferReader(data),
                read_options=pa.json.ReadOptions(block_size=max(PARSER_BYTES, 2 * longest), use_threads=False),
                parse_options=pa.json.ParseOptions(
                    explicit_schema=self._schema, unexpected_field_behavior="ignore", newlines_in_values=False
                ),
            )
        except pa.ArrowInvalid:
            return None
        if table.num_rows != rows:
            return None
        # the parser takes NaN and Infinity, which JSON does not have
        finite = all(pa.compute.all(pa.compute.is_finite(table[key])).as_py() is not False for key in self._numbers)
        return table if finite else None

    def _canonical(self, table: pa.Table, numbers: Iterable[int]) -> pl.DataFrame:
        raw = pl.DataFrame(pl.from_arrow(table))
        rows = raw.select(
            pl.Series(LINE, numbers, dtype=pl.Int64),
            *(_converted(column).alias(name) for name, column in self._columns.items()),
        )
        return canonical(rows, self._part)

    def _incomplete(self, rows: pl.DataFrame, table: pa.Table) -> list[int]:
        """Positions of the rows with a null where a value is expected: null itself, no such key, or no value fits."""
        expected = [name for name, column in self._columns.items() if column.required or column.identifies]
        nulls = rows.select(pl.any_horizontal(pl.col(expected).is_null())).to_series()
        for name, column in self._columns.items():
            if column.convert:
                given = pl.DataFrame(pl.from_arrow(table.select(column.keys))).select(pl.coalesce(column.keys))
                nulls |= rows[name].is_null() & given.to_series().is_not_null()
        return nulls.arg_true().to_list()


class _Lines:
    """The lines of a block, and what can be told of them without parsing.

    A line that starts with `{` and ends with `}` cannot share an object with its neighbour, so as many objects as
    lines means one on each. All others are looked at here, and the parser never sees what is no object.

    Attributes:
        blank: Lines without anything on them.
        odd: Lines that hold something, but no object.
        faults: Lines with a fault that needs no parsing, and its reason.
        longest: Bytes of the longest line.
    """

    def __init__(self, data: bytes | memoryview, max_line_bytes: int) -> None:
        self._data = data
        text = np.frombuffer(data, np.uint8)
        ends = _newlines(text)
        if len(text) and text[-1] != ord("\n"):
            ends = np.append(ends, len(text))
        self._starts, self._ends = np.append(0, ends[:-1] + 1)[: len(ends)], ends
        lengths = self._ends - self._starts
        self.longest = int(lengths.max(initial=0))
        self.blank: list[int] = []
        self.odd: list[int] = []
        self.faults: dict[int, str] = dict.fromkeys(np.flatnonzero(lengths > max_line_bytes).tolist(), "line-too-long")
        if not len(ends):
            return
        last = text[ends - 1]
        last = np.where(last == ord("\r"), text[ends - 2], last)
        shaped = (lengths > 1) & (text[self._starts] == ord("{")) & (last == ord("}"))
        for i in np.flatnonzero(~shaped).tolist():
            line = self[i].strip(BLANK)
            if not line:
                self.blank.append(i)
            elif i not in self.faults and not (line.startswith(b"{") and line.endswith(b"}")):
                self.odd.append(i)
        if not _is_utf8(data):
            unread = {*self.blank, *self.odd, *self.faults}
            self.faults |= {i: "invalid-utf8" for i in range(len(ends)) if i not in unread and not _is_utf8(self[i])}

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> bytes:
        return bytes(self._data[self._starts[i] : self._ends[i]])

    def without(self, which: list[int]) -> npt.NDArray[np.int64]:
        """Numbers of the other lines."""
        rest = np.ones(len(self), np.bool_)
        rest[which] = False
        return np.flatnonzero(rest)

    def join(self, which: npt.NDArray[np.int64]) -> bytes:
        return b"\n".join(self[i] for i in which.tolist())


def _newlines(text: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    step = 1 << 16  # a piece that stays in the cache, and whose comparison is too small to be mapped anew each time
    found = [np.flatnonzero(text[i : i + step] == ord("\n")) + i for i in range(0, len(text), step)]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _converted(column: Column) -> pl.Expr:
    value = _as_canonical(column)
    return column.convert(value) if column.convert else value


def _as_canonical(column: Column) -> pl.Expr:
    value = pl.coalesce(column.keys)
    if column.kind == "seconds":
        return value.clip(-MAX_SECONDS, MAX_SECONDS) * 1000
    if column.kind == "text":
        return pl.when(value.is_not_null()).then(pl.concat_list(value))
    if column.kind == "lists":
        return value.list.eval(pl.element().explode())
    return value


def _is(kind: Kind, value: Any) -> bool:
    if kind == "lists":
        return isinstance(value, list) and all(element is None or _is("strings", element) for element in value)
    if kind == "strings":
        return isinstance(value, list) and all(element is None or isinstance(element, str) for element in value)
    if kind in ("string", "text"):
        return isinstance(value, str)
    if isinstance(value, bool):
        return False
    if kind in ("integer", "seconds"):
        return isinstance(value, int) and -(2**63) <= value < 2**63
    return isinstance(value, int | float)


def _fits(column: Column, key: str, value: Any) -> bool:
    if not column.convert:
        return True
    table = pa.table({key: pa.array([value], ARROW[column.kind])})
    return pl.DataFrame(pl.from_arrow(table)).select(_converted(replace(column, keys=(key,)))).item() is not None


def _outer_keys(line: bytes) -> list[str]:
    try:
        return [key for key, _ in json.loads(line, object_pairs_hook=lambda pairs: pairs)]
    except RecursionError:
        return []


def _is_utf8(data: bytes | memoryview) -> bool:
    offsets = pa.py_buffer(np.array([0, len(data)], np.int64))
    try:
        pa.LargeStringArray.from_buffers(1, offsets, pa.py_buffer(data)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _bad(line: int, reason: str, raw: bytes | memoryview) -> BadRow:
    return BadRow(line, reason, _shown(raw))


def _shown(raw: bytes | memoryview) -> str:
    return bytes(raw[:HEAD_BYTES]).decode(errors="replace")[:RAW_CHARS]

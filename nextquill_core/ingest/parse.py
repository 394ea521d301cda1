"""Blocks of JSON lines into canonical columns; each line that cannot be read is named with its reason.

Whether a line is a row is decided by one parser alone, pyarrow's: it refuses what others let pass in silence (wrong
types turned into strings, lone surrogates, a key given twice). A block goes through it as a whole; only where that
fails are lines looked at one by one. So the outcome for a line never depends on the block it stands in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.compute
import pyarrow.json

from nextquill_core.ingest.blocks import HEAD_BYTES, MAX_LINE_BYTES, Block
from nextquill_core.ingest.sources import Column, Kind

RAW_CHARS = 2000  # of a bad line's raw text
PARSER_BYTES = 4 << 20  # the unit in which pyarrow shares a block among its threads
CHUNK_LINES = 1024  # lines tried together in a block that fails as a whole
BLANK = b" \t\r\n"
ARROW: dict[Kind, pa.DataType] = {
    "string": pa.string(),
    "number": pa.float64(),
    "integer": pa.int64(),
    "strings": pa.list_(pa.string()),
}


@dataclass(frozen=True)
class BadLine:
    """A line that is not a row: its number from 1, why, and the beginning of its text."""

    line: int
    reason: str
    raw: str


@dataclass(frozen=True)
class Parsed:
    """What a block holds.

    Attributes:
        rows: The canonical columns and `line` (i64, from 1), in file order.
        bad: Lines that cannot be read, in file order.
        blank: Number of blank lines; these are no rows.
    """

    rows: pl.DataFrame
    bad: list[BadLine] = field(default_factory=list)
    blank: int = 0


class Parser:
    """Reads blocks by an explicit narrow schema; all other keys are skipped, whatever their type."""

    def __init__(self, columns: Mapping[str, Column], max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._columns = columns
        self._max_line_bytes = max_line_bytes
        self._schema = pa.schema({key: ARROW[column.kind] for column in columns.values() for key in column.keys})
        self._numbers = [key for column in columns.values() if column.kind == "number" for key in column.keys]

    def parse(self, block: Block) -> Parsed:
        """Read a block; rows and bad lines together are all its lines but the blank ones."""
        if block.fault:
            return Parsed(
                self._canonical(self._schema.empty_table(), []), [_bad(block.first_line, block.fault, block.data)]
            )
        lines = _Lines(block.data, self._max_line_bytes)
        reasons = lines.faults | {i: self.reason(lines[i]) or "not-json" for i in lines.odd}
        good = lines.without([*reasons, *lines.blank])
        table = self._table(block.data if not reasons else lines.join(good), len(good), lines.longest)
        if table is None:
            reasons |= {i: self._reason_refused(lines[i]) for i in self._refused(lines, good)}
            good = lines.without([*reasons, *lines.blank])
            table = self._table(lines.join(good), len(good), lines.longest)
            if table is None:
                raise RuntimeError(f"lines {block.first_line} ff.: read one by one, but not together")
        rows = self._canonical(table, good + block.first_line)
        nameless = self._incomplete(rows)
        if nameless:
            absent = {int(good[i]): reason for i in nameless if (reason := self.reason(lines[int(good[i])]))}
            reasons |= absent
            rows = rows.filter(~pl.col("line").is_in([i + block.first_line for i in absent]))
        bad = [_bad(block.first_line + i, reasons[i], lines[i]) for i in sorted(reasons)]
        return Parsed(rows, bad, len(lines.blank))

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

    def _table(self, data: bytes, rows: int, longest: int) -> pa.Table | None:
        """The raw columns of `rows` lines, each holding one object; None if any of them is not a row."""
        if not rows:
            return self._schema.empty_table()
        try:
            table = pa.json.read_json(
                pa.BufferReader(data),
                read_options=pa.json.ReadOptions(block_size=max(PARSER_BYTES, 2 * longest)),
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
        return raw.select(
            pl.Series("line", numbers, dtype=pl.Int64),
            *(pl.coalesce(column.keys).alias(name) for name, column in self._columns.items()),
        )

    def _incomplete(self, rows: pl.DataFrame) -> list[int]:
        """Positions of the rows with a null where a value is expected: null itself, or no such key."""
        expected = [name for name, column in self._columns.items() if column.required or column.identifies]
        nulls = rows.select(pl.any_horizontal(pl.col(expected).is_null())).to_series()
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

    def __init__(self, data: bytes, max_line_bytes: int) -> None:
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
        return self._data[self._starts[i] : self._ends[i]]

    def without(self, which: list[int]) -> npt.NDArray[np.int64]:
        """Numbers of the other lines."""
        rest = np.ones(len(self), np.bool_)
        rest[which] = False
        return np.flatnonzero(rest)

    def join(self, which: npt.NDArray[np.int64]) -> bytes:
        return b"\n".join(self[i] for i in which.tolist())


def _newlines(text: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    step = 1 << 18  # a piece that stays in the processor's cache is compared several times faster
    found = [np.flatnonzero(text[i : i + step] == ord("\n")) + i for i in range(0, len(text), step)]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _is(kind: Kind, value: Any) -> bool:
    if kind == "strings":
        return isinstance(value, list) and all(element is None or isinstance(element, str) for element in value)
    if kind == "string":
        return isinstance(value, str)
    if isinstance(value, bool):
        return False
    if kind == "integer":
        return isinstance(value, int) and -(2**63) <= value < 2**63
    return isinstance(value, int | float)


def _outer_keys(line: bytes) -> list[str]:
    try:
        return [key for key, _ in json.loads(line, object_pairs_hook=lambda pairs: pairs)]
    except RecursionError:
        return []


def _is_utf8(data: bytes) -> bool:
    offsets = pa.py_buffer(np.array([0, len(data)], np.int64))
    try:
        pa.LargeStringArray.from_buffers(1, offsets, pa.py_buffer(data)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _bad(line: int, reason: str, raw: bytes) -> BadLine:
    return BadLine(line, reason, raw[:HEAD_BYTES].decode(errors="replace")[:RAW_CHARS])

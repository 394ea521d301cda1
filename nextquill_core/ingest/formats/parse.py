"""Blocks of JSON lines into canonical columns; each line that cannot be read is named with its reason.

What a line is, `objects.mapped_values` decides, and what its values become, the field's own rules. Both look at this
line alone. Blocks whose lines all hold the usual types are read by pyarrow instead, which is many times faster: it
takes fewer lines than those two and gives the same for all that it takes. So the outcome for a line never depends on
the block it stands in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute
import pyarrow.json

from nextquill_core.ingest.canonical import LINE
from nextquill_core.ingest.formats.ahead import in_order
from nextquill_core.ingest.formats.arrays import elements
from nextquill_core.ingest.formats.blocks import LONG_LINE_BYTES, MAX_LINE_BYTES, Block, read_blocks
from nextquill_core.ingest.formats.fields import RAW_CHARS, Fault, Field, RawColumn, read_fields
from nextquill_core.ingest.formats.objects import NotARowError, mapped_values, short_name
from nextquill_core.ingest.formats.signatures import encoding_remedy, guessed_encoding
from nextquill_core.ingest.formats.values import EXACT
from nextquill_core.ingest.sources.base import BadRow, Batch, Part

PARSER_BYTES = 4 << 20  # the unit in which pyarrow shares a block among its threads
CHUNK_LINES = 1024  # lines tried together in a block that is not read as a whole
SAMPLE_LINES = 32  # from which the types are guessed that a block is tried with
BLANK = b" \t\r\n"


@dataclass
class _Found:
    """What was read from some lines: tables of rows, and by line why it is none."""

    rows: list[pl.DataFrame] = field(default_factory=list)
    faults: dict[int, Fault] = field(default_factory=dict)


class Parser:
    """Reads blocks of JSON lines; keys that no field has are skipped, whatever they hold.

    Args:
        fields: The canonical columns.
        part: Reviews or items.
        literals: Whether a line may be a dict as Python writes it.
        max_line_bytes: A longer line cannot be read.
    """

    def __init__(
        self, fields: Sequence[Field], part: Part, *, literals: bool = False, max_line_bytes: int = MAX_LINE_BYTES
    ) -> None:
        self._fields = fields
        self._part: Part = part
        self._literals = literals
        self._max_line_bytes = max_line_bytes
        self._by_key: dict[str, list[Field]] = {}
        for each in fields:
            for key in each.keys:
                self._by_key.setdefault(key, []).append(each)

    def parse(self, block: Block) -> Batch:
        """Read a block; rows and bad lines together are all its lines but the blank ones."""
        if block.fault:
            ends = block.fault.endswith("gzip")  # reading the file once more would find its damage once more
            empty, _ = read_fields({key: [] for key in self._by_key}, [], self._fields, self._part)
            return Batch(
                rows=empty,
                bad=[BadRow(block.first_line, block.fault, _shown(block.data))],
                last_line=block.first_line,
                position=block.position,
                resume="end" if ends else (block.end, block.first_line + 1),
            )
        lines = _Lines(block.data, self._max_line_bytes)
        found = self._read(lines, block.data)
        rows = pl.concat(found.rows) if len(found.rows) > 1 else found.rows[0]
        return Batch(
            rows=rows.sort(LINE).with_columns(pl.col(LINE) + block.first_line),
            bad=[found.faults[i].row(block.first_line + i, _shown(lines[i])) for i in sorted(found.faults)],
            blank=lines.blank,
            last_line=block.first_line + len(lines) - 1,
            position=block.position,
            resume=(block.end, block.first_line + len(lines)),
            raw=lambda line: _shown(lines[line - block.first_line]),
        )

    def _read(self, lines: _Lines, data: bytes | memoryview) -> _Found:
        """All lines, numbered from 0."""
        found = _Found(faults={i: Fault(reason) for i, reason in lines.faults.items()})
        odd = [i for i in lines.odd if i not in lines.faults]
        plain = lines.without([*odd, *lines.faults])
        whole = not odd and not lines.faults
        if not self._at_once(data if whole else lines.join(plain), plain, lines, found):
            for start in range(0, len(plain), CHUNK_LINES):
                chunk = plain[start : start + CHUNK_LINES]
                if not self._at_once(lines.join(chunk), chunk, lines, found):
                    self._one_by_one(chunk.tolist(), lines, found)
        if odd:
            self._one_by_one(odd, lines, found)
        return found

    def _at_once(self, data: bytes | memoryview, numbers: npt.NDArray[np.int64], lines: _Lines, found: _Found) -> bool:
        """Read lines of the usual types; False, and nothing is read, where any of them has another."""
        schema = self._schema(lines, numbers)
        table = None if schema is None else _table(data, schema, len(numbers), lines.longest)
        if table is None or not self._is_certain(table):
            return False
        columns = {
            key: pl.Series(key, pl.from_arrow(table[key]), dtype=None)
            for key in self._by_key
            if key in table.schema.names
        }
        self._convert(columns, numbers, found, lines)
        return True

    def _schema(self, lines: _Lines, numbers: npt.NDArray[np.int64]) -> pa.Schema | None:
        """The types to try: of each key, that of its first value among some lines."""
        types: dict[str, pa.DataType | None] = {}
        for number in numbers[:SAMPLE_LINES].tolist():
            if len(types) == len(self._by_key):
                break
            try:
                row = mapped_values(lines[number], self._by_key, literals=False)
            except NotARowError:
                continue
            for key, fields in self._by_key.items():
                if key not in types and row.get(key) is not None:
                    wanted = [each.arrow(row[key]) for each in fields]
                    types[key] = wanted[0] if all(kind == wanted[0] for kind in wanted) else None
        usual = {key: types.get(key, fields[0].arrow("")) for key, fields in self._by_key.items()}
        return None if None in usual.values() else pa.schema(usual)

    def _is_certain(self, table: pa.Table) -> bool:
        """Whether floats are what the file says: infinite ones are no JSON, and large ones may have been integers."""
        for key, fields in self._by_key.items():
            column = table[key]
            if not pa.types.is_floating(column.type):
                continue
            largest = pa.compute.max(pa.compute.abs(column)).as_py()
            if largest is None or math.isnan(largest):
                continue
            exact = {each.name for each in fields} - {"rating", "rating_number"}
            if largest == math.inf or (exact and largest >= EXACT):
                return False
        return True

    def _one_by_one(self, numbers: Sequence[int], lines: _Lines, found: _Found) -> None:
        rows: list[dict[str, Any]] = []
        good: list[int] = []
        for number in numbers:
            try:
                row = mapped_values(lines[number], self._by_key, literals=self._literals)
            except NotARowError as error:
                found.faults[number] = Fault(str(error))
                continue
            rows.append(row)
            good.append(number)
        self._convert({key: [row.get(key) for row in rows] for key in self._by_key}, good, found, lines)

    def _convert(
        self,
        columns: Mapping[str, RawColumn],
        numbers: Sequence[int] | npt.NDArray[np.int64],
        found: _Found,
        lines: _Lines,
    ) -> None:
        rows, faults = read_fields(columns, numbers, self._fields, self._part)
        found.faults |= faults
        if lacking := dict(self._lacking(rows, lines)):
            found.faults |= lacking
            rows = rows.filter(~pl.col(LINE).is_in(list(lacking)))
        found.rows.append(rows)

    def _lacking(self, rows: pl.DataFrame, lines: _Lines) -> Iterator[tuple[int, Fault]]:
        """Rows without a key that a layout always has: null is a value there, no key is none."""
        required = [each for each in self._fields if each.required and not each.identifies]
        if not required:
            return
        nulls = rows.filter(pl.any_horizontal(pl.col(each.name).is_null() for each in required))[LINE]
        for number in nulls.to_list():
            given = mapped_values(lines[number], self._by_key, literals=self._literals)
            for each in required:
                if not any(key in given for key in each.keys):
                    yield number, Fault(f"missing-{short_name(each.keys[0])}")
                    break


def read_lines(
    path: Path, parser: Parser, batch_bytes: int, resume: Any = None, *, encoding: str = "utf-8"
) -> Iterator[Batch]:
    """Read a file of JSON lines in blocks of whole lines.

    Args:
        path: The file, plain or gzip.
        parser: What reads the blocks.
        batch_bytes: About how much text a batch holds.
        resume: As in `Source.read`.
        encoding: As in `read_blocks`.

    Raises:
        DataError: The file as a whole cannot be read.
    """
    if resume == "end":
        return
    start, line = resume or (0, 1)
    blocks = read_blocks(path, block_bytes=batch_bytes, start=start, first_line=line, encoding=encoding)
    guess: list[str] = []
    for batch in in_order(parser.parse, blocks):
        if encoding == "utf-8" and any(row.reason == "invalid-utf8" for row in batch.bad):
            guess = guess or [encoding_remedy(guessed_encoding(path))]
            named = [replace(row, remedy=guess[0]) if row.reason == "invalid-utf8" else row for row in batch.bad]
            batch = replace(batch, bad=named)
        yield batch


def read_array(path: Path, parser: Parser, batch_bytes: int) -> Iterator[Batch]:
    """Read a file that is one JSON array of objects; `line` numbers its elements.

    Args:
        path: The file, plain or gzip.
        parser: What reads the elements.
        batch_bytes: About how much text a batch holds.

    Raises:
        DataError: The array is not closed, or something follows it.
    """
    for block in _element_blocks(path, batch_bytes):
        yield replace(parser.parse(block), resume=None)


def _element_blocks(path: Path, batch_bytes: int) -> Iterator[Block]:
    """The elements as lines: a line end within an element is white space, for texts have theirs escaped."""
    held: list[bytes] = []
    size, first, at = 0, 1, 0
    for element, position, fault in elements(path):
        line = element.replace(b"\n", b" ").replace(b"\r", b" ") if not fault else b"nothing between two commas"
        held.append(line)
        size, at = size + len(line), position
        if size >= batch_bytes:
            yield Block(b"\n".join(held), first, 0, at)
            held, size, first = [], 0, first + len(held)
    if held:
        yield Block(b"\n".join(held), first, 0, at)


def _table(data: bytes | memoryview, schema: pa.Schema, rows: int, longest: int) -> pa.Table | None:
    """The raw columns of `rows` lines, each holding one object; None if any of them has another form."""
    if not rows:
        return schema.empty_table()
    try:
        table = pa.json.read_json(
            pa.BufferReader(data),
            read_options=pa.json.ReadOptions(block_size=max(PARSER_BYTES, 2 * longest), use_threads=False),
            parse_options=pa.json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="ignore", newlines_in_values=False
            ),
        )
    except pa.ArrowInvalid:
        return None
    return table if table.num_rows == rows else None


Numbers = npt.NDArray[np.int64]


class _Lines:
    """The lines of a block, and what their first and last characters show without parsing.

    A line that starts with `{` and ends with `}` cannot share an object with its neighbour, so as many objects as
    lines means one on each. All others are looked at here, and the parser never sees what is no object.

    Attributes:
        blank: How many lines have nothing on them. Only the others take memory.
        odd: Lines that hold something, but no object, or that are no UTF-8.
        faults: Lines with a fault that needs no parsing, and its reason.
        longest: Bytes of the longest line.
    """

    def __init__(self, data: bytes | memoryview, max_line_bytes: int) -> None:
        self._data = data
        text = np.frombuffer(data, np.uint8)
        self._starts, self._ends, self._numbers, self._count = _not_empty(text)
        starts, ends, numbers = self._starts, self._ends, self._numbers
        lengths = ends - starts
        self.longest = int(lengths.max(initial=0))
        self._blank: list[int] = []
        self.odd: list[int] = []
        self.faults: dict[int, str] = dict.fromkeys(numbers[lengths > max_line_bytes].tolist(), "line-too-long")
        if not len(ends):
            return
        last = text[ends - 1]
        last = np.where(last == ord("\r"), text[np.maximum(ends - 2, 0)], last)
        shaped = (lengths > 1) & (text[starts] == ord("{")) & (last == ord("}"))
        for i in numbers[~shaped].tolist():
            line = self[i].strip(BLANK)
            if not line:
                self._blank.append(i)
            elif i not in self.faults and not (line.startswith(b"{") and line.endswith(b"}")):
                self.odd.append(i)
        if not _is_utf8(data):
            unread = {*self._blank, *self.odd, *self.faults}
            self.odd += [i for i in numbers.tolist() if i not in unread and not _is_utf8(self[i])]

    @property
    def blank(self) -> int:
        return self._count - len(self._numbers) + len(self._blank)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> bytes:
        place = i if self._count == len(self._numbers) else int(np.searchsorted(self._numbers, i))
        if place == len(self._numbers) or self._numbers[place] != i:
            return b""
        return bytes(self._data[self._starts[place] : self._ends[place]])

    def without(self, which: list[int]) -> npt.NDArray[np.int64]:
        """Numbers of the other lines that are not blank."""
        rest = np.ones(len(self._numbers), np.bool_)
        rest[np.searchsorted(self._numbers, [*which, *self._blank])] = False
        return self._numbers[rest]

    def join(self, which: npt.NDArray[np.int64]) -> bytes:
        return b"\n".join(self[i] for i in which.tolist())


def _not_empty(text: npt.NDArray[np.uint8]) -> tuple[Numbers, Numbers, Numbers, int]:
    """Start, end and number of each line that has a character, and how many lines there are."""
    step = 1 << 16  # a piece that stays in the cache, and whose comparison is too small to be mapped again each time
    parts: list[tuple[Numbers, Numbers, Numbers]] = []
    start, count = 0, 0
    for i in range(0, len(text), step):
        ends = np.flatnonzero(text[i : i + step] == ord("\n")) + i
        if i + step >= len(text) and text[-1] != ord("\n"):
            ends = np.append(ends, len(text))
        if not len(ends):
            continue
        starts, numbers = np.append(start, ends[:-1] + 1), np.arange(count, count + len(ends))
        start, count = int(ends[-1]) + 1, count + len(ends)
        if not (kept := ends > starts).all():
            starts, ends, numbers = starts[kept], ends[kept], numbers[kept]
        parts.append((starts, ends, numbers))
    if not parts:
        parts.append((np.empty(0, np.int64),) * 3)
    starts, ends, numbers = (np.concatenate([part[column] for part in parts]) for column in range(3))
    return starts, ends, numbers, count


def _is_utf8(data: bytes | memoryview) -> bool:
    offsets = pa.py_buffer(np.array([0, len(data)], np.int64))
    try:
        pa.LargeStringArray.from_buffers(1, offsets, pa.py_buffer(data)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _shown(raw: bytes | memoryview) -> str:
    return bytes(raw[:LONG_LINE_BYTES]).decode(errors="replace")[:RAW_CHARS]

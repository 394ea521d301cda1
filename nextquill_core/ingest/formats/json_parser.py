"""Parse blocks of JSON lines into canonical columns; each line that cannot be read is named with its reason.

`mapped_values` decides whether a line is a row, and the fields decide what its values become. Both look at
this line alone. Blocks whose lines all hold the usual types are read by pyarrow instead, which is many times faster: it
accepts fewer lines than those two and gives the same for all that it accepts. So the outcome for a line never depends
on the block that contains it.
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute
import pyarrow.json

from nextquill_core.ingest.batches import RAW_CHARS, BadRow, Batch, Part
from nextquill_core.ingest.canonical import LINE, Fault, Field, RawColumn, read_fields, short_name
from nextquill_core.ingest.formats.text_files import LONG_LINE_BYTES, MAX_LINE_BYTES, Block
from nextquill_core.ingest.formats.values import EXACT, REFUSALS

PARSER_BYTES = 4 << 20  # the unit in which pyarrow reads a block
CHUNK_LINES = 1024  # lines tried together in a block that is not read as a whole
SAMPLE_LINES = 32  # from which the types are guessed that a block is tried with
BLANK = b" \t\r\n"
Numbers = npt.NDArray[np.int64]
_SPACE = re.compile(r"[ \t\r\n]*")
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_WORD = re.compile(r"[^\s,\[\]{}\"':]+")
_NESTED = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST_INTEGER = 400  # digits; Python refuses to convert more than 4,300


class NotARowError(Exception):
    """The line is no row; the message is the reason."""


class JsonObject:
    """A JSON object as its pairs, so that a key that is given twice is seen. No column takes one as its value."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        self.pairs = pairs

    def __repr__(self) -> str:
        return f"an object with the keys {', '.join(key for key, _ in self.pairs)}" if self.pairs else "{}"


class _EveryKey(frozenset[str]):
    """A set that holds every key."""

    def __contains__(self, key: object) -> bool:
        return True


def _integer(text: str) -> float | int:
    return int(text) if len(text) <= _LONGEST_INTEGER else float(text)


_DECODER = json.JSONDecoder(object_pairs_hook=JsonObject, parse_int=_integer)


@dataclass
class _Found:
    """What was read from some lines: tables of rows, and the fault of each line that is no row."""

    rows: list[pl.DataFrame] = field(default_factory=list)
    faults: dict[int, Fault] = field(default_factory=dict)


class Parser:
    """Reads blocks of JSON lines; keys that no field has are skipped, whatever they hold.

    Args:
        fields: The canonical columns.
        part: Reviews or items.
        literals: Whether a line may be a dict as Python writes it.
    """

    def __init__(self, fields: Sequence[Field], part: Part, *, literals: bool = False) -> None:
        self._fields = fields
        self._part: Part = part
        self._literals = literals
        self._by_key: dict[str, list[Field]] = {}
        for each in fields:
            for key in each.keys:
                self._by_key.setdefault(key, []).append(each)

    def parse(self, block: Block) -> Batch:
        """Read a block; rows, bad rows and blank lines together are all its lines."""
        if block.fault:
            ends = block.fault.endswith("gzip")  # reading the file again would find the damage again
            empty, _ = read_fields({key: [] for key in self._by_key}, [], self._fields, self._part)
            return Batch(
                rows=empty,
                bad=[BadRow(block.first_line, block.fault, _shown(block.data))],
                last_line=block.first_line,
                position=block.position,
                resume="end" if ends else (block.end, block.first_line + 1),
            )
        lines = _Lines(block.data)
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
        """Read all lines, numbered from 0."""
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

    def _at_once(self, data: bytes | memoryview, numbers: Numbers, lines: _Lines, found: _Found) -> bool:
        """Read lines of the usual types; if any line has another type, read nothing and return False."""
        schema = self._schema(lines, numbers)
        table = None if schema is None else _table(data, schema, len(numbers), lines.longest)
        if table is None or not self._is_exact(table):
            return False
        columns = {
            key: pl.Series(key, pl.from_arrow(table[key]), dtype=None)
            for key in self._by_key
            if key in table.schema.names
        }
        self._convert(columns, numbers, found, lines)
        return True

    def _schema(self, lines: _Lines, numbers: Numbers) -> pa.Schema | None:
        """Return the types to try: for each key, the type of its first value among some lines."""
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

    def _is_exact(self, table: pa.Table) -> bool:
        """Return whether floats are what the file says: infinity is not JSON, and large floats may be integers."""
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
        self, columns: Mapping[str, RawColumn], numbers: Sequence[int] | Numbers, found: _Found, lines: _Lines
    ) -> None:
        rows, faults = read_fields(columns, numbers, self._fields, self._part)
        found.faults |= faults
        if lacking := dict(self._lacking(rows, lines)):
            found.faults |= lacking
            rows = rows.filter(~pl.col(LINE).is_in(list(lacking)))
        found.rows.append(rows)

    def _lacking(self, rows: pl.DataFrame, lines: _Lines) -> Iterator[tuple[int, Fault]]:
        """Yield the rows without a key that the layout always has; a key with null is there."""
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


def mapped_values(line: bytes, keys: Collection[str], *, literals: bool) -> dict[str, Any]:
    """Return the values of `keys` in a line that holds one JSON object; keys that it lacks are left out.

    Objects within the object become values that no column takes.

    Args:
        line: The line.
        keys: The mapped keys.
        literals: Whether the line may be a dict as Python writes it. It is parsed by `ast`, and nothing is run.

    Raises:
        NotARowError: The line holds no object, or one that gives a mapped key twice or with text that is not Unicode.
    """
    try:
        text, valid = line.decode(), True
    except UnicodeDecodeError:
        text, valid = line.decode(errors="surrogateescape"), False
    pairs = _pairs(text.strip(" \t\r\n"), keys, literals)
    if pairs is None:
        raise NotARowError("not-json" if valid else "invalid-utf8")
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key not in keys:
            continue
        if key in values:
            raise NotARowError(f"duplicate-{short_name(key)}")
        if _has_surrogate(value):
            raise NotARowError("lone-surrogate" if valid else "invalid-utf8")
        values[key] = value
    return values


def object_keys(line: bytes, *, literals: bool) -> list[str]:
    """Return the keys of the object in a line.

    Args:
        line: The line.
        literals: As in `mapped_values`.

    Raises:
        NotARowError: The line holds no object.
    """
    pairs = _pairs(line.decode(errors="replace").strip(" \t\r\n"), _EveryKey(), literals)
    if pairs is None:
        raise NotARowError("not-json")
    return [key for key, _ in pairs]


def _table(data: bytes | memoryview, schema: pa.Schema, rows: int, longest: int) -> pa.Table | None:
    """Return the raw columns of `rows` lines, each holding one object; None if any line has another form."""
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


class _Lines:
    """The lines of a block, and what their first and last characters show without parsing.

    A line that starts with `{` and ends with `}` cannot share an object with its neighbour, so as many objects as
    lines means one on each. All others are found here, so the parser never sees what is no object.

    Attributes:
        odd: Lines that hold something, but no object, or that are not UTF-8.
        faults: Lines with a fault that needs no parsing, and its reason.
        longest: Bytes of the longest line.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = data
        text = np.frombuffer(data, np.uint8)
        self._starts, self._ends, self._numbers, self._count = _not_empty(text)
        starts, ends, numbers = self._starts, self._ends, self._numbers
        lengths = ends - starts
        self.longest = int(lengths.max(initial=0))
        self._blank: list[int] = []
        self.odd: list[int] = []
        self.faults: dict[int, str] = dict.fromkeys(numbers[lengths > MAX_LINE_BYTES].tolist(), "line-too-long")
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
        """Number of lines that hold nothing. Only the others take memory."""
        return self._count - len(self._numbers) + len(self._blank)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> bytes:
        place = i if self._count == len(self._numbers) else int(np.searchsorted(self._numbers, i))
        if place == len(self._numbers) or self._numbers[place] != i:
            return b""
        return bytes(self._data[self._starts[place] : self._ends[place]])

    def without(self, which: list[int]) -> Numbers:
        """Return the numbers of the other lines that are not blank."""
        rest = np.ones(len(self._numbers), np.bool_)
        rest[np.searchsorted(self._numbers, [*which, *self._blank])] = False
        return self._numbers[rest]

    def join(self, which: Numbers) -> bytes:
        return b"\n".join(self[i] for i in which.tolist())


def _not_empty(text: npt.NDArray[np.uint8]) -> tuple[Numbers, Numbers, Numbers, int]:
    """Return start, end and number of each line that has a character, and how many lines there are."""
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


def _pairs(text: str, keys: Collection[str], literals: bool) -> Sequence[tuple[str, Any]] | None:
    """Return the pairs of the object, at least those of `keys`; None for what is not JSON."""
    try:
        found = _DECODER.decode(text)
    except (ValueError, RecursionError):
        pairs = _skimmed(text, keys)
        return _python_pairs(text, keys) if pairs is None and literals else pairs
    if not isinstance(found, JsonObject):
        raise NotARowError("not-an-object")
    return found.pairs


def _skimmed(text: str, keys: Collection[str]) -> list[tuple[str, Any]] | None:
    """Return the pairs of `keys` in an object whose other values are skipped unparsed; None if it is no object."""
    if not text.startswith("{"):
        return None
    pairs: list[tuple[str, Any]] = []
    at = _after_space(text, 1)
    try:
        while True:
            name = _STRING.match(text, at)
            if not name:
                return None
            key = json.loads(name.group())
            at = _after_space(text, name.end())
            if text[at] != ":":
                return None
            at = _after_space(text, at + 1)
            if key in keys:
                value, at = _DECODER.raw_decode(text, at)
                pairs.append((key, value))
            else:
                at = _after_value(text, at)
            at = _after_space(text, at)
            if text[at] == "}":
                return pairs if at + 1 == len(text) else None
            if text[at] != ",":
                return None
            at = _after_space(text, at + 1)
    except (ValueError, IndexError, RecursionError):
        return None


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _after_value(text: str, at: int) -> int:
    """Return where the value ends that starts here.

    Raises:
        ValueError: No value starts or ends.
    """
    if text[at] not in "[{":
        match = (_STRING if text[at] == '"' else _WORD).match(text, at)
        if not match:
            raise ValueError
        return match.end()
    depth = 0
    for match in _NESTED.finditer(text, at):
        sign = match.group()
        depth += (sign in "[{") - (sign in "]}")
        if not depth:
            return match.end()
    raise ValueError


def _python_pairs(text: str, keys: Collection[str]) -> list[tuple[str, Any]] | None:
    """Return the pairs of `keys` in a dict as Python writes it; None for anything else."""
    if not text.startswith("{"):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" and the like are common, and mean what they say
            tree = ast.parse(text, mode="eval").body
        if not isinstance(tree, ast.Dict):
            return None
        pairs: list[tuple[str, Any]] = []
        for key, value in zip(tree.keys, tree.values, strict=True):
            name = key.value if isinstance(key, ast.Constant) else None
            if isinstance(name, str) and name in keys:
                pairs.append((name, _python_value(value)))
        return pairs if all(key is not None for key in tree.keys) else None
    except REFUSALS:
        return None


def _python_value(node: ast.expr) -> Any:
    """Return the value of a literal; `nan` is a missing one.

    Raises:
        ValueError: It is not a literal, or one that JSON has no counterpart of.
    """
    if isinstance(node, ast.Name) and node.id in ("nan", "NaN"):
        return None
    value = ast.literal_eval(node)
    if isinstance(value, bytes | complex | set):
        raise ValueError
    return JsonObject([(str(key), None) for key in value]) if isinstance(value, dict) else value


def _has_surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return not value.isascii() and _SURROGATE.search(value) is not None
    return isinstance(value, list) and any(map(_has_surrogate, value))

"""Read CSV files: records with their text, and their fields into canonical columns.

A record that cannot be split into fields becomes a bad row, and reading continues at its second line.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from nextquill_core.errors import DataError
from nextquill_core.ingest.batches import BATCH_ROWS, RAW_CHARS, BadRow, Batch, Part
from nextquill_core.ingest.canonical import Fault, check_columns, mapped_fields, read_fields
from nextquill_core.ingest.formats.text_files import MAX_LINE_BYTES, Block, encoding_remedy, read_blocks
from nextquill_core.ingest.formats.values import ValueRules, check_times

DELIMITERS = (",", ";", "\t", "|")
MAX_SPAN = 1 << 20  # characters over whose lines one record may extend; past it, a quote was never closed
READ_BYTES = 4 << 20
_SEPARATOR = re.compile(r'"?sep=(.)"?', re.IGNORECASE)  # a first line by which Excel names the delimiter
_RETURN = "\ud800"  # stands for a carriage return; no text that was decoded holds it


@dataclass(frozen=True)
class Dialect:
    """How a CSV file is written.

    Attributes:
        delimiter: What separates fields.
        quote: What stands around fields that hold delimiters or line ends; None where nothing does.
        escape: What stands before a quote, a delimiter, a line end or itself to take it literally; before anything
            else it is an ordinary character. Without quotes it also makes `n`, `t` and `r` a line end, a tab and a
            carriage return, as MySQL and PostgreSQL write them.
        encoding: As Python names it.
        header: Whether the first record names the columns, or the names where none does. With False, columns are
            named by their number, from 1.
        fixed: Whether the delimiter was asked for; otherwise the header may show another one.

    Raises:
        DataError: Two of the three characters are the same.
    """

    delimiter: str = ","
    quote: str | None = '"'
    escape: str | None = None
    encoding: str = "utf-8"
    header: bool | tuple[str, ...] = True
    fixed: bool = False

    def __post_init__(self) -> None:
        given = [each for each in (self.delimiter, self.quote, self.escape) if each is not None]
        if len(set(given)) < len(given):
            raise DataError(
                f"delimiter, quote and escape must differ, but are {', '.join(map(repr, given))}",
                "ingest.options",
                "set the one that is different in your files",
            )

    def reader(self, lines: Iterator[str]) -> Any:
        """Return Python's reader for this dialect."""
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quotechar=self.quote or '"',
            escapechar=self.escape,
            quoting=csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE,
            strict=True,
        )

    def adapted(self, line: str) -> str:
        """Return a line in which the escape character stands only where Python's reader takes it as meant here."""
        if self.escape is None or self.escape not in line:
            return line
        escape, special = self.escape, {self.escape, self.delimiter, self.quote, "\n", "\r", _RETURN}
        controls = {} if self.quote else {"n": "\n", "t": "\t", "r": _RETURN}

        def adapt(match: re.Match[str]) -> str:
            following = match[1]
            if following == "\r\n":
                return escape + "\n"
            if following in special:
                return match[0]
            return escape + controls[following] if following in controls else 2 * escape + following

        return re.sub(re.escape(escape) + "(\r\n|.?)", adapt, line, flags=re.DOTALL)


@dataclass(frozen=True)
class Record:
    """One record of a CSV file.

    Attributes:
        fields: Its fields; empty where it is a blank line, or no record.
        raw: Its text, without the line end.
        position: How far the file has been read, in bytes on disk.
        reason: Why it is no record.
    """

    fields: list[str]
    raw: str
    position: int
    reason: str | None = None


def read_csv(
    path: Path, keys: Mapping[str, str], rules: ValueRules, part: Part, dialect: Dialect, batch_bytes: int
) -> Iterator[Batch]:
    """Read CSV; `line` numbers the records, blank lines included.

    A record that cannot be split into fields is `not-csv`. Reading continues at its second line, so that the records
    after a quote that is never closed are read.

    Args:
        path: The file, plain or gzip.
        keys: Raw column by canonical column.
        rules: How values become canonical.
        part: Reviews or items.
        dialect: How the file is written.
        batch_bytes: About how much text a batch holds; it has at most `BATCH_ROWS` rows.

    Raises:
        DataError: The file cannot be read, or a column is not there.
    """
    check_times(rules.times)
    header = _header(path, keys, dialect, batch_bytes)
    if header is None:
        return
    found, names, dialect, read, blank = header
    places = {key: names.index(key) for key in keys.values()}
    fields = mapped_fields(keys, rules, part)
    faults = _Faults(path, dialect, len(names))

    def batch(rows: list[tuple[int, Record]], bad: list[BadRow], blank: int, last: Record) -> Batch:
        raw = {
            key: pl.Series([record.fields[place] for _, record in rows], dtype=pl.String)
            for key, place in places.items()
        }
        good, invalid = read_fields(raw, [line for line, _ in rows], fields, part)
        texts = {line: record.raw for line, record in rows}
        bad += [fault.row(line, texts[line]) for line, fault in invalid.items()]
        return Batch(
            rows=good,
            bad=sorted(bad, key=lambda row: row.line),
            blank=blank,
            last_line=read,
            position=last.position,
            raw=lambda line: texts[line][:RAW_CHARS],
        )

    rows: list[tuple[int, Record]] = []
    bad: list[BadRow] = []
    chars, last = 0, None
    for record in found:
        read, last = read + 1, record
        chars += len(record.raw)
        reason = record.reason or (
            "wrong-number-of-fields" if record.fields and len(record.fields) != len(names) else None
        )
        if reason:
            bad.append(faults.of(reason, record).row(read, record.raw))
        elif record.fields:
            rows.append((read, record))
        else:
            blank += 1
        if chars >= batch_bytes or len(rows) + len(bad) >= BATCH_ROWS:
            yield batch(rows, bad, blank, last)
            rows, bad, blank, chars, last = [], [], 0, 0, None
    if last:
        yield batch(rows, bad, blank, last)


def records(path: Path, dialect: Dialect, block_bytes: int = READ_BYTES) -> Iterator[Record]:
    """Read a CSV file, plain or gzip: fields in quotes may hold delimiters, line ends and doubled quotes.

    Args:
        path: The file.
        dialect: How it is written.
        block_bytes: How much is read at a time; nothing else depends on it.

    Raises:
        DataError: The file cannot be read, or is not what its name says.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))  # the module's default is 128 KiB
    blocks = read_blocks(path, block_bytes=min(block_bytes, READ_BYTES), encoding=dialect.encoding)
    lines = _Lines(blocks, dialect)
    reader = dialect.reader(lines)
    while True:
        lines.begin()
        fields, reason = [], None
        try:
            fields = [each.replace(_RETURN, "\r") for each in next(reader)]
        except StopIteration:
            fault = lines.fault
            if fault is None:
                return
            lines.fault = None
            yield Record([], bytes(fault.data).decode(errors="replace"), fault.position, fault.fault)
            continue
        except csv.Error:
            lines.give_back()
            reason = "not-csv"
            reader = dialect.reader(lines)
        raw = "".join(lines.taken).rstrip("\r\n")
        if lines.undecoded:
            data = raw.encode(errors="surrogateescape")
            raw = data.decode(errors="replace")
            if data != raw.encode():
                fields, reason = [], "invalid-utf8"
        yield Record(fields, raw, lines.position, reason)


@dataclass
class _Lines(Iterator[str]):
    """The lines of a file for `csv.reader`, which asks for as many as a record needs.

    Attributes:
        taken: The lines of the current record.
        undecoded: Whether any line so far was not UTF-8.
        fault: A block that is no line and comes after the waiting lines.
    """

    blocks: Iterator[Block]
    dialect: Dialect
    waiting: deque[str] = field(default_factory=deque)
    taken: list[str] = field(default_factory=list)
    chars: int = 0
    position: int = 0
    undecoded: bool = False
    fault: Block | None = None

    def __next__(self) -> str:
        if self.chars > MAX_SPAN:
            raise StopIteration
        while not self.waiting:
            block = None if self.fault else next(self.blocks, None)
            if block is None:
                raise StopIteration
            self.position = block.position
            if block.fault:
                self.fault = block
                raise StopIteration
            try:
                text = bytes(block.data).decode()
            except UnicodeDecodeError:
                text, self.undecoded = bytes(block.data).decode(errors="surrogateescape"), True
            lines = text.split("\n")
            self.waiting.extend(line + "\n" for line in lines[:-1])
            if lines[-1]:
                self.waiting.append(lines[-1])
        line = self.waiting.popleft()
        self.taken.append(line)
        self.chars += len(line)
        if "\r" in line[:-2]:  # some writers leave a lone carriage return unquoted; lines end at a newline only
            line = line[:-2].replace("\r", _RETURN) + line[-2:]
        return self.dialect.adapted(line)

    def begin(self) -> None:
        """Begin a record."""
        self.taken, self.chars = [], 0

    def give_back(self) -> None:
        """Return all lines of the current record but its first, to be read again."""
        self.waiting.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


def _header(
    path: Path, keys: Mapping[str, str], dialect: Dialect, batch_bytes: int
) -> tuple[Iterator[Record], list[str], Dialect, int, int] | None:
    """Read what stands before the data; None where the file holds nothing.

    Returns:
        The records of data, the names of the columns, the dialect, and how many records and blank ones lie before.
    """
    found = records(path, dialect, batch_bytes)
    first, read, blank = _first(found)
    if first is None:
        return None
    if match := _SEPARATOR.fullmatch(first.raw):
        delimiter = match[1]
    elif dialect.header is True and not dialect.fixed:
        delimiter = _delimiter_of(first.raw, keys, dialect)
    else:
        delimiter = dialect.delimiter
    if match or delimiter != dialect.delimiter:
        dialect = replace(dialect, delimiter=delimiter)
        found = records(path, dialect, batch_bytes)
        first, read, blank = _first(found)
        if match:
            first, more, more_blank = _first(found)
            read, blank = read + more, blank + more_blank + 1
        if first is None:
            return None
    if first.reason:
        fault = _Faults(path, dialect, 0).of(first.reason, first)
        raise DataError(
            f"the header cannot be read ({first.reason}: {first.raw[:80]})",
            str(path),
            fault.remedy or "the first record names the columns",
        )
    if dialect.header is True or (dialect.header is False and _has_all(keys, first.fields)):
        check_columns(keys, first.fields, str(path), _header_remedy(keys, first, dialect))
        return found, first.fields, dialect, read, blank
    names = [str(number) for number in range(1, len(first.fields) + 1)] if dialect.header is False else dialect.header
    remedy = "columns of a file without a header are named by their number" if dialect.header is False else ""
    check_columns(keys, list(names), str(path), remedy)
    return chain([first], found), list(names), dialect, read - 1, blank


def _first(found: Iterator[Record]) -> tuple[Record | None, int, int]:
    """Return the next record that is not blank, how many were read, and how many of them were blank."""
    read = 0
    for record in found:
        read += 1
        if record.reason or record.fields:
            return record, read, read - 1
    return None, read, read


def _delimiter_of(header: str, keys: Mapping[str, str], dialect: Dialect) -> str:
    """Return the delimiter by which a header has all mapped columns; the default one where that is not certain."""

    def fits(delimiter: str) -> bool:
        try:
            return _has_all(keys, next(replace(dialect, delimiter=delimiter).reader(iter([header])), []))
        except csv.Error:
            return False

    free = [delimiter for delimiter in DELIMITERS if delimiter not in (dialect.quote, dialect.escape)]
    fitting = [delimiter for delimiter in free if fits(delimiter)]
    return dialect.delimiter if dialect.delimiter in fitting or len(fitting) != 1 else fitting[0]


def _has_all(keys: Mapping[str, str], names: Sequence[str]) -> bool:
    return set(keys.values()) <= set(names)


def _header_remedy(keys: Mapping[str, str], first: Record, dialect: Dialect) -> str:
    """Say what could be set where a header lacks mapped columns."""
    names = first.fields
    for quote in ("'", "`", '"'):
        if quote != dialect.quote and any(name.strip(quote) in keys.values() for name in names if quote in name):
            return f'the header has quotes: set ingest.options.quote: "{quote}"'
    if not set(keys.values()) & set(names):
        for delimiter in DELIMITERS:
            if delimiter != dialect.delimiter and set(keys.values()) & set(first.raw.split(delimiter)):
                return f"the header holds {delimiter!r}: set ingest.options.delimiter: {delimiter!r}"
        return "if the file has no header, set ingest.options.header to the list of its columns"
    return ""


class _Faults:
    """Why the records of a file cannot be read, and what could be set so that they can."""

    def __init__(self, path: Path, dialect: Dialect, columns: int) -> None:
        self._path, self._dialect, self._columns = path, dialect, columns
        self._encoding_remedy = ""

    def of(self, reason: str, record: Record) -> Fault:
        """Return the fault of a record."""
        dialect, raw = self._dialect, record.raw
        detail = remedy = ""
        if reason == "wrong-number-of-fields":
            detail = f"{len(record.fields)} fields instead of {self._columns} in {raw[:60]}"
        if reason == "invalid-utf8" and dialect.encoding == "utf-8":
            self._encoding_remedy = self._encoding_remedy or encoding_remedy(self._path)
            remedy = self._encoding_remedy
        elif dialect.quote and dialect.escape is None and "\\" + dialect.quote in raw:
            remedy = r"set ingest.options.escape: '\'"
        elif dialect.quote != "'" and reason == "wrong-number-of-fields" and re.search(r"(^|\W)'[^']*,", raw):
            remedy = 'set ingest.options.quote: "\'"'
        elif reason == "not-csv" and dialect.quote:
            remedy = "if fields have no quotes around them, set ingest.options.quote: none"
        return Fault(reason, detail, remedy)

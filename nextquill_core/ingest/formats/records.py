"""CSV as records, each with its text; what is no record is named and hides nothing behind it."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nextquill_core.ingest.formats.blocks import MAX_LINE_BYTES, Block, read_blocks

MAX_SPAN = 1 << 20  # characters over whose lines one record may extend; past it, a quote was never closed
READ_BYTES = 4 << 20
_RETURN = "\ud800"  # no text that was decoded holds it


@dataclass(frozen=True)
class Dialect:
    """How a CSV file is written.

    Attributes:
        delimiter: What separates fields.
        quote: What stands around fields that hold delimiters or line ends; None where nothing does.
        escape: What stands before a quote, a delimiter, a line end or itself to take it literally; before anything
            else it is a character like others. Without quotes it also makes `n`, `t` and `r` a line end, a tab and a
            carriage return, as MySQL and PostgreSQL write them.
        encoding: As Python names it.
    """

    delimiter: str = ","
    quote: str | None = '"'
    escape: str | None = None
    encoding: str = "utf-8"

    def reader(self, lines: Iterator[str]) -> Any:
        """Python's reader for this dialect."""
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quotechar=self.quote or '"',
            escapechar=self.escape,
            quoting=csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE,
            strict=True,
        )

    def prepared(self, line: str) -> str:
        """A line in which the escape character stands only where Python's reader takes it as meant here."""
        if self.escape is None or self.escape not in line:
            return line
        escape, special = self.escape, {self.escape, self.delimiter, self.quote, "\n", "\r", _RETURN}
        controls = {} if self.quote else {"n": "\n", "t": "\t", "r": _RETURN}

        def meant(match: re.Match[str]) -> str:
            following = match[1]
            if following == "\r\n":
                return escape + "\n"
            if following in special:
                return match[0]
            return escape + controls[following] if following in controls else 2 * escape + following

        return re.sub(re.escape(escape) + "(\r\n|.?)", meant, line, flags=re.DOTALL)


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


@dataclass
class _Lines(Iterator[str]):
    """The lines of a file for `csv.reader`, which asks for as many as a record needs."""

    blocks: Iterator[Block]
    dialect: Dialect
    waiting: deque[str] = field(default_factory=deque)
    taken: list[str] = field(default_factory=list)  # by the record at hand
    chars: int = 0
    position: int = 0
    dirty: bool = False  # whether any line so far was no UTF-8
    fault: Block | None = None  # what stands after the waiting lines is no line

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
                text, self.dirty = bytes(block.data).decode(errors="surrogateescape"), True
            lines = text.split("\n")
            self.waiting.extend(line + "\n" for line in lines[:-1])
            if lines[-1]:
                self.waiting.append(lines[-1])
        line = self.waiting.popleft()
        self.taken.append(line)
        self.chars += len(line)
        if "\r" in line[:-2]:  # some writers leave a lone carriage return unquoted; lines end at a newline only
            line = line[:-2].replace("\r", _RETURN) + line[-2:]
        return self.dialect.prepared(line)

    def begin(self) -> None:
        self.taken, self.chars = [], 0

    def give_back(self) -> None:
        """All lines of the record at hand but its first are read again."""
        self.waiting.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


def records(path: Path, dialect: Dialect, block_bytes: int = READ_BYTES) -> Iterator[Record]:
    """Read a CSV file, plain or gzip: fields in quotes may hold delimiters, line ends and doubled quotes.

    Args:
        path: The file.
        dialect: How it is written.
        block_bytes: How much is read at a time; nothing else depends on it.

    Raises:
        DataError: The file cannot be read, or is not what its name says.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))  # the module's own limit is 128 KiB
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
        if lines.dirty:
            data = raw.encode(errors="surrogateescape")
            raw = data.decode(errors="replace")
            if data != raw.encode():
                fields, reason = [], "invalid-utf8"
        yield Record(fields, raw, lines.position, reason)

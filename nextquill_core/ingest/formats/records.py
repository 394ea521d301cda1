"""CSV as records, each with its text; what is no record is named and hides nothing behind it."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nextquill_core.ingest.formats.blocks import MAX_LINE_BYTES, Block, read_blocks

MAX_SPAN = 1 << 20  # characters over whose lines one record may extend; past it, a quote was never closed
READ_BYTES = 4 << 20
_RETURN = "\ud800"  # no text that was decoded holds it


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
        return line

    def begin(self) -> None:
        self.taken, self.chars = [], 0

    def give_back(self) -> None:
        """All lines of the record at hand but its first are read again."""
        self.waiting.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


def records(path: Path, delimiter: str, block_bytes: int = READ_BYTES) -> Iterator[Record]:
    """Read a CSV file, plain or gzip: fields in double quotes may hold delimiters, line ends and doubled quotes.

    Args:
        path: The file.
        delimiter: What separates fields.
        block_bytes: How much is read at a time; nothing else depends on it.

    Raises:
        DataError: The file cannot be read, or is not what its name says.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))  # the module's own limit is 128 KiB
    lines = _Lines(read_blocks(path, block_bytes=min(block_bytes, READ_BYTES)))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
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
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
        raw = "".join(lines.taken).rstrip("\r\n")
        if lines.dirty:
            data = raw.encode(errors="surrogateescape")
            raw = data.decode(errors="replace")
            if data != raw.encode():
                fields, reason = [], "invalid-utf8"
        yield Record(fields, raw, lines.position, reason)

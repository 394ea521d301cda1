"""Read JSON files: lines of objects, dicts as Python writes them, and files that are one array of objects."""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from nextquill_core.errors import DataError
from nextquill_core.ingest.batches import Batch, Part
from nextquill_core.ingest.canonical import mapped_fields, nearest_column
from nextquill_core.ingest.formats.json_parser import NotARowError, Parser, object_keys
from nextquill_core.ingest.formats.text_files import (
    Block,
    DamagedFileError,
    beginning,
    encoding_remedy,
    read_blocks,
    read_pieces,
)
from nextquill_core.ingest.formats.values import ValueRules, check_times

HEAD_BYTES = 1 << 20
HEAD_LINES = 1000
SEARCHED_BYTES = 8 << 20
PIECE_BYTES = 1 << 20
MAX_ELEMENT_BYTES = 64 << 20
MOST_THREADS = 8  # more would wait for the writers, and each holds a block and its rows
SPACE = b" \t\r\n"
# A string, the beginning of a string whose end is not read yet, or what separates and nests elements.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|"|[\[\]{},]', re.DOTALL)
T = TypeVar("T")
R = TypeVar("R")


def read_json(
    path: Path,
    keys: Mapping[str, str],
    rules: ValueRules,
    part: Part,
    batch_bytes: int,
    resume: Any = None,
    *,
    encoding: str = "utf-8",
    siblings: Sequence[Path] = (),
) -> Iterator[Batch]:
    """Read objects, one a line or the elements of one array, which `line` numbers; values are converted by their types.

    Args:
        path: The file, plain or gzip.
        keys: Raw key by canonical column.
        rules: How values become canonical.
        part: Reviews or items.
        batch_bytes: About how much text a batch holds.
        resume: As in `Source.read`; an array is always read from its beginning.
        encoding: As in `read_blocks`.
        siblings: All files of the part; a key that only some of them have is a missing value in the others.

    Raises:
        DataError: The file cannot be read, or no object has one of the keys.
    """
    check_times(rules.times)
    parser = Parser(mapped_fields(keys, rules, part), part, literals=True)
    if resume is None:
        _check_keys(path, list(keys.values()), encoding, siblings)
    if resume is None and beginning(path, HEAD_BYTES, encoding=encoding).startswith(b"["):
        for block in _element_blocks(path, batch_bytes, encoding):
            yield replace(parser.parse(block), resume=None)
    else:
        yield from read_lines(path, parser, batch_bytes, resume, encoding=encoding)


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
    remedy = ""
    for batch in _map_in_order(parser.parse, blocks):
        if encoding == "utf-8" and any(row.reason == "invalid-utf8" for row in batch.bad):
            remedy = remedy or encoding_remedy(path)
            bad = [replace(row, remedy=remedy) if row.reason == "invalid-utf8" else row for row in batch.bad]
            batch = replace(batch, bad=bad)
        yield batch


def elements(
    path: Path, piece_bytes: int = PIECE_BYTES, *, encoding: str = "utf-8"
) -> Iterator[tuple[bytes, int, str | None]]:
    """Read the elements of a JSON array, or the lines of a file that begins with an object.

    Only brackets, commas and quotes are looked at, so an element need not be JSON.

    Args:
        path: The file, plain or gzip.
        piece_bytes: How much is read at a time; nothing else depends on it.
        encoding: As in `read_blocks`.

    Yields:
        The text of each element, how far the file has been read (in bytes on disk), and why it cannot be what it
        should, if that is already known.

    Raises:
        DataError: The file cannot be read, is neither, or ends or breaks off within the array.
    """
    pieces = _whole_pieces(path, piece_bytes, encoding)
    buffer, position = b"", 0
    while not buffer:
        piece, position = next(pieces, (b"", position))
        if not piece:
            break
        buffer = piece.lstrip(SPACE)
    if buffer.startswith(b"{"):
        for block in read_blocks(path, block_bytes=piece_bytes, encoding=encoding):
            if block.fault:
                yield bytes(block.data), block.position, block.fault
                continue
            lines = bytes(block.data).split(b"\n")
            yield from ((line, block.position, None) for line in (lines if lines[-1] else lines[:-1]))
        return
    if not buffer.startswith(b"["):
        raise DataError("is neither a JSON array nor JSON lines", str(path), "give one of these, or Parquet")
    splitter, buffer, count = _Splitter(), buffer[1:], 0
    while True:
        for element in splitter.feed(buffer):
            count += 1
            yield element, position, None if element.strip(SPACE) else "not-json"
        if splitter.closed:
            break
        if len(splitter.rest) > MAX_ELEMENT_BYTES:
            raise DataError(f"element {count + 1} is longer than {MAX_ELEMENT_BYTES >> 20} MB", str(path), "split it")
        buffer, position = next(pieces, (b"", 0))
        if not buffer:
            raise DataError(f"the array breaks off in element {count + 1}", str(path), "fetch the file again")
    for piece, _ in pieces:
        splitter.rest += piece
        if splitter.rest.strip(SPACE):
            break
    if splitter.rest.strip(SPACE):
        raise DataError("something follows the array", str(path), "give the file as it is published")


def _check_keys(path: Path, keys: Sequence[str], encoding: str, siblings: Sequence[Path]) -> None:
    """Check that every mapped key occurs in a file or its siblings; a misspelt name never does.

    Raises:
        DataError: One does not; the nearest key is suggested.
    """
    seen = _keys_at_the_beginning(path, encoding)
    absent = [key for key in keys if key not in seen]
    if not seen or not absent:
        return
    for file in dict.fromkeys((path, *siblings)):
        found = _occurring(file, absent, encoding)
        absent = [key for key in absent if key not in found]
        if not absent:
            return
    raise DataError(f"no object has the key `{absent[0]}`", str(path), nearest_column(absent[0], list(seen)))


def _keys_at_the_beginning(path: Path, encoding: str) -> dict[str, None]:
    head = beginning(path, HEAD_BYTES, encoding=encoding)
    if head.startswith(b"["):
        lines = [element for element, _, _ in islice(elements(path, encoding=encoding), HEAD_LINES)]
    else:
        lines = head.split(b"\n")[:HEAD_LINES]
    seen: dict[str, None] = {}
    for line in lines:
        try:
            seen |= dict.fromkeys(object_keys(line, literals=True))
        except NotARowError:
            continue
    return seen


def _occurring(path: Path, keys: Sequence[str], encoding: str) -> set[str]:
    """Return the keys that stand in quotes anywhere in a file; searching takes a fraction of the time of parsing."""
    wanted = {
        key: re.compile("|".join(rf"""["']{re.escape(form)}["']""" for form in {key, json.dumps(key)[1:-1]}).encode())
        for key in keys
    }
    found: set[str] = set()
    for block in read_blocks(path, block_bytes=SEARCHED_BYTES, encoding=encoding):
        found |= {key for key in wanted.keys() - found if wanted[key].search(block.data)}
        if len(found) == len(wanted):
            break
    return found


def _element_blocks(path: Path, batch_bytes: int, encoding: str) -> Iterator[Block]:
    """Yield the elements as lines: a line end within an element is white space, for texts have theirs escaped."""
    held: list[bytes] = []
    size, first, at = 0, 1, 0
    for element, position, fault in elements(path, encoding=encoding):
        line = element.replace(b"\n", b" ").replace(b"\r", b" ") if not fault else b"nothing between two commas"
        held.append(line)
        size, at = size + len(line), position
        if size >= batch_bytes:
            yield Block(b"\n".join(held), first, 0, at)
            held, size, first = [], 0, first + len(held)
    if held:
        yield Block(b"\n".join(held), first, 0, at)


def _whole_pieces(path: Path, size: int, encoding: str) -> Iterator[tuple[bytes, int]]:
    """Yield the pieces of a file that has to be whole."""
    try:
        yield from read_pieces(path, size, encoding=encoding)
    except DamagedFileError:
        raise DataError("the gzip data are damaged or break off", str(path), "fetch the file again") from None


def _map_in_order(function: Callable[[T], R], values: Iterable[T]) -> Iterator[R]:
    """Apply a function that holds no lock on several threads, and yield the results in order.

    At most one value a thread is in memory.
    """
    threads = min(os.cpu_count() or 1, MOST_THREADS)
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="ingest-parser") as pool:
        try:
            for value in values:
                if len(waiting) == threads:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(function, value))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _Splitter:
    """Splits an array at its commas.

    Attributes:
        rest: What is no whole element yet; after the array's end, what follows it.
        closed: Whether the array's end was met.
    """

    def __init__(self) -> None:
        self.rest = b""
        self.closed = False
        self._depth = 0
        self._scanned = 0  # bytes of `rest` that need not be looked at again
        self._any = False

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yield the elements that end in this piece."""
        data, start, at = self.rest + piece, 0, self._scanned
        while match := _TOKEN.search(data, at):
            sign = match.group()
            if sign == b'"':
                at = match.start()
                break
            at = match.end()
            if sign in b"[{":
                self._depth += 1
            elif sign == b"," and not self._depth:
                yield data[start : match.start()]
                start, self._any = at, True
            elif sign in b"]}":
                if not self._depth:
                    last = data[start : match.start()]
                    if self._any or last.strip(SPACE):
                        yield last
                    self.rest, self.closed = data[at:], True
                    return
                self._depth -= 1
        else:
            at = len(data)
        self.rest, self._scanned = data[start:], at - start

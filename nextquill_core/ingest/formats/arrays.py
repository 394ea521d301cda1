"""JSON files too large to be read at once: the elements of one array, or the lines of JSON lines, one by one."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO

from nextquill_core.errors import DataError
from nextquill_core.ingest.formats.blocks import read_blocks
from nextquill_core.ingest.formats.signatures import HEAD_BYTES, UTF8_MARK, is_gzip

PIECE_BYTES = 1 << 20
MAX_ELEMENT_BYTES = 64 << 20
SPACE = b" \t\r\n"
# A string, the beginning of one whose end is not read yet, or what parts elements.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|"|[\[\]{},]', re.DOTALL)


def elements(path: Path, piece_bytes: int = PIECE_BYTES) -> Iterator[tuple[bytes, int, str | None]]:
    """Read the elements of a JSON array, or the lines of a file that begins with an object.

    Only brackets, commas and quotes are looked at, so an element need not be JSON.

    Args:
        path: The file, plain or gzip.
        piece_bytes: How much is read at a time; nothing else depends on it.

    Yields:
        The text of each, how far the file has been read (in bytes on disk), and why it cannot be what it should, if
        that is already known.

    Raises:
        DataError: The file cannot be read, is neither, or ends or breaks off within the array.
    """
    pieces = _pieces(path, piece_bytes)
    buffer, position = b"", 0
    while not buffer:
        piece, position = next(pieces, (b"", position))
        if not piece:
            break
        buffer = piece.removeprefix(UTF8_MARK).lstrip(SPACE)
    if buffer.startswith(b"{"):
        pieces.close()
        for block in read_blocks(path, block_bytes=piece_bytes):
            if block.fault:
                yield bytes(block.data), block.position, block.fault
                continue
            lines = bytes(block.data).split(b"\n")
            yield from ((line, block.position, None) for line in (lines if lines[-1] else lines[:-1]))
        return
    if not buffer.startswith(b"["):
        raise DataError("is neither a JSON array nor JSON lines", str(path), "give the file as it is published")
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


class _Splitter:
    """Parts an array at its commas.

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


def _pieces(path: Path, size: int) -> Generator[tuple[bytes, int], None, None]:
    try:
        with path.open("rb") as file:
            zipped = is_gzip(file.read(HEAD_BYTES), path)
            file.seek(0)
            stream: BinaryIO = gzip.GzipFile(fileobj=file) if zipped else file  # type: ignore[assignment]
            while piece := stream.read(size):
                yield piece, file.tell()
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DataError("the gzip data are damaged or break off", str(path), "fetch the file again") from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", str(path), "check its permissions") from None

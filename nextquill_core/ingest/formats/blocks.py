"""Files, plain or gzip, as blocks of whole lines in bounded memory."""

from __future__ import annotations

import codecs
import os
import weakref
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nextquill_core.errors import DataError
from nextquill_core.ingest.formats.ahead import ahead
from nextquill_core.ingest.formats.signatures import (
    HEAD_BYTES,
    UTF8_MARK,
    iconv,
    is_gzip,
    marked_encoding,
    refuse_substitutes,
    unmarked_utf16,
)
from nextquill_core.ingest.sources.base import BATCH_BYTES

MAX_LINE_BYTES = 16 << 20  # a thousand times the longest review: past it, this is no row
LONG_LINE_BYTES = 8192  # what is kept of a line that is too long
TAIL_BYTES = 64 << 10  # where a block's last newline is looked for first
PACKED_BYTES = 16 << 10  # inflated at a time: at most 16 MB, and all that is lost before a corrupt place
NEWLINE, OBJECT = 10, ord("{")
MOST_ODD_LINES = 1 << 17  # in a block
UNDECODABLE = b"\xff"  # bytes that the file's encoding does not have become this one, which no UTF-8 has


@dataclass(frozen=True)
class Block:
    """Some whole lines of a file.

    Attributes:
        data: The lines; the file's last line may lack its newline.
        first_line: Number of the first line, from 1.
        end: Offset of the block's end, in bytes of uncompressed text.
        position: How far the file itself was read, in bytes on disk.
        fault: Why the block's one line cannot be read, whatever it holds; `data` is then only its head.
    """

    data: bytes | memoryview
    first_line: int
    end: int
    position: int
    fault: str | None = None


class _DamagedFileError(Exception):
    """The compressed file ends or breaks off here; the message is the reason."""


def read_blocks(
    path: Path,
    *,
    block_bytes: int = BATCH_BYTES,
    max_line_bytes: int = MAX_LINE_BYTES,
    start: int = 0,
    first_line: int = 1,
    encoding: str = "utf-8",
) -> Iterator[Block]:
    """Cut a file into blocks of about `block_bytes` at newlines, reading one block ahead.

    Blocks end at the last newline before a multiple of `block_bytes`, so they are the same wherever reading begins.
    Text in another encoding is turned into UTF-8 first; all offsets are then those of the UTF-8 text.

    Args:
        path: Plain text, or gzip where the name ends in .gz.
        block_bytes: Target size of a block; a longer line makes a longer block.
        max_line_bytes: A longer line becomes a block of its own with a fault.
        start: Offset in uncompressed text at which a line starts and reading begins.
        first_line: Number of that line.
        encoding: How the text is encoded, as Python names it. A byte order mark in the file counts for more.

    Raises:
        DataError: The file cannot be read, or is not what its name says.
    """
    return ahead(_blocks(path, block_bytes, max_line_bytes, start, first_line, encoding))


def _blocks(path: Path, block_bytes: int, max_line_bytes: int, start: int, line: int, encoding: str) -> Iterator[Block]:
    carry = b""  # the beginning of a line whose end is not read yet
    skipping = False  # inside a line that is too long; `carry` then holds its head
    end, damage = start, None
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", str(path), "check its permissions") from None
    with file:
        chunks = _chunks(file, path, block_bytes, start, encoding)
        while True:
            try:
                chunk = next(chunks, None)
            except _DamagedFileError as error:
                chunk, damage = None, str(error)
            if chunk is None:
                break
            if skipping:
                chunk = bytes(chunk)
                newline = chunk.find(b"\n")
                end += len(chunk) if newline < 0 else newline + 1
                if newline < 0:
                    continue
                yield Block(carry, line, end, file.tell(), "line-too-long")
                carry, chunk, line, skipping = b"", chunk[newline + 1 :], line + 1, False
            if not carry and chunk and chunk[-1] == NEWLINE:
                newline, data = len(chunk) - 1, chunk
            else:
                chunk = bytes(chunk)
                newline = chunk.rfind(b"\n")
                data = b"".join((carry, memoryview(chunk)[: newline + 1]))
            if newline >= 0:
                carry = bytes(chunk[newline + 1 :])
                end += len(data)
                begins = end - len(data)
                for piece, lines in _pieces(data):
                    begins += len(piece)
                    yield Block(_without_bom(piece) if line == 1 else piece, line, begins, file.tell())
                    line += lines
            else:
                carry += chunk
            if len(carry) > max_line_bytes:
                end += len(carry)
                carry, skipping = carry[:LONG_LINE_BYTES], True
        if skipping or carry or damage:
            end += 0 if skipping else len(carry)
            fault = damage or ("line-too-long" if skipping else None)
            yield Block(_without_bom(carry) if line == 1 else carry, line, end, file.tell(), fault)


def beginning(path: Path, size: int, *, encoding: str = "utf-8") -> bytes:
    """About the first `size` bytes of a file's text, from the first that is no white space.

    Args:
        path: Plain text, or gzip where the name ends in .gz.
        size: How much is enough.
        encoding: As in `read_blocks`.

    Raises:
        DataError: As in `read_blocks`.
    """
    data = b""
    try:
        with path.open("rb", buffering=0) as file:
            for chunk in _chunks(file, path, size, 0, encoding):
                data = (data + bytes(_without_bom(chunk) if not data else chunk)).lstrip()
                if len(data) >= size:
                    break
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", str(path), "check its permissions") from None
    except _DamagedFileError:
        pass  # what was read before it counts
    return data


def _without_bom(data: bytes | memoryview) -> bytes | memoryview:
    return data[len(UTF8_MARK) :] if data[: len(UTF8_MARK)] == UTF8_MARK else data


def _pieces(data: bytes | memoryview) -> Iterator[tuple[bytes | memoryview, int]]:
    """Whole lines in pieces, each with its number of lines.

    A piece ends after `MOST_ODD_LINES` lines that hold something and do not begin as an object does. Each of these may
    become a bad row, which takes some hundred bytes. Lines of objects are never cut apart.
    """
    step = 1 << 16  # a piece that stays in the processor's cache, and whose comparison malloc does not map again
    text = np.frombuffer(data, np.uint8)
    start, lines = 0, 0
    odd = int(len(text) > 0 and text[0] not in (NEWLINE, OBJECT))
    for i in range(0, len(text), step):
        ends = np.flatnonzero(text[i : i + step] == NEWLINE) + i
        following = text[ends[: np.searchsorted(ends, len(text) - 1)] + 1]
        is_odd = (following != NEWLINE) & (following != OBJECT)
        found = int(np.count_nonzero(is_odd))
        done = 0
        while odd + found > MOST_ODD_LINES:
            last = int(np.flatnonzero(is_odd[done:])[MOST_ODD_LINES - odd]) + done  # the next line is one too many
            end = int(ends[last]) + 1
            yield data[start:end], lines + last + 1 - done
            start, lines, odd = end, 0, 1
            found -= int(np.count_nonzero(is_odd[done : last + 1]))
            done = last + 1
        odd += found
        lines += len(ends) - done
    if start < len(data):
        yield data[start:] if start else data, lines


class _Buffers:
    """Memory that is lent out and comes back when the last view of it is gone.

    New memory is cleared by the kernel page by page, and that takes several times as long as reading a file into it.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[npt.NDArray[np.uint8]] = []

    def take(self) -> memoryview:
        """A writable view of the memory."""
        memory = self._free.pop() if self._free else np.empty(self._size, np.uint8)
        lent = memory[:]
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return memoryview(lent)  # type: ignore[arg-type]  # numpy's stubs do not tell that arrays are buffers


def _chunks(file: FileIO, path: Path, size: int, start: int, encoding: str) -> Iterator[bytes | memoryview]:
    head = file.read(HEAD_BYTES)
    zipped = is_gzip(head, path)
    file.seek(0)
    if not zipped and (encoding := _encoding(head, path, encoding)) == "utf-8":
        yield from _whole_lines(file, size, start)
        return
    chunks: Iterable[bytes] = _inflated(file, size) if zipped else iter(lambda: file.read(size), b"")
    if zipped:
        chunks = iter(chunks)
        first = next(chunks, b"")
        refuse_substitutes(first, path)
        encoding = _encoding(first[:HEAD_BYTES], path, encoding)
        chunks = _joined(first, chunks)
    for chunk in chunks if encoding == "utf-8" else _decoded(chunks, encoding):
        if start < len(chunk):
            yield chunk[start:] if start else chunk
        start = max(0, start - len(chunk))


def _encoding(head: bytes, path: Path, encoding: str) -> str:
    """The encoding of a file that begins with `head`: that of its mark, otherwise the one that was asked for."""
    marked = marked_encoding(head)
    if marked or head.startswith(UTF8_MARK):
        return marked or "utf-8"
    encoding = codecs.lookup(encoding).name
    if encoding == "utf-8" and (found := unmarked_utf16(head)):
        raise DataError(
            f"is {found.upper()} without a byte order mark",
            str(path),
            f"with ingest.source table set ingest.options.encoding: {found}; or convert it: {iconv(found)}",
        )
    return encoding


def _joined(first: bytes, others: Iterable[bytes]) -> Iterator[bytes]:
    yield first
    yield from others


def _decoded(chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Text as UTF-8; what cannot be decoded becomes `UNDECODABLE`, so that its line is refused and no other."""
    decoder = codecs.getincrementaldecoder(encoding)("nextquill-undecodable")
    for chunk in chunks:
        yield decoder.decode(chunk).encode(errors="surrogateescape")
    if last := decoder.decode(b"", final=True):
        yield last.encode(errors="surrogateescape")


def _undecodable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return UNDECODABLE.decode(errors="surrogateescape"), error.end


codecs.register_error("nextquill-undecodable", _undecodable)


def _whole_lines(file: FileIO, size: int, start: int) -> Iterator[memoryview]:
    """Pieces up to the last newline before a multiple of `size`, or, where none is near, up to the multiple itself.

    A piece of whole lines is a block as it stands: its bytes are copied once, from the file.
    """
    buffers = _Buffers(size + TAIL_BYTES)
    whole = os.fstat(file.fileno()).st_size
    while start < whole:
        boundary = (start // size + 1) * size
        if boundary - start <= TAIL_BYTES and not _newline_in(file, start, boundary):
            boundary += size  # what is left before the first multiple belongs to the line that goes on after it
        end = min(boundary, whole)
        tail = max(start, end - TAIL_BYTES)
        end = _newline_in(file, tail, end) or end
        file.seek(start)
        memory = buffers.take()
        read = file.readinto(memory[: end - start])
        if not read:
            return
        yield memory[:read].toreadonly()
        start += read


def _newline_in(file: FileIO, start: int, end: int) -> int:
    """The offset after the last newline in this piece of a file, or 0."""
    file.seek(start)
    newline = file.read(end - start).rfind(b"\n")
    return 0 if newline < 0 else start + newline + 1


def _inflated(file: FileIO, size: int) -> Iterator[bytes]:
    """Inflate one gzip member after another, into pieces of `size` bytes; the last one may be shorter."""
    inflate = zlib.decompressobj(wbits=31)
    held, packed, damage = bytearray(), b"", None
    while packed := packed or file.read(PACKED_BYTES):
        if inflate.eof:
            packed = packed.lstrip(b"\0")  # members may be followed by padding
            if not packed:
                continue
            inflate = zlib.decompressobj(wbits=31)
        try:
            held += inflate.decompress(packed)
        except zlib.error:
            damage = "corrupt-gzip"
            break
        packed = inflate.unused_data
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)
    if damage or not inflate.eof:
        raise _DamagedFileError(damage or "truncated-gzip")

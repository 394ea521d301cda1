"""Files, plain or gzip, as blocks of whole lines in bounded memory."""

from __future__ import annotations

import os
import weakref
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nextquill_core.errors import DataError
from nextquill_core.ingest.formats.ahead import ahead
from nextquill_core.ingest.sources.base import BATCH_BYTES

MAX_LINE_BYTES = 16 << 20  # a thousand times the longest review: past it, this is no row
HEAD_BYTES = 8192  # what is kept of a line that is too long
TAIL_BYTES = 64 << 10  # where a block's last newline is looked for first
PACKED_BYTES = 16 << 10  # inflated at a time: at most 16 MB, and all that is lost before a corrupt place
NEWLINE = 10
BOM = b"\xef\xbb\xbf"
GZIP_MAGIC = b"\x1f\x8b"


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
) -> Iterator[Block]:
    """Cut a file into blocks of about `block_bytes` at newlines, reading one block ahead.

    Blocks end at the last newline before a multiple of `block_bytes`, so they are the same wherever reading begins.

    Args:
        path: Plain text, or gzip where the name ends in .gz.
        block_bytes: Target size of a block; a longer line makes a longer block.
        max_line_bytes: A longer line becomes a block of its own with a fault.
        start: Offset in uncompressed text at which a line starts and reading begins.
        first_line: Number of that line.

    Raises:
        DataError: The file cannot be read, or is not what its name says.
    """
    return ahead(_blocks(path, block_bytes, max_line_bytes, start, first_line))


def _blocks(path: Path, block_bytes: int, max_line_bytes: int, start: int, line: int) -> Iterator[Block]:
    carry = b""  # the beginning of a line whose end is not read yet
    skipping = False  # inside a line that is too long; `carry` then holds its head
    end, damage = start, None
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", str(path), "check its permissions") from None
    with file:
        chunks = _chunks(file, path, block_bytes, start)
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
                yield Block(_without_bom(data) if line == 1 else data, line, end, file.tell())
                line += _count_lines(data)
            else:
                carry += chunk
            if len(carry) > max_line_bytes:
                end += len(carry)
                carry, skipping = carry[:HEAD_BYTES], True
        if skipping or carry or damage:
            end += 0 if skipping else len(carry)
            fault = damage or ("line-too-long" if skipping else None)
            yield Block(_without_bom(carry) if line == 1 else carry, line, end, file.tell(), fault)


def _without_bom(data: bytes | memoryview) -> bytes | memoryview:
    return data[len(BOM) :] if data[: len(BOM)] == BOM else data


def _count_lines(data: bytes | memoryview) -> int:
    step = 1 << 16  # a piece that stays in the processor's cache, and whose comparison malloc does not map anew
    text = np.frombuffer(data, np.uint8)
    return sum(int(np.count_nonzero(text[i : i + step] == NEWLINE)) for i in range(0, len(text), step))


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


def is_gzip(magic: bytes, path: Path) -> bool:
    """Whether a file that begins with `magic` is gzip.

    Raises:
        DataError: Its name says otherwise.
    """
    zipped = magic == GZIP_MAGIC
    if zipped != (path.suffix == ".gz"):
        fault = "is gzip, but its name does not end in .gz" if zipped else "its name ends in .gz, but it is not gzip"
        raise DataError(fault, str(path), "rename it")
    return zipped


def _chunks(file: FileIO, path: Path, size: int, start: int) -> Iterator[bytes | memoryview]:
    magic = file.read(2)
    zipped = is_gzip(magic, path)
    if magic in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError("is UTF-16", str(path), "convert it to UTF-8: iconv -f UTF-16 -t UTF-8")
    if not zipped:
        yield from _whole_lines(file, size, start)
        return
    file.seek(0)
    for chunk in _inflated(file, size):
        if start < len(chunk):
            yield chunk[start:] if start else chunk
        start = max(0, start - len(chunk))


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

"""Files, plain or gzip, as blocks of whole lines in bounded memory."""

from __future__ import annotations

import queue
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nextquill_core.errors import DataError
from nextquill_core.ingest.sources.base import BATCH_BYTES

MAX_LINE_BYTES = 16 << 20  # a thousand times the longest review: past it, this is no row
HEAD_BYTES = 8192  # what is kept of a line that is too long
TAIL_BYTES = 64 << 10  # where a block's last newline is looked for first
PACKED_BYTES = 16 << 10  # inflated at a time: at most 16 MB, and all that is lost before a corrupt place
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

    data: bytes
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
    return _ahead(_blocks(path, block_bytes, max_line_bytes, start, first_line))


def _blocks(path: Path, block_bytes: int, max_line_bytes: int, start: int, line: int) -> Iterator[Block]:
    carry = b""  # the beginning of a line whose end is not read yet
    skipping = False  # inside a line that is too long; `carry` then holds its head
    end, damage = start, None
    try:
        file = path.open("rb")
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
                newline = chunk.find(b"\n")
                end += len(chunk) if newline < 0 else newline + 1
                if newline < 0:
                    continue
                yield Block(carry, line, end, file.tell(), "line-too-long")
                carry, chunk, line, skipping = b"", chunk[newline + 1 :], line + 1, False
            newline = chunk.rfind(b"\n")
            if newline >= 0:
                whole = not carry and newline == len(chunk) - 1
                data = chunk if whole else b"".join((carry, memoryview(chunk)[: newline + 1]))
                carry = chunk[newline + 1 :]
                end += len(data)
                yield Block(data.removeprefix(BOM) if line == 1 else data, line, end, file.tell())
                line += data.count(b"\n")
            else:
                carry += chunk
            if len(carry) > max_line_bytes:
                end += len(carry)
                carry, skipping = carry[:HEAD_BYTES], True
        if skipping or carry or damage:
            end += 0 if skipping else len(carry)
            fault = damage or ("line-too-long" if skipping else None)
            yield Block(carry.removeprefix(BOM) if line == 1 else carry, line, end, file.tell(), fault)


def _chunks(file: BinaryIO, path: Path, size: int, start: int) -> Iterator[bytes]:
    magic = file.read(2)
    zipped = magic == GZIP_MAGIC
    if zipped != (path.suffix == ".gz"):
        fault = "is gzip, but its name does not end in .gz" if zipped else "its name ends in .gz, but it is not gzip"
        raise DataError(fault, str(path), "rename it")
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


def _whole_lines(file: BinaryIO, size: int, start: int) -> Iterator[bytes]:
    """Pieces up to the last newline before a multiple of `size`, or, where none is near, up to the multiple itself.

    A piece of whole lines is a block as it stands: its bytes are copied once, from the file.
    """
    while True:
        boundary = (start // size + 1) * size
        tail_start = max(start, boundary - TAIL_BYTES)
        file.seek(tail_start)
        newline = file.read(boundary - tail_start).rfind(b"\n")
        end = boundary if newline < 0 else tail_start + newline + 1
        file.seek(start)
        chunk = file.read(end - start)
        if not chunk:
            return
        yield chunk
        start += len(chunk)


def _inflated(file: BinaryIO, size: int) -> Iterator[bytes]:
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


def _ahead(blocks: Iterator[Block]) -> Iterator[Block]:
    """Read the next block in a thread while the last one is being worked on: reading and inflating hold no lock."""
    ready: queue.Queue[Block | BaseException | None] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def hand_over(thing: Block | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return ready.put(thing, timeout=0.1)
            except queue.Full:
                continue
        return None

    def read() -> None:
        try:
            for block in blocks:
                hand_over(block)
                if stop.is_set():
                    return
            hand_over(None)
        except BaseException as error:  # raised again where the blocks are used
            hand_over(error)

    reader = threading.Thread(target=read, name="ingest-reader", daemon=True)
    reader.start()
    try:
        while (thing := ready.get()) is not None:
            if isinstance(thing, BaseException):
                raise thing
            yield thing
    finally:
        stop.set()
        reader.join()

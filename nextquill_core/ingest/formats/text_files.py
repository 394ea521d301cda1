"""Text files, plain or gzip and in any encoding, as UTF-8 in bounded memory: in blocks of whole lines, or in pieces.

The first bytes of a file say how it is compressed and encoded, and whether it is a data file at all.
"""

from __future__ import annotations

import codecs
import gzip
import os
import queue
import re
import threading
import weakref
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from nextquill_core.errors import DataError
from nextquill_core.ingest.batches import BATCH_BYTES

MAX_LINE_BYTES = 16 << 20  # a thousand times the longest review; a longer line is no row
LONG_LINE_BYTES = 8192  # what is kept of a line that is too long
TAIL_BYTES = 64 << 10  # where a block's last newline is looked for first
PACKED_BYTES = 16 << 10  # inflated at a time: at most 16 MB, and all that is lost before a corrupt place
NEWLINE, OBJECT = 10, ord("{")
MOST_ODD_LINES = 1 << 17  # in a block
UNDECODABLE = b"\xff"  # replaces bytes that the file's encoding does not have; no UTF-8 text holds it
HEAD_BYTES = 4096
SAMPLE_BYTES = 256 << 10  # of a text that is not UTF-8, from which its encoding is guessed
EMPTY_BYTES = 64 << 10  # an empty file has no more bytes of white space than these
GZIP = b"\x1f\x8b"
PARQUET = b"PAR1"
UTF8_MARK = b"\xef\xbb\xbf"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
PAGE = re.compile(rb"<(!doctype|html|head|body|\?xml|error)\b", re.IGNORECASE)
# The longer marks come first: that of UTF-32 begins with that of UTF-16.
MARKS = (
    (UTF8_MARK, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
ARCHIVES = (
    (b"PK\x03\x04", "a zip archive", "unpack it: unzip"),
    (b"BZh", "compressed with bzip2", "unpack it: bunzip2"),
    (b"\xfd7zXZ\x00", "compressed with xz", "unpack it: unxz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it: unzstd"),
)
# Common encodings of reviews. Detection among all encodings takes short texts for rare ones.
LIKELY = [
    "cp1252", "gb18030", "cp932", "big5", "euc_kr", "euc_jp", "cp1251", "koi8_r", "cp1250", "cp1253", "cp1254",
    "cp1255", "cp1256", "cp874",
]  # fmt: skip
# Letters and signs of western European texts, and words in which they are few among plain letters.
WESTERN = set("àáâãäåæçèéêëìíîïñòóôõöøùúûüýÿßœšžÀÁÂÄÅÆÇÈÉÊËÍÎÑÓÔÖØÙÚÜŒŠŽ“”„‘’‚–—…€£§°«»¡¿•®©™´\xa0")
FOREIGN_WORD = re.compile(r"[^\W\d_]*[^\W\d_a-zA-Z][^\W\d_]*")
T = TypeVar("T")


@dataclass(frozen=True)
class Block:
    """Some whole lines of a file.

    Attributes:
        data: The lines; the file's last line may lack its newline.
        first_line: Number of the first line, from 1.
        end: Offset of the block's end, in bytes of uncompressed text.
        position: How far the file itself was read, in bytes on disk.
        fault: Why the block's only line cannot be read, whatever it holds; `data` is then only its head.
    """

    data: bytes | memoryview
    first_line: int
    end: int
    position: int
    fault: str | None = None


class DamagedFileError(Exception):
    """The compressed data are damaged or end too early; the message is the reason."""


def read_blocks(
    path: Path,
    *,
    block_bytes: int = BATCH_BYTES,
    start: int = 0,
    first_line: int = 1,
    encoding: str = "utf-8",
) -> Iterator[Block]:
    """Cut a file into blocks of about `block_bytes` at newlines, reading one block ahead.

    Blocks end at the last newline before a multiple of `block_bytes`, so they are the same wherever reading begins.
    Text in another encoding is converted to UTF-8 first; all offsets are then those of the UTF-8 text.

    Args:
        path: Plain text, or gzip where the name ends in .gz.
        block_bytes: Target size of a block; a longer line makes a longer block, and one above `MAX_LINE_BYTES` a block
            with a fault.
        start: Offset in uncompressed text at which a line starts and reading begins.
        first_line: Number of that line.
        encoding: How the text is encoded, as Python names it. A byte order mark in the file takes precedence.

    Raises:
        DataError: The file cannot be read, or is not what its name says.
    """
    return _prefetch(_blocks(path, block_bytes, start, first_line, encoding))


def read_pieces(path: Path, size: int, *, encoding: str = "utf-8") -> Iterator[tuple[bytes, int]]:
    """Yield a file's text in pieces of about `size` bytes, each with how far the file was read, in bytes on disk.

    Args:
        path: Plain text, or gzip where the name ends in .gz.
        size: Size of a piece, in bytes of uncompressed text.
        encoding: As in `read_blocks`.

    Raises:
        DataError: The file cannot be read, or is not what its name says.
        DamagedFileError: The compressed data are damaged.
    """
    try:
        with path.open("rb", buffering=0) as file:
            for number, chunk in enumerate(_chunks(file, path, size, 0, encoding)):
                yield bytes(chunk if number else _without_mark(chunk)), file.tell()
    except OSError as error:
        raise unreadable(path, error) from None


def beginning(path: Path, size: int, *, encoding: str = "utf-8") -> bytes:
    """Return about the first `size` bytes of a file's text, from the first that is no white space.

    Args:
        path: Plain text, or gzip where the name ends in .gz.
        size: How much is enough.
        encoding: As in `read_blocks`.

    Raises:
        DataError: As in `read_blocks`.
    """
    data = b""
    try:
        for piece, _ in read_pieces(path, size, encoding=encoding):
            data = (data + piece).lstrip()
            if len(data) >= size:
                break
    except DamagedFileError:
        pass  # what was read before it counts
    return data


def refuse_substitutes(head: bytes, path: Path) -> None:
    """Refuse what often lies where a data file should be.

    Args:
        head: The first bytes of the file.
        path: The file, for the message.

    Raises:
        DataError: The file is a Git LFS pointer, a web page or an archive of another kind than gzip.
    """
    if head.startswith(LFS_POINTER):
        raise DataError("is a Git LFS pointer, not the file itself", str(path), "run `git lfs pull` in its repository")
    if PAGE.match(head.removeprefix(UTF8_MARK).lstrip()):
        raise DataError(
            "is an HTML or XML page, not a data file",
            str(path),
            "download it again: the link may have expired or need a login",
        )
    for magic, what, remedy in ARCHIVES:
        if head.startswith(magic):
            raise DataError(f"is {what}", str(path), remedy)


def is_gzip(head: bytes, path: Path) -> bool:
    """Return whether a file that begins with `head` is gzip.

    Raises:
        DataError: Its name says otherwise, or it is not a data file.
    """
    zipped = head.startswith(GZIP)
    named = path.name.lower().endswith(".gz")
    if zipped and not named:
        raise DataError("is gzip, but its name does not end in .gz", str(path), "rename it")
    if not zipped:
        refuse_substitutes(head, path)
    if named and not zipped:
        raise DataError("its name ends in .gz, but it is not gzip", str(path), "rename it, or download it again")
    return zipped


def is_empty_file(path: Path) -> bool:
    """Return whether a file holds no row: no bytes, only white space, or Parquet without rows.

    Distributed writers leave such files beside others. A file with only a header of column names is not among them;
    reading it shows that it has no rows.
    """
    try:
        with path.open("rb") as file:
            head = file.read(EMPTY_BYTES + 1)
        if head.startswith(GZIP):
            with gzip.open(path) as unpacked:
                head = unpacked.read(EMPTY_BYTES + 1)
    except (OSError, EOFError, zlib.error):
        return False  # damaged; reading it says so
    if head.startswith(PARQUET):
        return _has_no_parquet_rows(path)
    return len(head) <= EMPTY_BYTES and not head.removeprefix(UTF8_MARK).strip()


def unmarked_utf16(head: bytes) -> str | None:
    """Return `utf-16-le` or `utf-16-be` where every other byte is mostly zero, as in such text without a mark."""
    pairs = len(head) // 2
    if pairs < 2:
        return None
    for name, zeros in (("utf-16-le", head[1 : 2 * pairs : 2]), ("utf-16-be", head[0 : 2 * pairs : 2])):
        if zeros.count(0) > pairs * 0.7 and head.count(0) < pairs * 1.3:
            return name
    return None


def likely_encoding(data: bytes) -> str:
    """Guess the encoding of a text that is not UTF-8. For messages only."""
    from charset_normalizer import from_bytes

    data = b"".join(line for line in data.splitlines(keepends=True) if not line.isascii()) or data
    western = data.decode("cp1252", errors="replace")
    if all(sign in WESTERN for sign in western if not sign.isascii()):
        words = "".join(word for word in FOREIGN_WORD.findall(western) if len(word) > 1)
        if sum(not letter.isascii() for letter in words) <= len(words) / 2:
            return "cp1252"  # detection takes a short western text for Polish or Chinese
    best = from_bytes(data, cp_isolation=LIKELY, enable_fallback=False).best()
    return best.encoding if best else "cp1252"


def encoding_remedy(path: Path) -> str:
    """Say how to read a file that is not UTF-8, with the encoding that it probably has."""
    with path.open("rb") as file:
        zipped = file.read(2) == GZIP
        file.seek(0)
        try:
            encoding = likely_encoding((gzip.GzipFile(fileobj=file) if zipped else file).read(SAMPLE_BYTES))
        except (EOFError, OSError, zlib.error):
            encoding = "cp1252"
    return (
        f"the text looks like {encoding}: with ingest.source table set ingest.options.encoding: {encoding}, "
        f"or convert the file: {iconv(encoding)}"
    )


def iconv(encoding: str) -> str:
    """Return the command that converts a file in this encoding, named as Python does, to UTF-8."""
    name = encoding.upper().replace("_", "-").replace("UTF-16-", "UTF-16")
    return f"iconv -f {name} -t UTF-8"


def _blocks(path: Path, block_bytes: int, start: int, line: int, encoding: str) -> Iterator[Block]:
    carry = b""  # the beginning of a line whose end is not read yet
    skipping = False  # inside a line that is too long; `carry` then holds its head
    end, damage = start, None
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise unreadable(path, error) from None
    with file:
        chunks = _chunks(file, path, block_bytes, start, encoding)
        while True:
            try:
                chunk = next(chunks, None)
            except DamagedFileError as error:
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
                for piece, lines in _pieces_of_lines(data):
                    begins += len(piece)
                    yield Block(_without_mark(piece) if line == 1 else piece, line, begins, file.tell())
                    line += lines
            else:
                carry += chunk
            if len(carry) > MAX_LINE_BYTES:
                end += len(carry)
                carry, skipping = carry[:LONG_LINE_BYTES], True
        if skipping or carry or damage:
            end += 0 if skipping else len(carry)
            fault = damage or ("line-too-long" if skipping else None)
            yield Block(_without_mark(carry) if line == 1 else carry, line, end, file.tell(), fault)


def _prefetch(values: Iterator[T]) -> Iterator[T]:
    """Get the next value in a thread while the last one is used: reading and inflating hold no lock."""
    ready: queue.Queue[T | BaseException | None] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def hand_over(value: T | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return ready.put(value, timeout=0.1)
            except queue.Full:
                continue
        return None

    def read() -> None:
        try:
            for value in values:
                hand_over(value)
                if stop.is_set():
                    return
            hand_over(None)
        except BaseException as error:  # raised again where the values are used
            hand_over(error)

    reader = threading.Thread(target=read, name="ingest-reader", daemon=True)
    reader.start()
    try:
        while (value := ready.get()) is not None:
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        stop.set()
        reader.join()


def unreadable(path: Path, error: OSError) -> DataError:
    """Return the error for a file that the operating system does not let us read."""
    return DataError(f"cannot be read ({error.strerror})", str(path), "check its permissions")


def _without_mark(data: bytes | memoryview) -> bytes | memoryview:
    return data[len(UTF8_MARK) :] if data[: len(UTF8_MARK)] == UTF8_MARK else data


def _pieces_of_lines(data: bytes | memoryview) -> Iterator[tuple[bytes | memoryview, int]]:
    """Yield whole lines in pieces, each with its number of lines.

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
        """Return a writable view of the memory."""
        memory = self._free.pop() if self._free else np.empty(self._size, np.uint8)
        lent = memory[:]
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return memoryview(lent)  # type: ignore[arg-type]  # numpy's stubs do not say that arrays are buffers


def _chunks(file: FileIO, path: Path, size: int, start: int, encoding: str) -> Iterator[bytes | memoryview]:
    """Yield the text from `start` on, as UTF-8."""
    head = file.read(HEAD_BYTES)
    zipped = is_gzip(head, path)
    file.seek(0)
    if not zipped and (encoding := _encoding(head, path, encoding)) == "utf-8":
        yield from _whole_lines(file, size, start)
        return
    chunks: Iterator[bytes] = _inflated(file, size) if zipped else iter(lambda: file.read(size), b"")
    if zipped:
        first = next(chunks, b"")
        refuse_substitutes(first, path)
        encoding = _encoding(first[:HEAD_BYTES], path, encoding)
        chunks = chain([first], chunks)
    for chunk in chunks if encoding == "utf-8" else _decoded(chunks, encoding):
        if start < len(chunk):
            yield chunk[start:] if start else chunk
        start = max(0, start - len(chunk))


def _encoding(head: bytes, path: Path, encoding: str) -> str:
    """Return the encoding of a file that begins with `head`: that of its mark, otherwise the one asked for."""
    if marked := next((name for mark, name in MARKS if head.startswith(mark)), None):
        return marked
    encoding = codecs.lookup(encoding).name
    if encoding in ("utf-8", "utf-16") and (found := unmarked_utf16(head)):
        raise DataError(
            f"is {found.upper()} without a byte order mark",
            str(path),
            f"with ingest.source table set ingest.options.encoding: {found}; or convert it: {iconv(found)}",
        )
    if encoding in ("utf-16", "utf-32") and head:
        raise DataError(
            f"has no byte order mark, so it is not {encoding}",
            str(path),
            f"set ingest.options.encoding to what it is, such as utf-8 or {encoding}-le",
        )
    return encoding


def _decoded(chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Convert text to UTF-8; what cannot be decoded becomes `UNDECODABLE`, so that only its line is refused."""
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
    """Yield pieces up to the last newline before a multiple of `size`, or to the multiple where no newline is near.

    A piece of whole lines is a block as it stands: its bytes are copied once, from the file.
    """
    buffers = _Buffers(size + TAIL_BYTES)
    whole = os.fstat(file.fileno()).st_size
    while start < whole:
        boundary = (start // size + 1) * size
        if boundary - start <= TAIL_BYTES and not _newline_in(file, start, boundary):
            boundary += size  # what is left before the first multiple belongs to a line that ends after it
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
    """Return the offset after the last newline in this piece of a file, or 0."""
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
        raise DamagedFileError(damage or "truncated-gzip")


def _has_no_parquet_rows(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return bool(pq.read_metadata(path).num_rows == 0)
    except (pa.ArrowException, OSError):
        return False

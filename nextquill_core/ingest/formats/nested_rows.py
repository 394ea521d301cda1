"""Read files of nested rows, one at a time: a JSON array, JSON lines, Parquet, or the Arrow files of `datasets`.

Benchmarks are published with one row a user, whose history is a list inside it. The first bytes of a file decide what
it is, because copies of the same data have names of all kinds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from nextquill_core.errors import DataError, first_line
from nextquill_core.ingest.formats.json_files import elements
from nextquill_core.ingest.formats.text_files import unreadable

PARQUET, ARROW = b"PAR1", (b"ARROW1", b"\xff\xff\xff\xff")
"""First bytes of a Parquet file, and of an Arrow file or stream, as `datasets` saves them."""
ROWS_AT_ONCE = 64  # a row has a whole history
Record = tuple[bytes, int, str | None]


def is_table(path: Path) -> bool:
    """Return whether a file is Parquet or Arrow; otherwise it is text.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(len(ARROW[0])).startswith((PARQUET, *ARROW))
    except OSError as error:
        raise unreadable(path, error) from None


def read_nested_rows(path: Path) -> Iterator[Record]:
    """Read the rows of a file, each as JSON.

    Args:
        path: The file; text may be gzip.

    Yields:
        The row as JSON, how far the file has been read (in bytes on disk), and why it cannot be what it should, if that
        is already known.

    Raises:
        DataError: The file cannot be read, is none of the formats, or breaks off.
    """
    if not is_table(path):
        yield from elements(path)
        return
    size = path.stat().st_size
    try:
        for row, share in _table_rows(path):
            data, fault = _as_json(row)
            yield data, int(size * share), fault
    except pa.ArrowException as error:
        raise DataError(f"is damaged ({first_line(error)})", str(path), "fetch the file again") from None
    except OSError as error:
        raise DataError(f"cannot be read ({first_line(error)})", str(path), "fetch the file again") from None


def _as_json(row: pa.RecordBatch) -> tuple[bytes, str | None]:
    """Return one row as JSON, or why it cannot be read; bytes are UTF-8 text, as writers that know no text store it."""
    try:
        return orjson.dumps(row.to_pylist()[0], default=_text), None
    except (UnicodeDecodeError, orjson.JSONEncodeError):
        return b"", "invalid-utf8"
    except (ValueError, OverflowError):  # such as a time after the year 9999
        return b"", "out-of-range"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _table_rows(path: Path) -> Iterator[tuple[pa.RecordBatch, float]]:
    """Yield each row, and which share of the file has been read with it."""
    with path.open("rb") as file:
        start = file.read(len(ARROW[0]))
    if start.startswith(PARQUET):
        with pq.ParquetFile(path) as table:
            total = max(table.metadata.num_rows, 1)
            yield from _rows(table.iter_batches(batch_size=ROWS_AT_ONCE), total)
        return
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source) if start.startswith(ARROW[0]) else pa.ipc.open_stream(source)
        whole = reader.read_all()  # mapped, not loaded
        yield from _rows(whole.to_batches(max_chunksize=ROWS_AT_ONCE), max(whole.num_rows, 1))


def _rows(batches: Any, total: int) -> Iterator[tuple[pa.RecordBatch, float]]:
    done = 0
    for batch in batches:
        for place in range(batch.num_rows):
            done += 1
            yield batch.slice(place, 1), done / total

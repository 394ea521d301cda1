"""Parquet tables of artifacts. Every page is written with a checksum, which is verified when the page is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import Damaged
from storage.file_systems import first_line


def write_table(path: Path, table: pa.Table, group_rows: int | None = None) -> None:
    """Write a table; equal rows give equal bytes.

    Args:
        path: The file.
        table: The rows.
        group_rows: Rows of a row group, which a reader of few rows reads whole; None for one group of up to a million.
    """
    pq.write_table(table, path, compression="zstd", write_page_checksum=True, row_group_size=group_rows)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table.

    Args:
        path: The file.
        columns: Names of the columns to read; None for all.

    Raises:
        Damaged: The file is not Parquet, or a page does not match its checksum.
    """
    with _damage(path):
        return pq.read_table(path, columns=columns and list(columns), page_checksum_verification=True)


def read_batches(path: Path, rows: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Read a table in batches, in bounded memory.

    Args:
        path: The file.
        rows: Maximum number of rows of a batch.
        columns: Names of the columns to read.

    Raises:
        Damaged: The file is not Parquet, or a page does not match its checksum.
    """
    with _damage(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        yield from file.iter_batches(rows, columns=list(columns))


def read_footer(path: Path) -> pq.FileMetaData:
    """Return what a Parquet file says of its row groups.

    Raises:
        Damaged: The file is not Parquet.
    """
    with _damage(path):
        return pq.read_metadata(path)


def read_row_group(path: Path, group: int, footer: pq.FileMetaData, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one row group of a table.

    Args:
        path: The file.
        group: Number of the row group, from 0.
        footer: What `read_footer` returned for this file.
        columns: Names of the columns to read; None for all.

    Raises:
        Damaged: The file is not Parquet, or a page does not match its checksum.
    """
    with _damage(path), pq.ParquetFile(path, metadata=footer, page_checksum_verification=True) as file:
        return file.read_row_group(group, columns=columns and list(columns), use_threads=False)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise Damaged(f"is damaged ({first_line(error)})", str(path), "run `nextquill verify --repair`") from None

"""Parquet tables into canonical columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from nextquill_core.errors import DataError, first_line
from nextquill_core.ingest.formats.parse import RAW_CHARS
from nextquill_core.ingest.formats.tables import (
    BATCH_ROWS,
    ROLES,
    Field,
    Raw,
    check_present,
    check_times,
    conversion,
    read_fields,
)
from nextquill_core.ingest.sources.base import BadRow, Batch, Part

_ROW = "\0row"  # no column is called that


def read_parquet(path: Path, keys: Mapping[str, str], times: str, part: Part) -> Iterator[Batch]:
    """Read Parquet; `line` numbers the rows. Columns with times of their own type are taken as what they are.

    Args:
        path: The file.
        keys: Raw column by canonical column.
        times: As in `conversion`.
        part: Reviews or items.

    Raises:
        DataError: The file is damaged or no Parquet, or a column is not there or of a type that does not fit.
    """
    check_times(times)
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            check_present(keys, schema.names, path)
            kinds = {key: _raw_kind(schema.field(key).type) for key in keys.values()}
            fields = []
            for name, key in keys.items():
                kind = kinds[key]
                convert = conversion(ROLES[name], kind, times) if kind else None
                if convert is None:
                    asked = f"{name.removesuffix('_ms')}" + (f" ({times})" if name == "timestamp_ms" else "")
                    raise DataError(
                        f"column `{key}` is {schema.field(key).type}, which is no {asked}", str(path), "convert it"
                    )
                fields.append(Field(name, key, convert))
            done, size, total = 0, path.stat().st_size, max(file.metadata.num_rows, 1)
            for chunk in file.iter_batches(batch_size=BATCH_ROWS, columns=list(kinds)):
                yield _parquet_batch(
                    chunk.select(list(kinds)), kinds, fields, part, done, size * (done + chunk.num_rows) // total
                )
                done += chunk.num_rows
    except OSError as error:
        raise DataError(f"cannot be read ({first_line(error)})", str(path), "write it again") from None
    except pa.ArrowException as error:
        raise DataError(f"is no Parquet, or damaged ({first_line(error)})", str(path), "write it again") from None


def _parquet_batch(
    chunk: pa.RecordBatch,
    kinds: Mapping[str, Raw | None],
    fields: Sequence[Field],
    part: Part,
    done: int,
    position: int,
) -> Batch:
    columns: dict[str, pa.Array] = {}
    bad: dict[int, str] = {}
    for key in kinds:
        column = chunk.column(key)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if kinds[key] in ("string", "strings"):
            column, unread = _decoded(column)
            bad |= dict.fromkeys(unread, "invalid-utf8")
        columns[key] = column
    raw = pl.DataFrame(pl.from_arrow(pa.table(columns))).with_row_index(_ROW, done + 1)
    good = raw.filter(~pl.col(_ROW).is_in([done + 1 + i for i in bad])) if bad else raw
    rows, reasons = read_fields(good.drop(_ROW), good[_ROW].to_list(), fields, part)
    reasons |= {done + 1 + i: reason for i, reason in bad.items()}

    def text(line: int) -> str:
        return json.dumps(raw.drop(_ROW).row(line - done - 1, named=True), ensure_ascii=False, default=str)[:RAW_CHARS]

    return Batch(
        rows=rows,
        bad=[BadRow(line, reasons[line], text(line)) for line in sorted(reasons)],
        last_line=done + chunk.num_rows,
        position=position,
        raw=text,
    )


def _decoded(column: pa.Array) -> tuple[pa.Array, list[int]]:
    """Text or lists of text whose UTF-8 is valid, and the places where it was not; they are null."""
    lists = not (_is_text(column.type) or _is_bytes(column.type))
    kind = pa.large_list(pa.large_string()) if lists else pa.large_string()
    try:
        column.validate(full=True)
        return column.cast(kind), []
    except pa.ArrowInvalid:
        pass
    values: list[Any] = []
    unread = []
    for i, value in enumerate(
        column.cast(pa.large_list(pa.large_binary()) if lists else pa.large_binary()).to_pylist()
    ):
        try:
            if isinstance(value, list):
                value = [each if each is None else each.decode() for each in value]
            values.append(value.decode() if isinstance(value, bytes) else value)
        except UnicodeDecodeError:
            values.append(None)
            unread.append(i)
    return pa.array(values, kind), unread


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _raw_kind(kind: pa.DataType) -> Raw | None:
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if _is_text(kind) or _is_bytes(kind) or types.is_null(kind):
        return "string"
    if types.is_list(kind) or types.is_large_list(kind):
        return "strings" if _is_text(kind.value_type) or types.is_null(kind.value_type) else None
    if types.is_integer(kind):
        return "integer"
    if types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    return "time" if types.is_timestamp(kind) or types.is_date(kind) else None

"""Parquet tables into canonical columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nextquill_core.errors import DataError, first_line
from nextquill_core.ingest.formats.csv_tables import BATCH_ROWS
from nextquill_core.ingest.formats.fields import (
    RAW_CHARS,
    Fault,
    Field,
    RawColumn,
    check_present,
    mapped_fields,
    read_fields,
)
from nextquill_core.ingest.formats.objects import short_name
from nextquill_core.ingest.formats.signatures import HEAD_BYTES, refuse_substitutes
from nextquill_core.ingest.formats.values import ROLES, UNITS, Role, Rules, check_times
from nextquill_core.ingest.sources.base import Batch, Part

UUID_BYTES = 16


def read_parquet(path: Path, keys: Mapping[str, str], rules: Rules, part: Part) -> Iterator[Batch]:
    """Read Parquet; `line` numbers the rows. Columns with times of their own type are taken as what they are.

    Args:
        path: The file.
        keys: Raw column by canonical column.
        rules: How single values become canonical.
        part: Reviews or items.

    Raises:
        DataError: The file is damaged or no Parquet, or a column is not there or of a type that does not fit.
    """
    check_times(rules.times)
    try:
        with path.open("rb") as raw:
            refuse_substitutes(raw.read(HEAD_BYTES), path)
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            check_present(keys, schema.names, str(path))
            for name, key in keys.items():
                _check_type(name, key, schema.field(key).type, rules, path)
            fields, columns = mapped_fields(keys, rules, part), list(dict.fromkeys(keys.values()))
            done, size, total = 0, path.stat().st_size, max(file.metadata.num_rows, 1)
            for chunk in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
                position = size * (done + chunk.num_rows) // total
                yield _batch(chunk.select(columns), keys, fields, part, done, position)
                done += chunk.num_rows
    except OSError as error:
        raise DataError(f"cannot be read ({first_line(error)})", str(path), "write it again") from None
    except pa.ArrowException as error:
        raise DataError(f"is no Parquet, or damaged ({first_line(error)})", str(path), "write it again") from None


def _batch(
    chunk: pa.RecordBatch, keys: Mapping[str, str], fields: Sequence[Field], part: Part, done: int, position: int
) -> Batch:
    raw: dict[str, RawColumn] = {}
    invalid: dict[int, Fault] = {}
    for name, key in keys.items():
        raw[key], faulty = _raw_column(key, chunk.column(key), ROLES[name])
        invalid |= faulty
    lines = list(range(done + 1, done + 1 + chunk.num_rows))
    rows, faults = read_fields(raw, lines, fields, part)
    if invalid:
        faults |= {lines[place]: fault for place, fault in invalid.items()}
        rows = rows.filter(~pl.col("line").is_in(list(faults)))

    def text(line: int) -> str:
        row = {key: _plain(values[line - done - 1]) for key, values in raw.items()}
        return json.dumps(row, ensure_ascii=False, default=str)[:RAW_CHARS]

    return Batch(
        rows=rows,
        bad=[faults[line].row(line, text(line)) for line in sorted(faults)],
        last_line=done + chunk.num_rows,
        position=position,
        raw=text,
    )


def _plain(value: Any) -> Any:
    return value.to_list() if isinstance(value, pl.Series) else value


def _raw_column(key: str, column: pa.Array, role: Role) -> tuple[RawColumn, dict[int, Fault]]:
    """A column for `read_fields`, and by their places what is wrong with values that are null in it."""
    column = _stored(column)
    kind = column.type
    if isinstance(kind, pa.UuidType) or (role == "id" and kind == pa.binary(UUID_BYTES)):
        stored = column.storage if isinstance(kind, pa.UuidType) else column
        return [None if value is None else str(UUID(bytes=value)) for value in stored.to_pylist()], {}
    if _is_text(kind) or _is_bytes(kind) or _is_list(kind):
        values, unread = _decoded_lists(column) if _is_list(kind) else _decoded(column)
        return values, dict.fromkeys(unread, Fault("invalid-utf8", f"{key} is no UTF-8"))
    if pa.types.is_decimal(kind):
        exact = role in ("id", "text") or kind.scale == 0
        return (column.to_pylist(), {}) if exact else (pl.Series(pl.from_arrow(column.cast(pa.float64()))), {})
    faults: dict[int, Fault] = {}
    if pa.types.is_floating(kind):
        if role == "id" and kind != pa.float64():
            faults = _coarse(key, column)
        if role == "text":
            return column.to_pylist(), {}
        column = column.cast(pa.float64())
    return pl.Series(pl.from_arrow(column)), faults


def _coarse(key: str, column: pa.Array) -> dict[int, Fault]:
    """Ids among short floats that may have lost digits: two of them may be one now."""
    exact = 2**24 if column.type == pa.float32() else 2**11
    remedy = f"{column.type} values of this size have lost digits: write ids as integers or as text"
    return {
        place: Fault(f"wrong-type-{short_name(key)}", f"{key} is {value}", remedy)
        for place, value in enumerate(column.to_pylist())
        if value is not None and abs(value) >= exact
    }


def _stored(column: pa.Array) -> pa.Array:
    """A column without the wrappings that say nothing about its values."""
    while True:
        kind = column.type
        if isinstance(kind, pa.UuidType):
            return column
        if isinstance(kind, pa.BaseExtensionType):
            column = column.storage
        elif pa.types.is_dictionary(kind):
            column = column.dictionary_decode()
        elif pa.types.is_run_end_encoded(kind):
            column = pc.run_end_decode(column)
        else:
            return column


def _decoded(column: pa.Array) -> tuple[RawColumn, list[int]]:
    if pa.types.is_fixed_size_binary(column.type):
        column = column.cast(pa.binary())
    try:
        column.validate(full=True)
        return pl.Series(pl.from_arrow(column.cast(pa.large_string()))), []
    except pa.ArrowInvalid:
        pass
    values: list[str | None] = []
    unread = []
    for place, value in enumerate(column.cast(pa.large_binary()).to_pylist()):
        try:
            values.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            values.append(None)
            unread.append(place)
    return pl.Series(values, dtype=pl.String), unread


def _decoded_lists(column: pa.Array) -> tuple[RawColumn, list[int]]:
    if _is_text(column.type.value_type) or pa.types.is_null(column.type.value_type):
        try:
            column.validate(full=True)
            return pl.Series(pl.from_arrow(column.cast(pa.large_list(pa.large_string())))), []
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass
    found: list[Any] = []
    unread = []
    for place in range(len(column)):
        try:
            found.append(_text_of(column[place].as_py()))
        except UnicodeDecodeError:
            found.append(None)
            unread.append(place)
    return found, unread


def _text_of(value: Any) -> Any:
    """Lists with text for bytes."""
    if isinstance(value, list):
        return [_text_of(each) for each in value]
    return value.decode() if isinstance(value, bytes) else value


def _check_type(name: str, key: str, kind: pa.DataType, rules: Rules, path: Path) -> None:
    """Refuse a column none of whose values can become what is asked of it.

    Raises:
        DataError: It is such a column.
    """
    if _fits(ROLES[name], _inner(kind), rules.times):
        return
    asked = f"{name.removesuffix('_ms')}" + (f" ({rules.times})" if name == "timestamp_ms" else "")
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    remedy = "set ingest.options.timestamp: s, ms, us or ns" if ROLES[name] == "time" and numbers else "convert it"
    raise DataError(f"column `{key}` is {kind}, which is no {asked}", str(path), remedy)


def _fits(role: Role, kind: pa.DataType, times: str) -> bool:
    types = pa.types
    if _is_text(kind) or _is_bytes(kind) or types.is_null(kind):
        return True
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    if role == "list" and _is_list(kind):
        inner = _inner(kind.value_type)
        return (not _is_list(inner) and _fits("text", inner, times)) or (_is_list(inner) and _fits(role, inner, times))
    if role == "time":
        return bool(types.is_timestamp(kind) or types.is_date(kind) or (number and times in UNITS))
    if role == "rating" and types.is_boolean(kind):
        return True
    return bool(number or (role in ("id", "text", "list") and isinstance(kind, pa.UuidType)))


def _inner(kind: pa.DataType) -> pa.DataType:
    while True:
        if isinstance(kind, pa.UuidType):
            return kind
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    )

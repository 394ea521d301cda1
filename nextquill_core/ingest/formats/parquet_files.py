"""Read Parquet files into canonical columns."""

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
from nextquill_core.ingest.batches import BATCH_ROWS, RAW_CHARS, Batch, Part
from nextquill_core.ingest.canonical import (
    LINE,
    Fault,
    Field,
    RawColumn,
    check_columns,
    mapped_fields,
    read_fields,
    short_name,
)
from nextquill_core.ingest.formats.text_files import HEAD_BYTES, refuse_substitutes
from nextquill_core.ingest.formats.values import ROLES, UNITS, Role, ValueRules, check_times

UUID_BYTES = 16
TEXTS = {pa.lib.Type_STRING, pa.lib.Type_LARGE_STRING, pa.lib.Type_STRING_VIEW}
BYTES = {
    pa.lib.Type_BINARY,
    pa.lib.Type_LARGE_BINARY,
    pa.lib.Type_BINARY_VIEW,
    pa.lib.Type_FIXED_SIZE_BINARY,
}
LISTS = {
    pa.lib.Type_LIST,
    pa.lib.Type_LARGE_LIST,
    pa.lib.Type_FIXED_SIZE_LIST,
    pa.lib.Type_LIST_VIEW,
    pa.lib.Type_LARGE_LIST_VIEW,
}


def read_parquet(path: Path, keys: Mapping[str, str], rules: ValueRules, part: Part) -> Iterator[Batch]:
    """Read Parquet; `line` numbers the rows. Columns of a date or timestamp type need no unit.

    Args:
        path: The file.
        keys: Raw column by canonical column.
        rules: How values become canonical.
        part: Reviews or items.

    Raises:
        DataError: The file is damaged or not Parquet, or a column is missing or of a type that does not fit.
    """
    check_times(rules.times)
    try:
        with path.open("rb") as raw:
            refuse_substitutes(raw.read(HEAD_BYTES), path)
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            check_columns(keys, schema.names, str(path))
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
        rows = rows.filter(~pl.col(LINE).is_in(list(faults)))

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
    """Return a column for `read_fields`, and the faults of values that had to become null in it, by their places."""
    column = _unwrapped(column)
    kind = column.type
    if isinstance(kind, pa.UuidType) or (role == "id" and kind == pa.binary(UUID_BYTES)):
        stored = column.storage if isinstance(kind, pa.UuidType) else column
        return [None if value is None else str(UUID(bytes=value)) for value in stored.to_pylist()], {}
    if kind.id in TEXTS or kind.id in BYTES or kind.id in LISTS:
        values, undecoded = _decoded(column)
        return values, dict.fromkeys(undecoded, Fault("invalid-utf8", f"{key} is no UTF-8"))
    if pa.types.is_decimal(kind):
        exact = role in ("id", "text") or kind.scale == 0
        return (column.to_pylist(), {}) if exact else (pl.Series(pl.from_arrow(column.cast(pa.float64()))), {})
    faults: dict[int, Fault] = {}
    if pa.types.is_floating(kind):
        if role == "id" and kind != pa.float64():
            faults = _inexact_ids(key, column)
        if role == "text":
            return column.to_pylist(), {}
        column = column.cast(pa.float64())
    return pl.Series(pl.from_arrow(column)), faults


def _inexact_ids(key: str, column: pa.Array) -> dict[int, Fault]:
    """Return the faults of ids that are short floats and may have lost digits: two of them may have become one."""
    exact = 2**24 if column.type == pa.float32() else 2**11
    remedy = f"{column.type} values of this size have lost digits: write ids as integers or as text"
    return {
        place: Fault(f"wrong-type-{short_name(key)}", f"{key} is {value}", remedy)
        for place, value in enumerate(column.to_pylist())
        if value is not None and abs(value) >= exact
    }


def _unwrapped(column: pa.Array) -> pa.Array:
    """Return a column without dictionary encoding, run-end encoding and extension types."""
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
    """Return a column of texts, bytes or lists of them as text, and the places of values that are not UTF-8."""
    kind = column.type
    if pa.types.is_fixed_size_binary(kind):
        column = column.cast(pa.binary())
    inner, text = (kind.value_type, pa.large_list(pa.large_string())) if kind.id in LISTS else (kind, pa.large_string())
    if inner.id in TEXTS or kind.id in BYTES or pa.types.is_null(inner):
        try:
            column.validate(full=True)
            return pl.Series(pl.from_arrow(column.cast(text))), []
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass
    found: list[Any] = []
    undecoded = []
    for place, value in enumerate(column):
        try:
            found.append(_text_of(value.as_py()))
        except UnicodeDecodeError:
            found.append(None)
            undecoded.append(place)
    return found, undecoded


def _text_of(value: Any) -> Any:
    """Decode bytes, also in nested lists."""
    if isinstance(value, list):
        return [_text_of(each) for each in value]
    return value.decode() if isinstance(value, bytes) else value


def _check_type(name: str, key: str, kind: pa.DataType, rules: ValueRules, path: Path) -> None:
    """Check that values of a column's type can be what it is mapped to.

    Raises:
        DataError: None can.
    """
    if _fits(ROLES[name], _unwrapped(pa.nulls(0, kind)).type, rules.times):
        return
    asked = f"{name.removesuffix('_ms')}" + (f" ({rules.times})" if name == "timestamp_ms" else "")
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    remedy = "set ingest.options.timestamp: s, ms, us or ns" if ROLES[name] == "time" and numbers else "convert it"
    raise DataError(f"column `{key}` is {kind}, which is no {asked}", str(path), remedy)


def _fits(role: Role, kind: pa.DataType, times: str) -> bool:
    types = pa.types
    if kind.id in TEXTS or kind.id in BYTES or types.is_null(kind):
        return True
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    if role == "list" and kind.id in LISTS:
        inner = _unwrapped(pa.nulls(0, kind.value_type)).type
        return _fits(role if inner.id in LISTS else "text", inner, times)
    if role == "time":
        return bool(types.is_timestamp(kind) or types.is_date(kind) or (number and times in UNITS))
    if role == "rating" and types.is_boolean(kind):
        return True
    return bool(number or (role in ("id", "text", "list") and isinstance(kind, pa.UuidType)))

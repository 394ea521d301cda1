"""Tables of any origin into canonical columns: what may stand in a raw column, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import orjson
import polars as pl

from nextquill_core.errors import DataError
from nextquill_core.ingest.canonical import IDS, LINE, canonical
from nextquill_core.ingest.formats.blocks import read_blocks
from nextquill_core.ingest.formats.parse import ARROW, MAX_SECONDS, RAW_CHARS
from nextquill_core.ingest.formats.records import Record, records
from nextquill_core.ingest.sources.base import BadRow, Batch, Part
from nextquill_core.ingest.sources.columns import Column, Kind
from nextquill_core.ingest.sources.options import nearest

BATCH_ROWS = 20_000
SNIFFED_BYTES = 1 << 20  # of JSON lines, in which every mapped key must occur
SNIFFED_LINES = 1000
Role = Literal["id", "number", "text", "list", "time"]
Raw = Literal["string", "integer", "number", "strings", "time"]
ROLES: Mapping[str, Role] = {
    "user_id": "id",
    "item_id": "id",
    "rating": "number",
    "rating_number": "number",
    "title": "text",
    "text": "text",
    "timestamp_ms": "time",
    "description": "list",
    "categories": "list",
}
Convert = Callable[[pl.Expr], pl.Expr]
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_INTEGER = r"^[+-]?[0-9]+$"
_ISO = (
    r"^([0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[T ]([0-9]{2}:[0-9]{2})(:[0-9]{2}(?:\.[0-9]{1,9})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?$"
)


def conversion(role: Role, raw: Raw, times: str) -> Convert | None:
    """How a raw value becomes a canonical one; null where it does not fit. None: it cannot.

    Args:
        role: What is asked of the value.
        raw: What it is; `time` is a date or a time of its own type.
        times: `ms`, `s`, `iso` or a strftime pattern.
    """
    found: dict[tuple[Role, Raw], Convert] = {
        ("id", "string"): lambda value: pl.when(value != "").then(value),
        ("id", "integer"): lambda value: value.cast(pl.String),
        ("number", "string"): _number,
        ("number", "integer"): lambda value: value.cast(pl.Float64),
        ("number", "number"): lambda value: _finite(value.cast(pl.Float64, strict=False)),
        ("text", "string"): lambda value: value,
        ("list", "string"): lambda value: pl.when(value.is_not_null()).then(pl.concat_list(value)),
        ("list", "strings"): lambda value: value,
        ("time", "string"): lambda value: _time(value, times),
        ("time", "time"): lambda value: value.cast(pl.Datetime("ms")).dt.epoch("ms"),
    }
    if times in ("ms", "s"):
        found["time", "integer"] = lambda value: _epoch(value, times)
    return found.get((role, raw))


def _finite(value: pl.Expr) -> pl.Expr:
    return pl.when(value.is_finite()).then(value)


def _number(value: pl.Expr) -> pl.Expr:
    return _finite(pl.when(value.str.contains(_NUMBER)).then(value).cast(pl.Float64, strict=False))


def _epoch(value: pl.Expr, unit: str) -> pl.Expr:
    value = value.cast(pl.Int64, strict=False)
    return value if unit == "ms" else pl.when(value.is_between(-MAX_SECONDS, MAX_SECONDS)).then(value * 1000)


def _time(value: pl.Expr, times: str) -> pl.Expr:
    if times in ("ms", "s"):
        return _epoch(pl.when(value.str.contains(_INTEGER)).then(value), times)
    if times != "iso":
        return value.str.to_datetime(times.replace(".%f", "%.f"), strict=False).dt.epoch("ms")
    day, minute, second, zone = (value.str.extract(_ISO, group) for group in range(1, 5))
    text = pl.concat_str(day, pl.lit("T"), minute.fill_null("00:00"), second.fill_null(":00"))
    ahead = zone.str.replace("Z", "+0000").str.replace(":", "").cast(pl.Int64, strict=False).fill_null(0)
    minutes = ahead.sign() * (ahead.abs() // 100 * 60 + ahead.abs() % 100)
    return text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", strict=False).dt.epoch("ms") - minutes * 60_000


def check_times(times: str) -> None:
    """See to it that a pattern reads what it writes.

    Raises:
        DataError: It does not, for example because it lacks the day.
    """
    if times in ("ms", "s", "iso"):
        return
    moment = datetime(2001, 12, 23, 4, 5, 6, tzinfo=UTC)
    try:
        read_ms = pl.select(_time(pl.lit(moment.strftime(times)), times)).item()
    except pl.exceptions.PolarsError:
        read_ms = None
    if read_ms is None or datetime.fromtimestamp(read_ms / 1000, UTC).date() != moment.date():
        raise DataError(
            f"`timestamp`: the pattern {times!r} does not tell a time",
            "ingest.options",
            'a year, month and day are needed, as in "%Y-%m-%d"; a fraction of a second is .%f',
        )


@dataclass(frozen=True)
class Field:
    """One canonical column of a table.

    Attributes:
        name: Its name.
        key: The raw column.
        convert: How a raw value becomes the canonical one.
        hollow: Whether an empty text stands for null.
    """

    name: str
    key: str
    convert: Convert
    hollow: bool = False

    def value(self) -> pl.Expr:
        """The raw value."""
        value = pl.col(self.key)
        return pl.when(value != "").then(value) if self.hollow else value


def read_fields(
    raw: pl.DataFrame, lines: Sequence[int], fields: Sequence[Field], part: Part
) -> tuple[pl.DataFrame, dict[int, str]]:
    """Raw columns into the canonical ones.

    Args:
        raw: The raw columns.
        lines: The `line` of each row.
        fields: What becomes of them.
        part: Reviews or items.

    Returns:
        The rows that can be read, and for each line that cannot the reason.
    """
    rows = raw.select(
        pl.Series(LINE, lines, pl.Int64), *(field.convert(field.value()).alias(field.name) for field in fields)
    )
    given = raw.select(field.value().is_not_null().alias(field.name) for field in fields)
    wrong = [field for field in fields if field.name not in IDS[part]]
    unnamed = [field for field in fields if field.name in IDS[part]]
    reasons = [
        *(pl.when(given[f.name] & rows[f.name].is_null()).then(pl.lit(f"wrong-type-{f.key}")) for f in wrong),
        *(pl.when(rows[f.name].is_null()).then(pl.lit(f"missing-{f.key}")) for f in unnamed),
    ]
    judged = rows.select(LINE, pl.coalesce(reasons).alias("reason")).filter(pl.col("reason").is_not_null())
    bad = dict(judged.iter_rows())
    return canonical(rows.filter(~pl.col(LINE).is_in(list(bad))) if bad else rows, part), bad


def check_present(keys: Mapping[str, str], names: Sequence[str], path: Path) -> None:
    """See to it that every mapped column is there, once.

    Raises:
        DataError: It is not; the nearest column is suggested.
    """
    for key in keys.values():
        if key not in names:
            raise DataError(f"there is no column `{key}`", str(path), nearest(key, [name for name in names if name]))
        if names.count(key) > 1:
            raise DataError(f"there are {names.count(key)} columns `{key}`", str(path), "rename all but one of them")


def read_csv(
    path: Path, keys: Mapping[str, str], times: str, part: Part, delimiter: str, batch_bytes: int
) -> Iterator[Batch]:
    """Read CSV whose first record names the columns; `line` numbers the records, blank lines included.

    A record that cannot be taken apart is `not-csv`; reading then goes on at its second line, so that a quote that is
    never closed hides nothing behind it.

    Args:
        path: The file, plain or gzip.
        keys: Raw column by canonical column.
        times: As in `conversion`.
        part: Reviews or items.
        delimiter: What separates fields.
        batch_bytes: About how much text a batch holds; it has at most `BATCH_ROWS` rows.

    Raises:
        DataError: The file cannot be read, or a column is not there.
    """
    check_times(times)
    found = records(path, delimiter, batch_bytes)
    names: list[str] = []
    read = blank = 0
    for record in found:
        read += 1
        if record.reason:
            raise DataError(
                f"the header cannot be read ({record.reason})", str(path), "the first record names the columns"
            )
        if record.fields:
            names = record.fields
            break
        blank += 1
    check_present(keys, names, path)
    places = {key: names.index(key) for key in keys.values()}
    fields = []
    for name, key in keys.items():
        convert = conversion(ROLES[name], "string", times)
        if convert is None:
            raise RuntimeError(f"text cannot become {name}")
        fields.append(Field(name, key, convert, hollow=ROLES[name] != "text"))

    def batch(rows: list[tuple[int, Record]], bad: list[BadRow], blank: int, last: Record | None) -> Batch:
        raw = pl.DataFrame(
            {key: [record.fields[place] for _, record in rows] for key, place in places.items()},
            schema=dict.fromkeys(places, pl.String),
        )
        good, reasons = read_fields(raw, [line for line, _ in rows], fields, part)
        texts = {line: record.raw for line, record in rows}
        misfits = [BadRow(line, reason, texts[line][:RAW_CHARS]) for line, reason in reasons.items()]
        return Batch(
            rows=good,
            bad=sorted([*bad, *misfits], key=lambda row: row.line),
            blank=blank,
            last_line=read,
            position=last.position if last else 0,
            raw=lambda line: texts[line][:RAW_CHARS],
        )

    rows: list[tuple[int, Record]] = []
    bad: list[BadRow] = []
    chars, last = 0, None
    for record in found:
        read, last = read + 1, record
        chars += len(record.raw)
        reason = record.reason or (
            "wrong-number-of-fields" if record.fields and len(record.fields) != len(names) else None
        )
        if reason:
            bad.append(BadRow(read, reason, record.raw[:RAW_CHARS]))
        elif record.fields:
            rows.append((read, record))
        else:
            blank += 1
        if chars >= batch_bytes or len(rows) + len(bad) >= BATCH_ROWS:
            yield batch(rows, bad, blank, last)
            rows, bad, blank, chars, last = [], [], 0, 0, None
    if last:
        yield batch(rows, bad, blank, last)


def sniffed_columns(path: Path, keys: Mapping[str, str], times: str, part: Part) -> dict[str, Column]:
    """How JSON lines hold the mapped columns, told from the first value of each; a row of another type is then bad.

    Args:
        path: The file, plain or gzip.
        keys: Raw key by canonical column.
        times: As in `conversion`.
        part: Reviews or items.

    Raises:
        DataError: The file cannot be read, no object at its beginning has one of the keys, or a value there does not
            fit.
    """
    check_times(times)
    block = next(iter(read_blocks(path, block_bytes=SNIFFED_BYTES)), None)
    seen: dict[str, Any] = {}
    for line in bytes(block.data).split(b"\n")[:SNIFFED_LINES] if block else ():
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(row, dict):
            seen |= {key: value for key, value in row.items() if seen.get(key) is None}
    columns: dict[str, Column] = {}
    for name, key in keys.items():
        if seen and key not in seen:
            raise DataError(f"no object at its beginning has the key `{key}`", str(path), nearest(key, list(seen)))
        columns[name] = _column(name, key, seen.get(key), times, path, part)
    for first in columns.values():
        for other in columns.values():
            if first.keys == other.keys and ARROW[first.kind] != ARROW[other.kind]:
                raise DataError(f"`{first.keys[0]}` cannot be both text and a number", str(path), "map it once")
    return columns


def _column(name: str, key: str, value: Any, times: str, path: Path, part: Part) -> Column:
    role, convert = ROLES[name], None
    integer = isinstance(value, int) and not isinstance(value, bool)
    kind: Kind = "string"
    if role == "list":
        nested = isinstance(value, list) and any(isinstance(each, list) for each in value)
        kind = "lists" if nested else "strings" if isinstance(value, list) else "text"
    elif role == "number":
        kind = "string" if isinstance(value, str) else "number"
        convert = conversion(role, "string", times) if kind == "string" else None
    elif role in ("id", "time"):
        kind = "integer" if integer or (role == "time" and value is None and times in ("ms", "s")) else "string"
        convert = conversion(role, "integer" if kind == "integer" else "string", times)
        if convert is None:
            raise DataError(f"`{key}` holds numbers, but ingest.options.timestamp is {times}", str(path), "set ms or s")
    return Column(
        kind, (key,), required=role == "time" or name == "text", identifies=name in IDS[part], convert=convert
    )

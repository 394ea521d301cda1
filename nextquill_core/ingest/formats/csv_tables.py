"""CSV files into canonical columns."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import polars as pl

from nextquill_core.errors import DataError
from nextquill_core.ingest.formats.fields import RAW_CHARS, Fault, check_present, mapped_fields, read_fields
from nextquill_core.ingest.formats.records import Dialect, Record, records
from nextquill_core.ingest.formats.signatures import encoding_remedy, guessed_encoding
from nextquill_core.ingest.formats.values import Rules, check_times
from nextquill_core.ingest.sources.base import BadRow, Batch, Part

BATCH_ROWS = 20_000
DELIMITERS = (",", ";", "\t", "|")
_SEPARATOR = re.compile(r'"?sep=(.)"?', re.IGNORECASE)  # a first line by which Excel names the delimiter


@dataclass(frozen=True)
class Layout:
    """How a CSV file names its columns.

    Attributes:
        dialect: How its records are written.
        delimiter_given: Whether the delimiter was asked for; otherwise the header may show another one.
        header: Whether the first record names the columns, or the names where none does. With False, columns are
            named by their number, from 1.
    """

    dialect: Dialect
    delimiter_given: bool = False
    header: bool | tuple[str, ...] = True


def read_csv(
    path: Path, keys: Mapping[str, str], rules: Rules, part: Part, layout: Layout, batch_bytes: int
) -> Iterator[Batch]:
    """Read CSV; `line` numbers the records, blank lines included.

    A record that cannot be taken apart is `not-csv`; reading then continues at its second line, so that a quote that
    is never closed hides nothing behind it.

    Args:
        path: The file, plain or gzip.
        keys: Raw column by canonical column.
        rules: How single values become canonical.
        part: Reviews or items.
        layout: How the file is written.
        batch_bytes: About how much text a batch holds; it has at most `BATCH_ROWS` rows.

    Raises:
        DataError: The file cannot be read, or a column is not there.
    """
    check_times(rules.times)
    beginning = _beginning(path, keys, layout, batch_bytes)
    if beginning is None:
        return
    found, names, dialect, read, blank = beginning
    places = {key: names.index(key) for key in keys.values()}
    fields = mapped_fields(keys, rules, part)
    remedies = _Remedies(path, dialect, len(names))

    def batch(rows: list[tuple[int, Record]], bad: list[BadRow], blank: int, last: Record | None) -> Batch:
        raw = {
            key: pl.Series([record.fields[place] for _, record in rows], dtype=pl.String)
            for key, place in places.items()
        }
        good, faults = read_fields(raw, [line for line, _ in rows], fields, part)
        texts = {line: record.raw for line, record in rows}
        misfits = [fault.row(line, texts[line]) for line, fault in faults.items()]
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
            bad.append(remedies.fault(reason, record).row(read, record.raw))
        elif record.fields:
            rows.append((read, record))
        else:
            blank += 1
        if chars >= batch_bytes or len(rows) + len(bad) >= BATCH_ROWS:
            yield batch(rows, bad, blank, last)
            rows, bad, blank, chars, last = [], [], 0, 0, None
    if last:
        yield batch(rows, bad, blank, last)


def _beginning(
    path: Path, keys: Mapping[str, str], layout: Layout, batch_bytes: int
) -> tuple[Iterator[Record], list[str], Dialect, int, int] | None:
    """The records of data, the names of the columns, the dialect, and how many records and blank ones lie before."""
    dialect = layout.dialect
    found = records(path, dialect, batch_bytes)
    first, read, blank = _first(found)
    if first is None:
        return None
    if match := _SEPARATOR.fullmatch(first.raw):
        delimiter = match[1]
    elif layout.header is True and not layout.delimiter_given:
        delimiter = _delimiter_of(first.raw, keys, dialect)
    else:
        delimiter = dialect.delimiter
    if match or delimiter != dialect.delimiter:
        dialect = replace(dialect, delimiter=delimiter)
        found = records(path, dialect, batch_bytes)
        first, read, blank = _first(found)
        if match:
            first, more, more_blank = _first(found)
            read, blank = read + more, blank + more_blank + 1
        if first is None:
            return None
    if first.reason:
        fault = _Remedies(path, dialect, 0).fault(first.reason, first)
        raise DataError(
            f"the header cannot be read ({first.reason}: {first.raw[:80]})",
            str(path),
            fault.remedy or "the first record names the columns",
        )
    if layout.header is True or (layout.header is False and _names_all(keys, first.fields)):
        check_present(keys, first.fields, str(path), _header_remedy(keys, first, dialect))
        return found, first.fields, dialect, read, blank
    names = [str(number) for number in range(1, len(first.fields) + 1)] if layout.header is False else layout.header
    remedy = "columns of a file without a header are named by their number" if layout.header is False else ""
    check_present(keys, list(names), str(path), remedy)
    return chain([first], found), list(names), dialect, read - 1, blank


def _first(found: Iterator[Record]) -> tuple[Record | None, int, int]:
    """The next record that is not blank, how many were read, and how many of them were blank."""
    read = 0
    for record in found:
        read += 1
        if record.reason or record.fields:
            return record, read, read - 1
    return None, read, read


def _delimiter_of(header: str, keys: Mapping[str, str], dialect: Dialect) -> str:
    """The delimiter by which a header has all mapped columns; the default one where that is not certain."""

    def fits(delimiter: str) -> bool:
        try:
            return _names_all(keys, next(replace(dialect, delimiter=delimiter).reader(iter([header])), []))
        except csv.Error:
            return False

    fitting = [delimiter for delimiter in DELIMITERS if fits(delimiter)]
    return dialect.delimiter if dialect.delimiter in fitting or len(fitting) != 1 else fitting[0]


def _names_all(keys: Mapping[str, str], names: Sequence[str]) -> bool:
    return set(keys.values()) <= set(names)


def _header_remedy(keys: Mapping[str, str], first: Record, dialect: Dialect) -> str:
    """What could be set where a header lacks mapped columns."""
    names = first.fields
    for quote in ("'", "`", '"'):
        if quote != dialect.quote and any(name.strip(quote) in keys.values() for name in names if quote in name):
            return f'the header has quotes: set ingest.options.quote: "{quote}"'
    if not set(keys.values()) & set(names):
        for delimiter in DELIMITERS:
            if delimiter != dialect.delimiter and set(keys.values()) & set(first.raw.split(delimiter)):
                return f"the header holds {delimiter!r}: set ingest.options.delimiter: {delimiter!r}"
        return "if the file has no header, set ingest.options.header to the list of its columns"
    return ""


class _Remedies:
    """What could be set so that a record is accepted."""

    def __init__(self, path: Path, dialect: Dialect, columns: int) -> None:
        self._path, self._dialect, self._columns = path, dialect, columns
        self._encoding: str | None = None

    def fault(self, reason: str, record: Record) -> Fault:
        """Why a record cannot be read."""
        dialect, raw = self._dialect, record.raw
        detail = remedy = ""
        if reason == "wrong-number-of-fields":
            detail = f"{len(record.fields)} fields instead of {self._columns} in {raw[:60]}"
        if reason == "invalid-utf8" and dialect.encoding == "utf-8":
            remedy = encoding_remedy(self._guess())
        elif dialect.quote and dialect.escape is None and "\\" + dialect.quote in raw:
            remedy = r"set ingest.options.escape: '\'"
        elif dialect.quote != "'" and reason == "wrong-number-of-fields" and re.search(r"(^|\W)'[^']*,", raw):
            remedy = 'set ingest.options.quote: "\'"'
        elif reason == "not-csv" and dialect.quote:
            remedy = "if fields have no quotes around them, set ingest.options.quote: none"
        return Fault(reason, detail, remedy)

    def _guess(self) -> str:
        if self._encoding is None:
            self._encoding = guessed_encoding(self._path)
        return self._encoding

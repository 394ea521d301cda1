"""What sources of published benchmarks share: a row is an example, with a user's profile and the user's own text."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from nextquill_core.ingest.batches import BATCH_ROWS, RAW_CHARS, BadRow, Batch, Part
from nextquill_core.ingest.sources.base import Source
from nextquill_core.ingest.sources.fetching import fetched_from

SPLIT_NAMES: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
"""The split by the names that it has in files and folders."""
LARGEST_TIME = 2**53
"""Milliseconds, 285,000 years: a time that is as far from 1970 as this is none."""
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]*)?")


class BadRowError(Exception):
    """The row or entry cannot be read; the message is the reason."""


@dataclass(frozen=True)
class ProfileRow:
    """A row that has been taken apart.

    Attributes:
        user: Id of its user.
        profile: What the user wrote before, oldest first.
        own: What the target is made of; None if the row has no target.
    """

    user: str
    profile: list[Any]
    own: Any = None


class ProfileSource(Source):
    """A source of rows that hold a profile: Parquet, Arrow, a JSON array, or one row a line, plain or gzip.

    Every entry of a row's profile becomes a review, and the row's own text, the target, too. `line` numbers the reviews
    of a file, a row's profile first and then its own. A row that cannot be read takes one number, and so does a row
    without any entry, which counts as blank.
    """

    publishes = True
    repositories: ClassVar[Mapping[Part, str]]
    """The hub data sets whose folders are the configurations; those of reviews and items may be the same."""

    @abstractmethod
    def take_apart(self, row: dict[str, Any]) -> ProfileRow:
        """Return the user, the profile and the own text of a row.

        Raises:
            BadRowError: The row has none of them, or of another type.
        """

    @abstractmethod
    def review(self, entry: Any, user: str, place: int, *, own: bool) -> dict[str, Any]:
        """Return the values of an entry: of the review, and `description`, a list, of its item.

        Args:
            entry: The entry, or the row's own text.
            user: The user.
            place: Its place in the row, from 1.
            own: Whether it is the row's own text.

        Raises:
            BadRowError: It cannot be read.
        """

    def split_of(self, path: Path) -> str | None:
        """Return the split that a word of a file's name shows, as in `train-00000.parquet`, or its folder's name."""
        words = re.split(r"[^a-z]+", path.name.lower())
        found = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
        return found.pop() if len(found) == 1 else SPLIT_NAMES.get(path.parent.name.lower())

    def read(self, part: Part, path: Path, resume: Any = None) -> Iterator[Batch]:
        """Read a file row by row, always from its beginning; rows are never split between batches.

        Args:
            part: What is made of each entry: a review, or the item it is about.
            path: The file.
            resume: Unused.

        Raises:
            DataError: Also where an array is not closed, or the file is of no known format.
        """
        from nextquill_core.ingest.formats.nested_rows import read_nested_rows

        line, found = 0, _Found(self.split_of(path))
        for data, position, fault in read_nested_rows(path):
            found.position = position
            found.size += len(data)
            line = self._read_row(data, fault, found, line, part)
            if found.size >= self.batch_bytes or len(found.rows) >= BATCH_ROWS:
                yield found.batch(part, line)
                found = _Found(found.split, position=position)
        if found.size or found.rows or found.bad or found.blank:
            yield found.batch(part, line)

    def fetched(self, category: str, part: Part, fetch: bool) -> tuple[Path, ...]:
        """Return the files of a configuration of the hub data set, in the hub client's cache.

        Args:
            category: Name of the configuration.
            part: Reviews or items.
            fetch: Whether to download; otherwise only earlier copies count.

        Raises:
            DataError: There is no such configuration, no copy, or the download failed.
        """
        return fetched_from(self.repositories[part], category, "configuration", category, part, fetch=fetch)

    def _read_row(self, data: bytes, fault: str | None, found: _Found, line: int, part: Part) -> int:
        """Read a row into `found` and return the last `line`."""
        import orjson  # late: listing the sources stays fast

        try:
            row = self.take_apart(_object(data, fault))
        except BadRowError as error:
            found.bad.append(BadRow(line + 1, str(error), _text(data)))
            return line + 1
        except _BlankError:
            found.blank += 1
            return line + 1
        entries = [(entry, False) for entry in row.profile] + ([(row.own, True)] if row.own is not None else [])
        if not entries:
            found.blank += 1
            return line + 1
        first = line + 1
        for place, (entry, own) in enumerate(entries, 1):
            line += 1
            try:
                shown = orjson.dumps(entry)
            except orjson.JSONEncodeError:  # nested more deeply than can be written
                shown = b""
            try:
                values = self.review(entry, row.user, place, own=own)
            except BadRowError as error:
                found.bad.append(BadRow(line, str(error), _text(shown)))
                continue
            found.raw[line] = shown
            if part == "items":
                values["title"] = None  # the review's title is not its item's
            found.rows.append({"line": line, "split": found.split, "example": first, "own": own, **values})
        return line


def identifier(row: Mapping[str, Any], key: str) -> str:
    """Return an id, which may be written as text or as an integer.

    Raises:
        BadRowError: It is missing, empty or of another type.
    """
    value = row.get(key)
    if value is None or value == "":
        raise BadRowError(f"missing-{key}")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRowError(f"wrong-type-{key}")
    return str(value)


def entries(row: Mapping[str, Any], key: str) -> list[Any]:
    """Return a list of entries; a table of columns, which `datasets` makes of a list of records, is turned into one.

    Raises:
        BadRowError: It is missing or neither.
    """
    value = row.get(key)
    if value is None:
        raise BadRowError(f"missing-{key}")
    columns = list(value.values()) if isinstance(value, dict) else []
    if columns and all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return [dict(zip(value, values, strict=True)) for values in zip(*columns, strict=True)]
    if not isinstance(value, list):
        raise BadRowError(f"wrong-type-{key}")
    return value


def text(entry: Mapping[str, Any], key: str) -> str | None:
    """Return a text, None for a null.

    Raises:
        BadRowError: It is missing or of another type.
    """
    value = _value(entry, key)
    if value is not None and not isinstance(value, str):
        raise BadRowError(f"wrong-type-{key}")
    return value


def number(entry: Mapping[str, Any], key: str) -> float | None:
    """Return a number, which may be written as text; None for a null.

    Raises:
        BadRowError: It is missing or of another type.
    """
    value = _value(entry, key)
    if value is None:
        return None
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRowError(f"wrong-type-{key}")
    return float(value)


def milliseconds(entry: Mapping[str, Any], key: str) -> int | None:
    """Return a time, None for a null.

    Raises:
        BadRowError: It is missing, of another type, or too large for a time.
    """
    value = number(entry, key)
    if value is None:
        return None
    if abs(value) >= LARGEST_TIME:
        raise BadRowError(f"wrong-type-{key}")
    return round(value)


def _value(entry: Mapping[str, Any], key: str) -> Any:
    if key not in entry:
        raise BadRowError(f"missing-{key}")
    return entry[key]


class _BlankError(Exception):
    """The line holds nothing."""


@dataclass
class _Found:
    """What was read since the last batch of a file with the examples of `split`."""

    split: str | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    blank: int = 0
    raw: dict[int, bytes] = field(default_factory=dict)
    size: int = 0
    position: int = 0

    def batch(self, part: Part, last_line: int) -> Batch:
        import polars as pl

        from nextquill_core.ingest.canonical import CANONICAL, LINE, PUBLISHED, canonical

        kinds = {LINE: pl.Int64(), **CANONICAL[part], **(PUBLISHED if part == "reviews" else {})}
        rows = [{name: row.get(name) for name in kinds} for row in self.rows]
        return Batch(
            rows=canonical(pl.DataFrame(rows, schema=kinds), part),
            bad=self.bad,
            blank=self.blank,
            last_line=last_line,
            position=self.position,
            raw=lambda line: _text(self.raw[line]),
        )


def _text(data: bytes) -> str:
    return data.decode(errors="replace")[:RAW_CHARS]


def _object(data: bytes, fault: str | None) -> dict[str, Any]:
    """Parse a row.

    Raises:
        BadRowError: It cannot be read.
        _BlankError: The line is blank.
    """
    import orjson

    if fault:
        raise BadRowError(fault)
    if not data.strip(b" \t\r\n"):
        raise _BlankError
    try:
        data.decode()
    except UnicodeDecodeError:
        raise BadRowError("invalid-utf8") from None
    try:
        row = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise BadRowError("not-json") from None
    if not isinstance(row, dict):
        raise BadRowError("not-an-object")
    return row

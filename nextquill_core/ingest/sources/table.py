"""Any table of reviews and of items, its columns named in the configuration: JSON lines, CSV or Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from nextquill_core.config import RawInput, Section
from nextquill_core.errors import DataError
from nextquill_core.ingest.sources.base import Batch, Part, RawFiles, Source
from nextquill_core.ingest.sources.jsonlines import JsonLines
from nextquill_core.ingest.sources.options import checked

Format = Literal["json", "csv", "parquet"]
ENDINGS: Mapping[str, Format] = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
Name = Annotated[str, Field(min_length=1)]


class ReviewColumns(Section):
    """The raw columns of reviews."""

    user_id: Name
    item_id: Name
    rating: Name | None = None
    title: Name | None = None
    text: Name
    timestamp: Name


class ItemColumns(Section):
    """The raw columns of items."""

    item_id: Name
    title: Name | None = None
    description: Name | None = None
    categories: Name | None = None
    rating_number: Name | None = None


class TableOptions(Section):
    """What `table` takes."""

    reviews: ReviewColumns
    items: ItemColumns
    timestamp: Annotated[str, Field(description="ms, s, iso, or a strftime pattern; times without a zone are UTC")] = (
        "ms"
    )
    ratings: Annotated[tuple[float, float], Field(description="lowest and highest rating there is")] = (1.0, 5.0)
    delimiter: Annotated[
        str | None, Field(description="one character between the fields of CSV; by default a comma, in .tsv a tab")
    ] = None

    @field_validator("timestamp")
    @classmethod
    def _timestamp_is_known(cls, value: str) -> str:
        if value in ("ms", "s", "iso"):
            return value
        try:
            if "%" not in value or value == "%" * len(value):
                raise ValueError
            datetime.strptime(datetime(2001, 12, 23, 4, 5, 6, tzinfo=UTC).strftime(value), value)
        except ValueError:
            raise ValueError('ms, s, iso or a pattern such as "%Y-%m-%d %H:%M:%S" is needed') from None
        return value

    @field_validator("ratings")
    @classmethod
    def _ratings_rise(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < value[1]:
            raise ValueError("the lowest rating must be less than the highest")
        return value

    @field_validator("delimiter")
    @classmethod
    def _delimiter_is_a_character(cls, value: str | None) -> str | None:
        if value is not None and (len(value) != 1 or value in '"\r\n'):
            raise ValueError("one character is needed, and neither a quote nor a line end")
        return value


class Table(Source):
    r"""JSON lines, CSV or Parquet, told apart by the file's name, with the columns that `ingest.options` names.

    Ids may be text or integers, which become their decimal text; numbers and times may stand as text, in CSV they all
    do. A description or categories may be one string or a list of strings. In CSV an empty field is a missing value
    where a number, a time, an id or a list is expected, and an empty text elsewhere.
    `line` is the line of JSON lines, the record of CSV (the header is the first; blank lines count), the row of
    Parquet.

    Attributes:
        absent: Columns that are not mapped.
    """

    name = "table"
    summary = "Any JSON lines (.jsonl, .gz), CSV (.csv, .tsv, .gz) or Parquet, its columns named in ingest.options"

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = checked(TableOptions, options, self.name)
        self.ratings = self.options.ratings
        self.keys: dict[Part, dict[str, str]] = {
            "reviews": _mapped(self.options.reviews),
            "items": _mapped(self.options.items),
        }
        sections = {"reviews": self.options.reviews, "items": self.options.items}
        self.absent = frozenset(
            f"{part}.{name}" for part, section in sections.items() for name, key in section if key is None
        )

    def find(self, raw: RawInput, *, fetch: bool) -> RawFiles:
        """The raw files, each of a format that can be read."""
        files = super().find(raw, fetch=fetch)
        for path in (*files.reviews, *files.items):
            table_format(path)
        return files

    def read(self, part: Part, path: Path, resume: Any = None) -> Iterator[Batch]:
        """Read a table. JSON lines go on where they were left; of the other formats the batches are read again.

        Raises:
            DataError: Also where a mapped column is not there or does not hold what is asked of it.
        """
        kind, options = table_format(path), self.options
        if kind == "json":
            from nextquill_core.ingest.formats.tables import sniffed_columns

            lines = JsonLines()
            lines.columns = {part: sniffed_columns(path, self.keys[part], options.timestamp, part)}
            lines.batch_bytes = self.batch_bytes
            return lines.read(part, path, resume)
        if kind == "csv":
            from nextquill_core.ingest.formats.tables import read_csv

            delimiter = options.delimiter or ("\t" if ".tsv" in path.suffixes else ",")
            return read_csv(path, self.keys[part], options.timestamp, part, delimiter, self.batch_bytes)
        from nextquill_core.ingest.formats.parquet import read_parquet

        return read_parquet(path, self.keys[part], options.timestamp, part)


def table_format(path: Path) -> Format:
    """The format that a file's name tells.

    Raises:
        DataError: The name tells none.
    """
    name = path.name.lower()
    plain = name.removesuffix(".gz")
    found = next((kind for ending, kind in ENDINGS.items() if plain.endswith(ending)), None)
    if found is None or (found == "parquet" and plain != name):
        raise DataError(
            "its name does not tell a format that `table` reads",
            str(path),
            "use .jsonl, .json, .ndjson, .csv or .tsv (each also with .gz), or .parquet",
        )
    return found


def _mapped(section: ReviewColumns | ItemColumns) -> dict[str, str]:
    """Canonical column to raw column."""
    return {"timestamp_ms" if name == "timestamp" else name: key for name, key in section if key is not None}

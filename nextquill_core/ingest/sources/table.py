"""Any table of reviews and of items, its columns named in the configuration: JSON lines, CSV or Parquet."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from nextquill_core.config import RawInput, Section
from nextquill_core.errors import DataError
from nextquill_core.ingest.batches import Batch, Part
from nextquill_core.ingest.sources.base import RawFiles, Source
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


def _as_name(value: Any) -> Any:
    """Return a column's name; the columns of a file without a header may be named by their number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else value


Name = Annotated[str, BeforeValidator(_as_name), Field(min_length=1)]


OF_ITEMS = ("item_title", "item_description")  # columns of reviews that describe their item


class ReviewColumns(Section):
    """The raw columns of reviews."""

    user_id: Name
    item_id: Name
    rating: Name | None = None
    title: Name | None = None
    text: Name
    timestamp: Name
    item_title: Name | None = None
    """column of the item's title, where there is no file of items"""
    item_description: Name | None = None
    """column of the item's description, where there is no file of items"""


class ItemColumns(Section):
    """The raw columns of items."""

    item_id: Name
    title: Name | None = None
    description: Name | None = None
    categories: Name | None = None
    rating_number: Name | None = None


class FileOptions(Section):
    """How the files of a part are written."""

    encoding: str | None = None
    """encoding of text files, such as cp1252, gb18030, cp932 or utf-16; UTF-8 by default"""
    delimiter: str | None = None
    """character between the fields of CSV; by default a comma, in .tsv a tab, or the character by which the header has
    all mapped columns"""
    quote: str | None = None
    """character around fields of CSV that hold delimiters, or `none`; a double quote by default"""
    escape: str | None = None
    """character before a quote, a delimiter or a line end that belongs to a field of CSV, such as the backslash of
    Spark, Athena and MySQL; by default there is none, and quotes are doubled"""
    header: bool | tuple[Name, ...] | None = None
    """true (the default) if the first record of CSV names the columns, false to name columns by their number from 1, or
    the list of the columns of a file without a header"""

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, value: str | None) -> str | None:
        try:
            known = value is None or codecs.lookup(value)._is_text_encoding
            if value is not None and known:  # some, such as idna, cannot pass over what they cannot decode
                codecs.getincrementaldecoder(value)("backslashreplace").decode(b"", final=True)
        except (LookupError, UnicodeError):
            known = False
        if not known:
            raise ValueError("Python knows no such encoding; examples: utf-8, cp1252, gb18030, cp932, utf-16")
        return value

    @field_validator("delimiter", "escape")
    @classmethod
    def _is_a_character(cls, value: str | None) -> str | None:
        if value is not None and (len(value) != 1 or value in '"\r\n'):
            raise ValueError("one character is needed, and neither a quote nor a line end")
        return value

    @field_validator("quote")
    @classmethod
    def _quote_is_a_character(cls, value: str | None) -> str | None:
        if value is not None and value != "none" and (len(value) != 1 or value in "\r\n"):
            raise ValueError("one character or `none` is needed")
        return value

    @field_validator("header")
    @classmethod
    def _header_names_columns_once(cls, value: bool | tuple[str, ...] | None) -> bool | tuple[str, ...] | None:
        if isinstance(value, tuple) and (not value or len(set(value)) < len(value)):
            raise ValueError("the name of every column is needed, each once")
        return value


class Files(Section):
    """Options for the files of one part only."""

    reviews: FileOptions = FileOptions()
    items: FileOptions = FileOptions()


class TableOptions(FileOptions):
    """What `table` takes."""

    reviews: ReviewColumns
    items: ItemColumns | None = None
    timestamp: str = "ms"
    """unit of timestamps since 1970 (s, ms, us, ns), iso, or a strftime pattern; times without a zone are UTC"""
    ratings: tuple[float, float] = (1.0, 5.0)
    """lowest and highest rating"""
    rating_words: dict[str, float] = {}
    """ratings that are words, such as {poor: 1, excellent: 5}"""
    null_values: tuple[str, ...] = ()
    """further texts that mean a missing value, in every column"""
    files: Files = Files()
    """encoding, delimiter, quote, escape and header of one part only"""

    @field_validator("timestamp")
    @classmethod
    def _timestamp_is_known(cls, value: str) -> str:
        if value in ("s", "ms", "us", "ns", "iso"):
            return value
        try:
            if "%" not in value or value == "%" * len(value):
                raise ValueError
            datetime.strptime(datetime(2001, 12, 23, 4, 5, 6, tzinfo=UTC).strftime(value), value)
        except (ValueError, re.error):  # the latter where a directive is there twice
            raise ValueError('s, ms, us, ns, iso or a pattern such as "%Y-%m-%d %H:%M:%S" is needed') from None
        return value

    @model_validator(mode="after")
    def _items_are_named_once(self) -> TableOptions:
        given = [name for name in OF_ITEMS if getattr(self.reviews, name)]
        if self.items and given:
            raise ValueError(f"leave out `items` or reviews.{given[0]}: items are read from one place")
        return self

    @property
    def item_columns(self) -> ItemColumns:
        """The raw columns of items, which may be columns of the files of reviews."""
        reviews = self.reviews
        return self.items or ItemColumns(
            item_id=reviews.item_id, title=reviews.item_title, description=reviews.item_description
        )

    @field_validator("ratings")
    @classmethod
    def _ratings_rise(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < value[1]:
            raise ValueError("the lowest rating must be less than the highest")
        return value

    @field_validator("rating_words", mode="before")
    @classmethod
    def _words_are_text(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and any(isinstance(word, bool) for word in value):
            raise ValueError('put words such as "yes" and "no" in quotes: YAML takes them for true and false')
        return value

    @field_validator("null_values", mode="before")
    @classmethod
    def _nulls_are_text(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(str(each) if isinstance(each, int | float) else each for each in value)
        return value

    def of(self, part: Part, name: str) -> Any:
        """Return an option of files, as it is for this part."""
        own = getattr(self.files.reviews if part == "reviews" else self.files.items, name)
        return getattr(self, name) if own is None else own


class Table(Source):
    """JSON, CSV or Parquet, distinguished by the file's name, with the columns that `ingest.options` names.

    Each value is converted by its type, so a column may hold numbers in some rows and text in others; the page
    docs/how-to/sources.md lists the spellings that are read. A description or categories may be one text or a list.
    `line` is the line of JSON lines, the element of a JSON array, the record of CSV (the header is the first; blank
    lines count), the row of Parquet.

    Attributes:
        absent: Columns that are not mapped.
    """

    name = "table"
    summary = "Any JSON lines (.jsonl, .gz), CSV (.csv, .tsv, .gz) or Parquet, its columns named in ingest.options"
    revision = 2

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = checked(TableOptions, options, self.name)
        self.ratings = self.options.ratings
        sections: dict[Part, ReviewColumns | ItemColumns]
        sections = {"reviews": self.options.reviews, "items": self.options.item_columns}
        self.keys = {part: _mapped(section) for part, section in sections.items()}
        self.items_in_reviews = self.options.items is None
        self.absent = frozenset(
            f"{part}.{name}"
            for part, section in sections.items()
            for name, key in section
            if key is None and name not in OF_ITEMS
        )
        self._files: dict[Part, tuple[Path, ...]] = {}

    def find(self, raw: RawInput, *, fetch: bool) -> RawFiles:
        """Return the raw files, each of a format that can be read.

        Raises:
            DataError: Also where a category has a file of items whose columns are not named, or the other way round.
        """
        if raw.items and not self.options.items:
            raise DataError("the columns of items are not named", "ingest.options", f"name them for {raw.items}")
        if self.options.items and not raw.items:
            raise DataError(
                "no path to the items",
                raw.category,
                "set ingest.inputs[].items, or, where the reviews hold the items' titles, leave out "
                "ingest.options.items and name them in ingest.options.reviews.item_title",
            )
        files = super().find(raw, fetch=fetch)
        for path in (*files.reviews, *files.items):
            table_format(path)
        self._files = {"reviews": files.reviews, "items": files.items}
        return files

    def read(self, part: Part, path: Path, resume: Any = None) -> Iterator[Batch]:
        """Read a table. JSON lines are resumed; files of other formats are read again from the beginning.

        Args:
            part: Reviews or items.
            path: The file.
            resume: As in `Source.read`.

        Raises:
            DataError: Also where a mapped column is missing or has a type that does not fit.
        """
        from nextquill_core.ingest.formats.values import ValueRules

        kind, options, keys = table_format(path), self.options, self.keys[part]
        words = {word.casefold().strip(): rating for word, rating in options.rating_words.items()}
        rules = ValueRules(options.timestamp, options.ratings, words, frozenset(options.null_values))
        encoding = codecs.lookup(options.of(part, "encoding") or "utf-8").name
        if kind == "json":
            from nextquill_core.ingest.formats.json_files import read_json

            siblings = self._files.get(part, ())
            return read_json(path, keys, rules, part, self.batch_bytes, resume, encoding=encoding, siblings=siblings)
        if kind == "csv":
            from nextquill_core.ingest.formats.csv_files import Dialect, read_csv

            given = {name: options.of(part, name) for name in ("delimiter", "quote", "escape", "header")}
            dialect = Dialect(
                delimiter=given["delimiter"] or ("\t" if ".tsv" in path.name.lower() else ","),
                quote=None if given["quote"] == "none" else given["quote"] or '"',
                escape=given["escape"],
                encoding=encoding,
                header=True if given["header"] is None else given["header"],
                fixed=given["delimiter"] is not None,
            )
            return read_csv(path, keys, rules, part, dialect, self.batch_bytes)
        from nextquill_core.ingest.formats.parquet_files import read_parquet

        return read_parquet(path, keys, rules, part)


def table_format(path: Path) -> Format:
    """Return the format that a file's name shows.

    Raises:
        DataError: The name shows none.
    """
    name = path.name.lower()
    plain = name.removesuffix(".gz")
    found = next((kind for ending, kind in ENDINGS.items() if plain.endswith(ending)), None)
    if found is None or (found == "parquet" and plain != name):
        raise DataError(
            "its name does not show a format that `table` reads",
            str(path),
            "use .jsonl, .json, .ndjson, .csv or .tsv (each also with .gz), or .parquet",
        )
    return found


def _mapped(section: ReviewColumns | ItemColumns) -> dict[str, str]:
    """Return the raw column of each canonical column that is mapped."""
    named = ((name, key) for name, key in section if key is not None and name not in OF_ITEMS)
    return {"timestamp_ms" if name == "timestamp" else name: key for name, key in named}

"""Where raw reviews come from: which files a category has and which raw keys hold the canonical columns.

Imports nothing heavy, because `nextquill status` and `nextquill sources` load it.
"""

from __future__ import annotations

import difflib
import glob
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from nextquill_core.config import RawInput
from nextquill_core.errors import DataError

Kind = Literal["string", "number", "integer", "strings"]


@dataclass(frozen=True)
class RawFiles:
    """The raw files of one category, in the order in which they are read."""

    category: str
    reviews: tuple[Path, ...]
    items: tuple[Path, ...]


@dataclass(frozen=True)
class Column:
    """How raw rows hold one canonical column.

    Attributes:
        kind: The JSON type: string, number, integer, or strings (a list of them).
        keys: The raw key, then others that some dumps use for it; the first that is not null counts.
        required: A row without any of the keys cannot be read; where it is False the value is then null.
        identifies: The value may not be null either.
    """

    kind: Kind
    keys: tuple[str, ...]
    required: bool = True
    identifies: bool = False


class Source:
    """One layout of raw data: how to find a category's files and how raw keys map to the canonical columns.

    Attributes:
        name: What `ingest.source` calls it.
        summary: One line for `nextquill sources`.
        review_columns: For user_id, item_id, rating, title, text and timestamp_ms (UTC milliseconds).
        item_columns: For item_id, title, description, categories and rating_number.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    review_columns: ClassVar[Mapping[str, Column]]
    item_columns: ClassVar[Mapping[str, Column]]

    def find(self, raw: RawInput, *, fetch: bool) -> RawFiles:
        """The raw files of a category; a path or glob that is not given is fetched by `fetched`.

        Raises:
            DataError: A file is missing or empty, a glob matches nothing, or fetching failed.
        """
        reviews = _local(raw.reviews, raw.category) if raw.reviews else (self.fetched(raw.category, "reviews", fetch),)
        items = _local(raw.items, raw.category) if raw.items else (self.fetched(raw.category, "items", fetch),)
        return RawFiles(raw.category, reviews, items)

    def fetched(self, category: str, part: Literal["reviews", "items"], fetch: bool) -> Path:
        """Fetch a category's raw file and return the local copy; without `fetch`, only look for an earlier copy.

        Raises:
            DataError: The source has no place to fetch from, or it failed.
        """
        raise DataError(f"no path to the {part}", category, f"set ingest.inputs[].{part}: {self.name} fetches nothing")


class Amazon2023(Source):
    """Amazon Reviews 2023 as it is published: one JSON object a line."""

    name = "amazon-2023"
    summary = "Amazon Reviews 2023 (JSON lines, plain or .gz): local files, or a category name fetched from the hub"
    # `details`, `price`, `images` and `videos` change type from row to row, so only these keys are ever read.
    review_columns: ClassVar[Mapping[str, Column]] = {
        "user_id": Column("string", ("user_id",), identifies=True),
        "item_id": Column("string", ("parent_asin",), identifies=True),
        "rating": Column("number", ("rating",)),
        "title": Column("string", ("title",)),
        "text": Column("string", ("text",)),
        "timestamp_ms": Column("integer", ("timestamp", "sort_timestamp")),
    }
    item_columns: ClassVar[Mapping[str, Column]] = {
        "item_id": Column("string", ("parent_asin",), identifies=True),
        "title": Column("string", ("title",), required=False),
        "description": Column("strings", ("description",), required=False),
        "categories": Column("strings", ("categories",), required=False),
        "rating_number": Column("number", ("rating_number",), required=False),
    }
    repository = "McAuley-Lab/Amazon-Reviews-2023"

    def fetched(self, category: str, part: Literal["reviews", "items"], fetch: bool) -> Path:
        """The category's file of the hub data set, in the hub's own cache."""
        folder, prefix = ("review_categories", "") if part == "reviews" else ("meta_categories", "meta_")
        file = f"raw/{folder}/{prefix}{category}.jsonl"
        try:
            from huggingface_hub import hf_hub_download

            return Path(hf_hub_download(self.repository, file, repo_type="dataset", local_files_only=not fetch))
        except Exception as error:  # the hub client raises many kinds; each of them means that there is no file
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"cannot fetch {file}: {reason}",
                f"hub data set {self.repository}",
                f"check the category's name and the network, or name local files in ingest.inputs[].{part}",
            ) from None


SOURCES: dict[str, type[Source]] = {source.name: source for source in (Amazon2023,)}


def source(name: str) -> Source:
    """The source called `name`.

    Raises:
        DataError: There is none; the nearest name is suggested.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1, cutoff=0.4)
        remedy = f"did you mean `{near[0]}`?" if near else f"one of: {', '.join(SOURCES)}"
        raise DataError(f"unknown source `{name}`", "ingest.source", remedy)
    return SOURCES[name]()


def raw_files(source_name: str, raw: RawInput, *, fetch: bool = True) -> RawFiles:
    """Find the raw files of one category, and fetch what has no path.

    Args:
        source_name: A name of `SOURCES`.
        raw: The category and its paths or globs.
        fetch: Whether files may be fetched; otherwise only earlier copies count.

    Raises:
        DataError: Unknown source, missing or empty file, a glob that matches nothing, or a failed download.
    """
    return source(source_name).find(raw, fetch=fetch)


def _local(pattern: str, category: str) -> tuple[Path, ...]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        raise DataError("is a folder", pattern, f"name the files, for example {pattern.rstrip('/')}/*.jsonl.gz")
    if path.exists():
        paths = [path]
    elif glob.has_magic(pattern):
        anchor = Path(path.anchor) if path.is_absolute() else Path()
        paths = sorted(match for match in anchor.glob(str(path.relative_to(anchor))) if match.is_file())
        if not paths:
            raise DataError("no file matches", pattern, f"check ingest.inputs of category {category}")
    else:
        raise DataError("no such file", pattern, f"check ingest.inputs of category {category}")
    for path in paths:
        try:
            empty = path.stat().st_size == 0
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", str(path), "check its permissions") from None
        if empty:
            raise DataError("the file is empty", str(path), "fetch it again, or leave it out")
    return tuple(paths)

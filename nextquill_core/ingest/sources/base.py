"""What a source is: where the raw files of a category are, and how they become canonical rows.

Imports nothing heavy, because `nextquill status` and `nextquill sources` load it.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nextquill_core.config import RawInput
from nextquill_core.errors import DataError

if TYPE_CHECKING:
    import polars as pl

Part = Literal["reviews", "items"]
PARTS: tuple[Part, ...] = ("reviews", "items")
BATCH_BYTES = 24 << 20  # below 32 MB, from where on malloc has the kernel clear new memory each time


@dataclass(frozen=True)
class RawFiles:
    """The raw files of one category, in the order in which they are read."""

    category: str
    reviews: tuple[Path, ...]
    items: tuple[Path, ...]

    def of(self, part: Part) -> tuple[Path, ...]:
        """The files of one part."""
        return self.reviews if part == "reviews" else self.items


@dataclass(frozen=True)
class BadRow:
    """Something in a raw file that is not a row.

    Attributes:
        line: Its place in the file, from 1: a line's number, or a record's where a row is no line.
        reason: Why it cannot be read, as a short name like `wrong-type-rating`.
        raw: The beginning of its text.
    """

    line: int
    reason: str
    raw: str


@dataclass(frozen=True)
class Batch:
    """Some consecutive rows of a raw file.

    Attributes:
        rows: The columns of `canonical.CANONICAL` and `line` (i64, as in `BadRow`), in file order.
        bad: What could not be read, in file order.
        blank: How many lines hold nothing; these are no rows.
        last_line: Number of the last line (or record) that this batch accounts for.
        position: How far the file has been read, in bytes on disk.
        resume: What `Source.read` needs to go on after this batch, as a JSON value; None if it cannot.
        raw: The text of a row by its line, for the quarantine; None where rows have no text of their own.
    """

    rows: pl.DataFrame
    bad: list[BadRow] = field(default_factory=list)
    blank: int = 0
    last_line: int = 0
    position: int = 0
    resume: Any = None
    raw: Callable[[int], str] | None = None


class Source:
    """One layout of raw data. A subclass says how to `read` a file, and, if files can be fetched, how.

    Attributes:
        name: What `ingest.source` calls it.
        summary: One line for `nextquill sources`.
        revision: Raised when the same files are read differently; artifacts of an earlier revision are then stale.
        absent: Canonical columns that the layout does not have, as `items.title`. Their values are null, and the
            protocol's rule that such a value must be there does not apply.
        ratings: The lowest and the highest rating there is; a row outside is suspect.
        dated: Whether timestamps are dates; otherwise they only order a user's reviews and are never suspect.
        batch_bytes: About how much text a batch holds.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    revision: ClassVar[int] = 1
    absent: frozenset[str] = frozenset()
    ratings: tuple[float, float] = (1.0, 5.0)
    dated: bool = True
    batch_bytes: int = BATCH_BYTES

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        """Take `ingest.options`.

        Raises:
            DataError: An option is unknown or does not fit.
        """
        if options:
            raise DataError(
                f"{self.name} takes no options, got {', '.join(options)}", "ingest.options", "leave them out"
            )

    def read(self, part: Part, path: Path, resume: Any = None) -> Iterator[Batch]:
        """Read a raw file, batch by batch, in bounded memory.

        What is not a row comes as a `BadRow`; nothing is left out in silence. The same file gives the same batches.

        Args:
            part: Whether the file holds reviews or items.
            path: The file.
            resume: `Batch.resume` of the last batch that is done with; None to begin at the beginning.

        Raises:
            DataError: The file as a whole cannot be read, or is not what its name says.
        """
        raise NotImplementedError

    def find(self, raw: RawInput, *, fetch: bool) -> RawFiles:
        """The raw files of a category; a path or glob that is not given is fetched by `fetched`.

        Raises:
            DataError: A file is missing or empty, a glob matches nothing, or fetching failed.
        """

        def files(part: Part, pattern: str | None) -> tuple[Path, ...]:
            if not pattern:
                return self.fetched(raw.category, part, fetch)
            return local_files(pattern, f"check ingest.inputs[].{part} of category {raw.category}")

        return RawFiles(raw.category, files("reviews", raw.reviews), files("items", raw.items))

    def fetched(self, category: str, part: Part, fetch: bool) -> tuple[Path, ...]:
        """Fetch a category's raw files and return the local copies; without `fetch`, only look for earlier copies.

        Raises:
            DataError: The source has no place to fetch from, or it failed.
        """
        raise DataError(f"no path to the {part}", category, f"set ingest.inputs[].{part}: {self.name} fetches nothing")


def local_files(pattern: str, remedy: str) -> tuple[Path, ...]:
    """The files that a path or glob names, sorted.

    Raises:
        DataError: There is none, or one of them is empty or cannot be read.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        raise DataError("is a folder", pattern, f"name the files, for example {pattern.rstrip('/')}/*.jsonl.gz")
    if path.exists():
        paths = [path]
    elif glob.has_magic(pattern):
        anchor = Path(path.anchor) if path.is_absolute() else Path()
        paths = sorted(match for match in anchor.glob(str(path.relative_to(anchor))) if match.is_file())
        if not paths:
            raise DataError("no file matches", pattern, remedy)
    else:
        raise DataError("no such file", pattern, remedy)
    for path in paths:
        try:
            empty = path.stat().st_size == 0
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", str(path), "check its permissions") from None
        if empty:
            raise DataError("the file is empty", str(path), "fetch it again, or leave it out")
    return tuple(paths)

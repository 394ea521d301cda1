"""What a source is: where the raw files of a category are, and how they become canonical rows.

Imports nothing heavy, because `nextquill status` and `nextquill sources` load it.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nextquill_core.config import RawInput
from nextquill_core.errors import DataError, UserError
from storage.download import is_remote

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


@dataclass(frozen=True, slots=True)
class BadRow:
    """Something in a raw file that is not a row.

    Attributes:
        line: Its place in the file, from 1: a line's number, or a record's where a row is no line.
        reason: Why it cannot be read, as a short name like `wrong-type-rating`.
        raw: The beginning of its text.
        detail: What is wrong, for a message: which column holds which value. Empty where `raw` says it.
        remedy: The setting that would accept it, or another way to fix it; empty where there is none.
    """

    line: int
    reason: str
    raw: str
    detail: str = ""
    remedy: str = ""


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
        ratings: The lowest and the highest rating there is; a row outside is suspect. A rating of 0 is a missing one
            where 0 is outside.
        zero_is_missing: Canonical columns in which 0 means that there is no value, as `items.rating_number`.
        dated: Whether timestamps are dates; otherwise they only order a user's reviews and are never suspect.
        items_in_reviews: Whether the items are read from the files of reviews where a category has no files of items.
        batch_bytes: About how much text a batch holds.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    revision: ClassVar[int] = 1
    absent: frozenset[str] = frozenset()
    ratings: tuple[float, float] = (1.0, 5.0)
    zero_is_missing: frozenset[str] = frozenset()
    dated: bool = True
    items_in_reviews: bool = False
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
        if self.items_in_reviews and not raw.items:
            raw = raw.model_copy(update={"items": raw.reviews})

        def files(part: Part, pattern: str | None) -> tuple[Path, ...]:
            if not pattern:
                return self.fetched(raw.category, part, fetch)
            if is_remote(pattern):
                return remote_files(pattern, fetch=fetch)
            return local_files(pattern, f"check ingest.inputs[].{part} of category {raw.category}")

        return RawFiles(raw.category, files("reviews", raw.reviews), files("items", raw.items))

    def fetched(self, category: str, part: Part, fetch: bool) -> tuple[Path, ...]:
        """Fetch a category's raw files and return the local copies; without `fetch`, only look for earlier copies.

        Raises:
            DataError: The source has no place to fetch from, or it failed.
        """
        raise DataError(f"no path to the {part}", category, f"set ingest.inputs[].{part}: {self.name} fetches nothing")


def remote_files(address: str, *, fetch: bool) -> tuple[Path, ...]:
    """Return local copies of the files that an address with a scheme names, such as s3:// or https://.

    Args:
        address: A file, or, where the server lists files, a folder or a glob.
        fetch: Whether to fetch what is missing or has changed; otherwise only earlier copies count.

    Raises:
        DataError: There is none, all of them are empty, or they cannot be fetched.
    """
    from storage import download

    try:
        paths = download.fetched(address, is_data) if fetch else download.known(address)
    except UserError as error:
        raise DataError(error.what, error.where, error.remedy) from None
    return _with_content(paths, address)


def local_files(pattern: str, remedy: str) -> tuple[Path, ...]:
    """Return the files that a path, a folder or a glob names, sorted.

    Of a folder these are all files below it. Files and folders whose names begin with `.` or `_` are passed over, as
    distributed writers leave them (`_SUCCESS`, `.part-0.csv.crc`), unless the pattern itself names them.

    Raises:
        DataError: There is none, all of them are empty, or one cannot be read.
    """
    path = Path(pattern.removeprefix("file://")).expanduser()
    if path.is_dir():
        path, pattern = path / "**" / "*", f"{pattern.rstrip('/')}/"
    elif path.exists():
        return _with_content([path], pattern)
    elif not glob.has_magic(pattern):
        raise DataError("no such file", pattern, remedy)
    anchor = Path(path.anchor) if path.is_absolute() else Path()
    wanted = path.relative_to(anchor)
    matches = [match for match in anchor.glob(str(wanted)) if match.is_file()]
    shown = [match for match in matches if is_data(match.relative_to(anchor).parts, wanted.parts)]
    if not shown:
        hidden = f" but {len(matches):,} whose names begin with . or _" if matches else ""
        raise DataError(f"no file matches{hidden}", pattern, remedy)
    return _with_content(sorted(shown), pattern)


def is_data(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a file that matches a glob is data, and no marker or hidden file of the program that wrote it.

    Args:
        names: The folders of the file's path and its name.
        pattern: The parts of the glob.
    """
    named = {part[:1] for part in pattern if glob.has_magic(part)} | {part for part in pattern if part}
    marks = (name for name in names if name.startswith(".") or (name.startswith("_") and "=" not in name))
    return all(name in named or name[:1] in named for name in marks)


def _with_content(paths: Sequence[Path], pattern: str) -> tuple[Path, ...]:
    """The files, if at least one of them has bytes."""
    sizes = []
    for path in paths:
        try:
            sizes.append(path.stat().st_size)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", str(path), "check its permissions") from None
    if not any(sizes):
        what = "the file is empty" if len(paths) == 1 else f"all {len(paths):,} files are empty"
        raise DataError(what, str(paths[0]) if len(paths) == 1 else pattern, "fetch it again, or leave it out")
    return tuple(paths)

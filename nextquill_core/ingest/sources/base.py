"""What a source is: it finds the raw files of a category, and converts them into canonical rows.

Imports nothing heavy, because `nextquill status` and `nextquill sources` load it.
"""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from nextquill_core.config.data import RawInput, SyntheticInput
from nextquill_core.errors import DataError, UserError
from nextquill_core.ingest.batches import BATCH_BYTES, Batch, Column, Part
from nextquill_core.records import TextKind
from storage.download import is_remote
from storage.files import user_path

SYNTHETIC_LAYOUT = "amazon-2023"
"""The source that reads what `nextquill_core.synthetic` writes."""


@dataclass(frozen=True)
class RawFiles:
    """The raw files of one category, in the order in which they are read."""

    category: str
    reviews: tuple[Path, ...]
    items: tuple[Path, ...]

    def of(self, part: Part) -> tuple[Path, ...]:
        """Return the files of one part."""
        return self.reviews if part == "reviews" else self.items


class Source:
    """One layout of raw data. A subclass implements `read`, and, if files can be downloaded, `fetched`.

    Attributes:
        name: What `ingest.source` calls it.
        summary: One line for `nextquill sources`.
        revision: Raised when the same files are read differently; artifacts of an earlier revision are then stale.
        absent: Canonical columns that the layout does not have, as `items.title`. Their values are null, and the
            protocol's rule that such a value must be there does not apply.
        ratings: Lowest and highest rating; a row outside is suspect. A rating of 0 is a missing one where 0 is outside.
        zero_is_missing: Canonical columns in which 0 means that there is no value, as `items.rating_number`.
        dated: Whether timestamps are dates; otherwise they only order a user's reviews and are never suspect.
        items_in_reviews: Whether the items are read from the files of reviews where a category has no files of items.
        writes: Kind of text that its reviews are, which decides the words of prompts (`prompts.WORDINGS`).
        publishes: Whether its rows are published examples; `read` then gives the columns `canonical.PUBLISHED` of
            reviews too, and `split_of` the split of a file.
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
    writes: TextKind = "review"
    publishes: ClassVar[bool] = False
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

        What is not a row is returned as a `BadRow`; nothing is left out silently. The same file gives the same batches.

        Args:
            part: Whether the file holds reviews or items.
            path: The file.
            resume: `Batch.resume` of the last batch that was processed; None to begin at the beginning.

        Raises:
            DataError: The file as a whole cannot be read, or is not what its name says.
        """
        raise NotImplementedError

    def split_of(self, path: Path) -> str | None:
        """Return the published split of a file's examples: train, val or test; None if its name does not show it.

        Only a source that `publishes` has it.
        """
        raise NotImplementedError

    def find(self, raw: RawInput, *, fetch: bool) -> RawFiles:
        """Return the raw files of a category; a path or glob that is not given is fetched by `fetched`.

        Raises:
            DataError: A file is missing or empty, a glob matches nothing, or fetching failed.
        """
        if raw.synthetic:
            return self._synthetic(raw.category, raw.synthetic, fetch)
        if self.items_in_reviews and not raw.items:
            raw = raw.model_copy(update={"items": raw.reviews})

        def files(part: Part, pattern: str | None) -> tuple[Path, ...]:
            if not pattern:
                return self.fetched(raw.category, part, fetch)
            if is_remote(pattern):
                return remote_files(pattern, fetch=fetch)
            return local_files(pattern, f"check ingest.inputs[].{part} of category {raw.category}")

        return RawFiles(raw.category, files("reviews", raw.reviews), files("items", raw.items))

    def _synthetic(self, category: str, wanted: SyntheticInput, fetch: bool) -> RawFiles:
        """Return the files of a synthetic category; write them if they are missing and may be fetched."""
        folder = Path(wanted.folder).expanduser()
        files = RawFiles(category, (folder / "reviews.jsonl",), (folder / "items.jsonl",))
        if self.name != SYNTHETIC_LAYOUT:
            where = f"category {category}"
            raise DataError(
                "a synthetic category has another layout", where, f"set ingest.source to {SYNTHETIC_LAYOUT}"
            )
        with user_path(folder, "set ingest.inputs[].synthetic.folder to a folder that you can write to"):
            if not all(path.is_file() for path in (*files.reviews, *files.items)):
                if not fetch:
                    raise DataError(
                        "the synthetic category is not written yet", str(folder), "run `nextquill ingest` first"
                    )
                from nextquill_core.synthetic.sample import write_sample

                write_sample(folder, wanted.users, wanted.seed, wanted.world)
        _require_same(folder, wanted)
        return files

    def fetched(self, category: str, part: Part, fetch: bool) -> tuple[Path, ...]:
        """Download a category's raw files and return the local copies.

        Args:
            category: The category's name.
            part: Reviews or items.
            fetch: Whether to download; otherwise only earlier copies count.

        Raises:
            DataError: The source has no place to download from, or the download failed.
        """
        raise DataError(f"no path to the {part}", category, f"set ingest.inputs[].{part}: {self.name} fetches nothing")


class JsonLines(Source):
    """A source of JSON lines, plain or gzip. A subclass only says which raw keys hold the canonical columns.

    Attributes:
        columns: Where raw rows hold the canonical columns; those that are left out have to be `absent`.
        literals: Whether lines may be Python literals instead of JSON.
    """

    columns: Mapping[Part, Mapping[str, Column]]
    literals: ClassVar[bool] = False

    def read(self, part: Part, path: Path, resume: Any = None) -> Iterator[Batch]:
        """Read a file in blocks of whole lines; a block that was processed is never read again.

        Args:
            part: Reviews or items.
            path: The file.
            resume: As in `Source.read`.
        """
        from nextquill_core.ingest.canonical import layout_fields
        from nextquill_core.ingest.formats.json_files import read_lines
        from nextquill_core.ingest.formats.json_parser import Parser

        parser = Parser(layout_fields(self.columns[part], part), part, literals=self.literals)
        yield from read_lines(path, parser, self.batch_bytes, resume)


def remote_files(address: str, *, fetch: bool) -> tuple[Path, ...]:
    """Return local copies of the files that an address with a scheme names, such as s3:// or https://.

    Args:
        address: A file, or, where the server lists files, a folder or a glob.
        fetch: Whether to download what is missing or has changed; otherwise only earlier copies count.

    Raises:
        DataError: There is none, all of them are empty, or they cannot be downloaded.
    """
    from storage import download

    try:
        paths = (
            download.fetch(address, is_data)
            if fetch
            else download.local_copies(address, "run `nextquill ingest` first")
        )
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
    anchor = Path(path.anchor) if path.is_absolute() else Path()
    try:
        is_folder, exists = path.is_dir(), path.exists()
        wanted = (path / "**" / "*" if is_folder else path).relative_to(anchor)
        matches = [] if exists and not is_folder else [one for one in anchor.glob(str(wanted)) if one.is_file()]
    except (OSError, ValueError) as error:  # a name that is too long, no permission, or a glob such as `**.jsonl`
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"cannot be looked up ({reason})", pattern, remedy) from None
    if is_folder:
        pattern = f"{pattern.rstrip('/')}/"
    elif exists:
        return _with_content([path], pattern)
    elif not glob.has_magic(pattern):
        raise DataError("no such file", pattern, remedy)
    data = [match for match in matches if is_data(match.relative_to(anchor).parts, wanted.parts)]
    if not data:
        hidden = f" but {len(matches):,} whose names begin with . or _" if matches else ""
        raise DataError(f"no file matches{hidden}", pattern, remedy)
    return _with_content(sorted(data), pattern)


def is_data(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a file that matches a glob is data, and not a marker or hidden file of the program that wrote it.

    Args:
        names: The folders of the file's path and its name.
        pattern: The parts of the glob.
    """
    named = {part[:1] for part in pattern if glob.has_magic(part)} | {part for part in pattern if part}
    marks = (name for name in names if name.startswith(".") or (name.startswith("_") and "=" not in name))
    return all(name in named or name[:1] in named for name in marks)


def _with_content(paths: Sequence[Path], pattern: str) -> tuple[Path, ...]:
    """Return the files, if all can be read, at least one has bytes, and tables can hold their names."""
    sizes = []
    for path in paths:
        try:
            str(path).encode()
            sizes.append(path.stat().st_size)
            if not os.access(path, os.R_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except UnicodeEncodeError:
            raise DataError("its name is not UTF-8", str(path), "rename it") from None
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", str(path), "check its permissions") from None
    if not any(sizes):
        what = "the file is empty" if len(paths) == 1 else f"all {len(paths):,} files are empty"
        raise DataError(what, str(paths[0]) if len(paths) == 1 else pattern, "fetch it again, or leave it out")
    return tuple(paths)


def _require_same(folder: Path, wanted: SyntheticInput) -> None:
    """Make sure that a synthetic category was written from these settings, where its folder says from which.

    Raises:
        DataError: It was written from others.
    """
    from nextquill_core.synthetic.truth import written_category

    written = written_category(folder)
    asked = {name: getattr(wanted, name) for name in ("users", "seed", "world")}
    if written is not None and asdict(written) != asked:
        was = ", ".join(f"{name} {value}" for name, value in asdict(written).items())
        raise DataError(
            f"the synthetic category in this folder was written with other settings ({was})",
            str(folder),
            "remove the folder, or name another one in ingest.inputs[].synthetic.folder",
        )

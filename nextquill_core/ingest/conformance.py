"""Check whether a source keeps its contract, on files of its user.

`nextquill sources --check` and the tests of a source's package run it; `docs/how-to/sources.md` holds the contract.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import polars as pl

from nextquill_core.config import IngestConfig, RawInput
from nextquill_core.errors import DataError, first_line
from nextquill_core.ingest.account import describe, first_by_reason, shorten
from nextquill_core.ingest.batches import PARTS, RAW_CHARS, BadRow, Batch, Part
from nextquill_core.ingest.canonical import CANONICAL, IDS, LINE, PUBLISHED
from nextquill_core.ingest.cohort import KEY
from nextquill_core.ingest.diagnosis import same_if, some_ids
from nextquill_core.ingest.formats.text_files import is_empty_file
from nextquill_core.ingest.selection import REQUIRE, SUSPECT, suspect_reason
from nextquill_core.ingest.sources import BUILT_IN
from nextquill_core.ingest.sources.base import RawFiles, Source

Level = Literal["error", "warning"]
ROWS = 100_000
PIECES = 5  # smaller batches into which the rows that were read are cut again
RESUMED = 8  # batches after which reading is resumed
REASON = re.compile(r"[a-z][A-Za-z0-9_.]*(-[A-Za-z0-9_.]+)*")
REASON_CHARS, REASONS = 60, 100
SHOWN = 3  # reasons of bad rows in a finding
# The setting that keeps rows in which a column is empty.
ACCEPTS = {column: f"set {KEY}.{key} to false" for column, key in REQUIRE.items()} | {
    "items.description": f"set {KEY}.min_description_chars to 0"
}


@dataclass(frozen=True)
class Finding:
    """A fault of a source.

    Attributes:
        level: error: the source breaks its contract, so ingesting fails or makes wrong artifacts; warning: it keeps the
            contract, but this is rarely meant.
        where: The file, or the source's name.
        what: The fault, and what to do about it, in a sentence.
    """

    level: Level
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.what}"


def check_source(source: Source, raw: RawInput, *, rows: int = ROWS) -> list[Finding]:
    """Check a source on a category's files: read them, twice, in smaller batches, and resumed between batches.

    Args:
        source: The source with its options.
        raw: The files. Those that the configuration names are fetched if they are remote; others have to be there.
        rows: About how many rows of each file are read; the batch that reaches them is the last one.

    Returns:
        The faults; empty where the source conforms.

    Raises:
        DataError: A file is missing.
    """
    if wrong := list(_wrong_types(source)):
        return wrong
    try:
        files: Any = source.find(raw, fetch=bool(raw.reviews) and (bool(raw.items) or source.items_in_reviews))
    except DataError:
        raise
    except Exception as error:  # whatever another package's code may raise
        return [Finding("error", source.name, f"`find` {_raises(error)}; raise DataError for what is missing")]
    if not isinstance(files, RawFiles):
        return [Finding("error", source.name, f"`find` returns {_short(files)}; return RawFiles")]
    found = [*_declared(source), *_missing_file(source, raw), *_unknown_option(source)]
    seen: dict[Part, list[_Reading]] = {}
    empty: dict[Part, list[Path]] = {}
    for part in PARTS:
        seen[part], empty[part] = [], []
        for path in files.of(part):
            check = _FileCheck(source, part, path, rows)
            check.run()
            found += check.found
            if check.reading is not None:
                seen[part].append(check.reading)
            elif check.empty:
                empty[part].append(path)
        if empty[part] and not seen[part]:
            found.append(Finding("error", str(empty[part][0]), "it gives no rows; choose another file"))
    tables = {part: pl.concat([reading.rows for reading in seen[part]]) for part in PARTS if seen[part]}
    whole = all(reading.complete for reading in seen["items"])
    return [*found, *_many_bad(seen, files), *_implausible(source, tables, files, whole)]


def assert_conforms(source: Source, raw: RawInput, *, rows: int = ROWS, warnings: bool = True) -> None:
    """Fail with all findings, one a line; for tests.

    Args:
        source: The source with its options.
        raw: The files of a category.
        rows: As in `check_source`.
        warnings: Whether warnings fail too.

    Raises:
        AssertionError: The source does not conform.
        DataError: A file is missing.
    """
    found = [finding for finding in check_source(source, raw, rows=rows) if warnings or finding.level == "error"]
    if found:
        raise AssertionError("\n".join(map(str, found)))


@dataclass
class _Reading:
    """Batches of a file from its beginning, or from where reading resumed."""

    batches: list[Batch] = field(default_factory=list)
    complete: bool = False

    @property
    def rows(self) -> pl.DataFrame:
        return pl.concat([batch.rows for batch in self.batches])

    def bad(self) -> list[tuple[int, str, str]]:
        return [(row.line, row.reason, row.raw) for row in self.bad_rows()]

    def bad_rows(self) -> list[BadRow]:
        return [row for batch in self.batches for row in batch.bad]


class _FaultError(Exception):
    """A fault that ends a check; the message says what to do about it."""


class _FileCheck:
    """The checks of one file.

    Attributes:
        found: The faults.
        reading: The batches that were read, None if none could be.
        empty: Whether the file holds no rows.
    """

    def __init__(self, source: Source, part: Part, path: Path, rows: int) -> None:
        self.source, self.part, self.path, self.limit = source, part, path, rows
        self.found: list[Finding] = []
        self.reading: _Reading | None = None
        self.empty = False

    def run(self) -> None:
        if is_empty_file(self.path):
            self.empty = True
            return None
        try:
            first = self._read(lambda reading: sum(batch.rows.height for batch in reading.batches) >= self.limit)
        except _FaultError as fault:
            return self._add("error", str(fault))
        rows = sum(batch.rows.height for batch in first.batches)
        if not rows and (bad := first.bad_rows()):
            return self._add("error", f"it gives no rows; all {len(bad):,} are bad: {_reasons(bad)}")
        if not rows:
            self.empty = True
            return None
        self.reading = first
        for check in (self._accounted, self._bounded, self._repeated, self._smaller):
            try:
                check(first)
            except _FaultError as fault:
                self._add("error", str(fault))
        return None

    def _add(self, level: Level, what: str) -> None:
        self.found.append(Finding(level, str(self.path), what))

    def _read(self, enough: Callable[[_Reading], bool], resume: Any = None) -> _Reading:
        """Read batches until there are enough, and check their columns and ids, which other checks rely on."""
        reading = _Reading()
        start = "" if resume is None else f" from resume {resume!r}"
        try:
            for batch in self.source.read(self.part, self.path, resume):
                self._check_form(batch)
                reading.batches.append(batch)
                if enough(reading):
                    return reading
        except _FaultError:
            raise
        except DataError as error:
            raise _FaultError(f"it cannot be read{start}: {error}") from None
        except Exception as error:  # whatever another package's code may raise
            raise _FaultError(
                f"reading{start} {_raises(error)}; give what is no row as a BadRow, and raise DataError where the file "
                "as a whole is of no use"
            ) from None
        reading.complete = True
        return reading

    def _check_form(self, batch: Batch) -> None:
        kinds = {"rows": pl.DataFrame, "bad": list | tuple, "blank": int, "last_line": int, "position": int}
        for name, kind in kinds.items():
            if not isinstance(value := getattr(batch, name, None), kind):
                raise _FaultError(f"`{name}` of a batch is {_short(value)}; give batches as `Batch` declares them")
        for row in batch.bad:
            if not isinstance(row, BadRow) or not isinstance(row.line, int) or not _has_texts(row):
                raise _FaultError(f"a bad row is {_short(row)}; give bad rows as `BadRow` declares them")
        published = PUBLISHED if self.source.publishes and self.part == "reviews" else {}
        wanted = {LINE: pl.Int64(), **CANONICAL[self.part], **published}
        schema = dict(batch.rows.schema)
        if list(schema.items()) != list(wanted.items()):
            wrong = [name for name in (*wanted, *schema) if schema.get(name) != wanted.get(name)]
            detail = ", ".join(
                f"{name} is {schema.get(name, 'not there')}, not {wanted.get(name, 'asked for')}"
                for name in dict.fromkeys(wrong)
            )
            raise _FaultError(
                f"the columns are not the canonical ones in their order ({detail or 'the order differs'}); end `read` "
                "with `canonical(rows, part)`"
            )
        for name in IDS[self.part]:
            empty = batch.rows.filter(pl.col(name).is_null() | (pl.col(name) == ""))
            if empty.height:
                raise _FaultError(f"{name} is null or empty at line {empty[LINE][0]}; give such a row as a BadRow")
        if batch.rows[LINE].null_count():
            raise _FaultError("`line` is null in places; number lines or records from 1")

    def _accounted(self, reading: _Reading) -> None:
        """Check lines, bad rows, positions and texts, batch by batch."""
        last, position, size = 0, 0, self.path.stat().st_size
        reasons: Counter[str] = Counter()
        for number, batch in enumerate(reading.batches):
            lines, bad = batch.rows[LINE].to_list(), [row.line for row in batch.bad]
            for what, own in (("`line`", lines), ("the line of bad rows", bad)):
                if any(one >= other for one, other in pairwise(own)):
                    raise _FaultError(
                        f"{what} does not rise from row to row in batch {number}; give rows in file order"
                    )
            both = sorted((*lines, *bad))
            if both and not (last < both[0] and both[-1] <= batch.last_line):
                raise _FaultError(
                    f"batch {number} has lines {both[0]} to {both[-1]}, but must lie after {last}, the last line of "
                    f"the batch before, and not after its own last_line {batch.last_line}"
                )
            if len(set(both)) < len(both):
                raise _FaultError(f"a line of batch {number} is both a row and a bad row; give it once")
            claimed, given = batch.last_line - last, len(both) + batch.blank
            header = 1 if number == 0 else 0  # a first line of column names is no row
            if not 0 <= claimed - given <= header:
                raise _FaultError(
                    f"batch {number} accounts for {claimed} lines by last_line, but gives {given} (rows, bad rows and "
                    "blank lines); leave nothing out silently, and number records where a row is no line"
                )
            if not position <= batch.position <= size:
                raise _FaultError(
                    f"position {batch.position} of batch {number} is below that of the batch before, or past the "
                    f"file's {size} bytes; give the bytes on disk that were read"
                )
            last, position = batch.last_line, batch.position
            reasons.update(row.reason for row in batch.bad)
            if (long := max((len(row.raw) for row in batch.bad), default=0)) > RAW_CHARS:
                self._add("error", f"a bad row's raw has {long} characters; cut it at {RAW_CHARS}")
            if batch.raw is not None and lines:
                try:
                    fault = "" if isinstance(batch.raw(lines[0]), str) else "is no text"
                except Exception as error:  # whatever another package's code may raise
                    fault = _raises(error)
                if fault:
                    self._add("error", f"raw({lines[0]}) {fault}; return the row's text, or leave `raw` out")
        odd = [reason for reason in reasons if not REASON.fullmatch(reason) or len(reason) > REASON_CHARS]
        if odd:
            raise _FaultError(
                f"{odd[0][:80]!r} is no name of a reason; use short words with hyphens like wrong-type-rating"
            )
        if len(reasons) > REASONS:
            raise _FaultError(f"there are {len(reasons)} different reasons for bad rows; leave values out of them")

    def _bounded(self, reading: _Reading) -> None:
        """Check that batches have about the size that was asked for."""
        allowed = 8 * self.source.batch_bytes + (16 << 20)
        largest = max(int(batch.rows.estimated_size()) for batch in reading.batches)
        if largest > allowed:
            raise _FaultError(
                f"a batch holds {largest:,} bytes where batch_bytes is {self.source.batch_bytes:,}; give a batch about "
                "every batch_bytes, so that memory stays bounded"
            )

    def _repeated(self, first: _Reading) -> None:
        """Check that the same file gives the same batches."""
        again = self._read(lambda reading: len(reading.batches) == len(first.batches))
        _compare(again, first.batches, "read twice", "it may depend on nothing but the file")

    def _smaller(self, first: _Reading) -> None:
        """Check that smaller batches give the same rows, and resume between them."""
        end = first.batches[-1].last_line
        text = sum(int(batch.rows.estimated_size()) for batch in first.batches)
        with _batch_bytes(self.source, max(64, min(self.source.batch_bytes, text) // PIECES)):
            small = self._read(lambda reading: not first.complete and reading.batches[-1].last_line >= end)
            self._accounted(small)
            if len(small.batches) == 1 and first.rows.height >= PIECES and not _is_built_in(self.source):
                self._add(
                    "warning",
                    f"batch_bytes = {self.source.batch_bytes:,} still gives one batch; unless the format has units "
                    "that cannot be split, give a batch about every batch_bytes, so that memory stays bounded",
                )
            upto = pl.col(LINE) <= end
            if not small.rows.filter(upto).equals(first.rows) or [b for b in small.bad() if b[0] <= end] != first.bad():
                raise _FaultError("smaller batches give other rows; rows may not depend on the batch they stand in")
            self._resumed(small)

    def _resumed(self, reading: _Reading) -> None:
        """Resume reading after some batches, as a scan does that was killed."""
        step = max(1, len(reading.batches) // RESUMED)
        places = {*range(0, len(reading.batches), step), len(reading.batches) - 1}
        for number in sorted(places):
            resume, rest = reading.batches[number].resume, reading.batches[number + 1 :]
            if resume is None or not (rest or reading.complete):
                continue
            try:
                resume = json.loads(json.dumps(resume))
            except (TypeError, ValueError) as error:
                what = f"resume of batch {number} is no JSON value ({error}); use numbers, texts and lists"
                raise _FaultError(what) from None
            wanted = None if reading.complete else len(rest)
            resumed = self._read(partial(_has_batches, wanted), resume)
            when = f"resumed after batch {number}"
            _compare(resumed, rest, when, "`resume` must say where the next batch begins")


def _has_batches(wanted: int | None, reading: _Reading) -> bool:
    return len(reading.batches) == wanted


def _compare(reading: _Reading, wanted: Sequence[Batch], when: str, remedy: str) -> None:
    """Check that a reading gives these batches."""
    ours = reading.batches
    if len(ours) != len(wanted):
        raise _FaultError(f"{when} it gives {len(ours)} batches instead of {len(wanted)}; {remedy}")
    for number, (one, other) in enumerate(zip(ours, wanted, strict=True)):
        names = ("bad", "blank", "last_line", "resume")
        wrong = [] if one.rows.schema == other.rows.schema and one.rows.equals(other.rows) else ["rows"]
        wrong += [name for name in names if _plain(getattr(one, name)) != _plain(getattr(other, name))]
        if wrong:
            raise _FaultError(f"{when} it gives other batches (first in {wrong[0]}, batch {number} of these); {remedy}")


def _wrong_types(source: Source) -> Iterator[Finding]:
    """Find attributes of types with which no file can be checked."""
    ratings = source.ratings
    is_pair = isinstance(ratings, list | tuple) and len(ratings) == 2
    wanted = {
        "absent": ("a set of columns, as `items.title`", isinstance(source.absent, Set)),
        "zero_is_missing": ("a set of columns, as `items.rating_number`", isinstance(source.zero_is_missing, Set)),
        "ratings": ("the lowest and the highest rating", is_pair and all(isinstance(n, int | float) for n in ratings)),
        "batch_bytes": ("a number of bytes", isinstance(source.batch_bytes, int)),
    }
    for name, (what, fits) in wanted.items():
        if not fits:
            yield Finding(
                "error", type(source).__name__, f"`{name}` is {_short(getattr(source, name))}; set it to {what}"
            )


def _has_texts(row: BadRow) -> bool:
    return all(isinstance(text, str) for text in (row.reason, row.raw, row.detail, row.remedy))


def _short(value: object) -> str:
    return shorten(repr(value))


def _raises(error: Exception) -> str:
    return f"raises {type(error).__name__}: {first_line(error)}"


def _declared(source: Source) -> Iterator[Finding]:
    """Check the attributes of the class."""
    kind = type(source)
    name, summary = getattr(kind, "name", None), getattr(kind, "summary", None)
    where = name if isinstance(name, str) and name else kind.__name__
    columns = {f"{part}.{column}" for part in PARTS for column in CANONICAL[part]}
    ids = {f"{part}.{column}" for part in PARTS for column in IDS[part]}
    lowest, highest = source.ratings
    faults = {
        "`name` is not set; set it to the entry point's name": not (isinstance(name, str) and name),
        "`summary` is not one line of text": not (isinstance(summary, str) and len(summary.splitlines()) == 1),
        "`revision` must be an integer from 1": not (isinstance(source.revision, int) and source.revision >= 1),
        "`absent` may only name canonical columns, as `items.title`": bool(source.absent - columns),
        "`absent` may not name ids; rows without one are BadRows": bool(source.absent & ids),
        "`zero_is_missing` may only name canonical columns": bool(source.zero_is_missing - columns),
        "`ratings` must be the lowest and the highest rating": not lowest < highest,
    }
    yield from (Finding("error", where, what) for what, broken in faults.items() if broken)


def _missing_file(source: Source, raw: RawInput) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        nowhere = {part: str(Path(folder, Path(getattr(raw, part) or "rows.jsonl").name or "rows")) for part in PARTS}
        what = _unless_refused(
            lambda: source.find(
                RawInput(category=raw.category, reviews=nowhere["reviews"], items=nowhere["items"]), fetch=False
            ),
            "raises nothing",
        )
    if what:
        what = f"`find` {what} where a file is missing; raise DataError, as `local_files` does"
        yield Finding("error", source.name, what)


def _unknown_option(source: Source) -> Iterator[Finding]:
    if what := _unless_refused(lambda: type(source)({"no-such-option": 1}), "is accepted"):
        what = f"an unknown option {what}; check options in __init__ with `checked`"
        yield Finding("error", source.name, what)


def _unless_refused(call: Callable[[], object], otherwise: str) -> str | None:
    """Return what a call does that has to raise DataError, `otherwise` if it raises nothing; None if it does."""
    try:
        call()
    except DataError:
        return None
    except Exception as error:  # whatever another package's code may raise
        return f"raises {type(error).__name__} instead of DataError"
    return otherwise


def _many_bad(seen: Mapping[Part, Sequence[_Reading]], files: RawFiles) -> Iterator[Finding]:
    allowed = IngestConfig.model_fields["max_bad_share"].default
    for part, readings in seen.items():
        rows = [row for reading in readings for row in reading.bad_rows()]
        read = len(rows) + sum(reading.rows.height for reading in readings)
        if len(rows) > allowed * read:
            what = (
                f"{len(rows):,} of {read:,} rows are bad, ingest.max_bad_share allows {allowed:.0%} by default: "
                f"{_reasons(rows)}"
            )
            yield Finding("warning", str(files.of(part)[0]), what)


def _reasons(rows: Sequence[BadRow]) -> str:
    """Return the commonest reasons of bad rows, each with its number and its first row."""
    first = first_by_reason(rows)
    common = Counter(row.reason for row in rows).most_common(SHOWN)
    shown = {why: "; ".join(filter(None, (describe(first[why]), first[why].remedy))) for why, _ in common}
    return "; ".join(f"{why} {n:,}× (line {first[why].line}: {shown[why]})" for why, n in common)


@contextmanager
def _batch_bytes(source: Source, size: int) -> Iterator[None]:
    before = source.batch_bytes
    source.batch_bytes = size
    try:
        yield
    finally:
        source.batch_bytes = before


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _implausible(
    source: Source, tables: Mapping[Part, pl.DataFrame], files: RawFiles, whole: bool
) -> Iterator[Finding]:
    """Find values that can hardly be true, or are rarely meant.

    Args:
        source: What read the rows.
        tables: The canonical rows of each part that has any.
        files: The files of the rows.
        whole: Whether `tables` holds all items.
    """
    empty = {part: [name for name in table.columns if _is_empty_column(table[name])] for part, table in tables.items()}
    for part, names in empty.items():
        for name in names:
            if f"{part}.{name}" not in source.absent:
                what = (
                    f"{name} is null or empty in all {tables[part].height:,} rows read; {_remedy(source, part, name)}"
                )
                yield Finding("warning", str(files.of(part)[0]), what)
        for name in tables[part].columns:
            if f"{part}.{name}" in source.absent and name not in names and not _is_built_in(source):
                what = f"{part}.{name} is in `absent` but has values; take it out, or the protocol does not ask for it"
                yield Finding("warning", str(files.of(part)[0]), what)
    if "reviews" in tables:
        yield from _suspect(source, tables["reviews"], str(files.reviews[0]))
    if len(tables) == 2 and not tables["reviews"].join(tables["items"], on="item_id", how="semi").height:
        ours, theirs = (tables[part]["item_id"].unique(maintain_order=True).to_list() for part in ("reviews", "items"))
        way = same_if(ours, theirs)
        what = (
            f"no review read is of an item in the items: the reviews have {some_ids(ours)}, the items have "
            f"{some_ids(theirs)}; "
            + (f"they are the same {way}: " if way else "")
            + "make both parts name items by the same id"
        )
        yield Finding("error" if whole else "warning", str(files.items[0]), what)


def _suspect(source: Source, reviews: pl.DataFrame, where: str) -> Iterator[Finding]:
    judged = reviews.with_columns(suspect_reason(source, int(time.time() * 1000))).drop_nulls(SUSPECT)
    remedies = {
        "timestamp-in-seconds": "give UTC milliseconds, or set `dated = False` where times only order reviews",
        "negative-timestamp": "give UTC milliseconds",
        "future-timestamp": "give UTC milliseconds",
        "rating-out-of-range": f"`ratings` says {source.ratings[0]} to {source.ratings[1]}",
    }
    if source.name == "table":
        remedies |= {
            "timestamp-in-seconds": "ingest.options.timestamp says what times are, such as s or ms",
            "rating-out-of-range": f"ingest.options.ratings says {source.ratings[0]} to {source.ratings[1]}",
        }
    for reason, n in sorted(Counter(judged[SUSPECT].to_list()).items()):
        level: Level = "error" if n == reviews.height else "warning"
        first = judged.filter(pl.col(SUSPECT) == reason).row(0, named=True)
        column = "rating" if reason == "rating-out-of-range" else "timestamp_ms"
        what = f"{n:,} of {reviews.height:,} reviews are suspect, {reason}; {remedies[reason]}"
        yield Finding(level, where, f"{what} (the first, line {first[LINE]}, has {column} {first[column]})")


def _is_built_in(source: Source) -> bool:
    """Return whether a source comes with NextQuill, so that its user cannot change the class."""
    return type(source) in BUILT_IN.values()


def _remedy(source: Source, part: Part, name: str) -> str:
    """Say what to do about a column that is empty in every row."""
    if not _is_built_in(source):
        return f"map it, or add {part}.{name} to `absent`"
    accepts = ACCEPTS.get(f"{part}.{name}", "no setting accepts such rows")
    if source.name == "table":
        return f"name another column in ingest.options, leave it out there, or {accepts}"
    return accepts


def _is_empty_column(column: pl.Series) -> bool:
    if column.dtype == pl.String:
        return not (column.fill_null("") != "").any()
    if column.dtype == pl.List:
        return not (column.list.len().fill_null(0) > 0).any()
    return column.null_count() == len(column)

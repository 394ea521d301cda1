"""Whether a source keeps its contract, tried out on files of its user.

`nextquill sources --check` and a package's own tests run it; `docs/how-to/sources.md` says what is promised.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl

from nextquill_core.config import IngestConfig, RawInput
from nextquill_core.errors import DataError
from nextquill_core.ingest.canonical import CANONICAL, IDS, LINE
from nextquill_core.ingest.empty import holds_nothing
from nextquill_core.ingest.findings import Finding, implausible, is_built_in
from nextquill_core.ingest.formats.fields import RAW_CHARS
from nextquill_core.ingest.sources.base import PARTS, BadRow, Batch, Part, RawFiles, Source
from nextquill_core.ingest.tally import described

__all__ = ["Finding", "assert_conforms", "check_source"]

ROWS = 100_000
PIECES = 5  # batches into which what was read is cut again
RESUMED = 8  # batches after which reading is taken up
REASON = re.compile(r"[a-z][A-Za-z0-9_.]*(-[A-Za-z0-9_.]+)*")
REASON_CHARS, REASONS = 60, 100
SHOWN = 3  # reasons of bad rows in a finding


def check_source(source: Source, raw: RawInput, *, rows: int = ROWS) -> list[Finding]:
    """Try a source out on a category's files: read them, again, in smaller batches, and on from between batches.

    Args:
        source: The source with its options.
        raw: The files. Those that the configuration names are fetched if they are remote; others have to be there.
        rows: About how many rows of each file are read; the batch that reaches them is the last one.

    Returns:
        What is not as promised; empty where the source conforms.

    Raises:
        DataError: A file is not there.
    """
    files = source.find(raw, fetch=bool(raw.reviews) and (bool(raw.items) or source.items_in_reviews))
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
    return [*found, *_many_bad(seen, files), *implausible(source, tables, files, whole)]


def assert_conforms(source: Source, raw: RawInput, *, rows: int = ROWS, warnings: bool = True) -> None:
    """For a test: fail with all findings, one a line.

    Args:
        source: The source with its options.
        raw: The files of a category.
        rows: As in `check_source`.
        warnings: Whether warnings fail too.

    Raises:
        AssertionError: The source does not conform.
        DataError: A file is not there.
    """
    found = [finding for finding in check_source(source, raw, rows=rows) if warnings or finding.level == "error"]
    if found:
        raise AssertionError("\n".join(map(str, found)))


@dataclass
class _Reading:
    """Batches of a file from its beginning, or from where reading was taken up."""

    batches: list[Batch] = field(default_factory=list)
    complete: bool = False

    @property
    def rows(self) -> pl.DataFrame:
        return pl.concat([batch.rows for batch in self.batches])

    def bad(self) -> list[tuple[int, str, str]]:
        return [(row.line, row.reason, row.raw) for row in self.bad_rows()]

    def bad_rows(self) -> list[BadRow]:
        return [row for batch in self.batches for row in batch.bad]


class _FileCheck:
    """All that is tried on one file.

    Attributes:
        found: What is not as promised.
        reading: What was read, None if nothing could be.
        empty: Whether there is nothing in the file to read, as in an empty part among others.
    """

    def __init__(self, source: Source, part: Part, path: Path, rows: int) -> None:
        self.source, self.part, self.path, self.limit = source, part, path, rows
        self.found: list[Finding] = []
        self.reading: _Reading | None = None
        self.empty = False

    def run(self) -> None:
        if holds_nothing(self.path):
            self.empty = True
            return
        first = self._read(lambda reading: sum(batch.rows.height for batch in reading.batches) >= self.limit)
        if first is None or not self._well_formed(first):  # what follows compares tables
            return
        if not first.rows.height:
            if bad := first.bad_rows():
                self._error(f"it gives no rows; all {len(bad):,} are bad: {_reasons(bad)}")
            else:
                self.empty = True
            return
        self.reading = first
        self._accounted(first)
        self._bounded(first)
        if (again := self._read(lambda reading: len(reading.batches) == len(first.batches))) is not None:
            self._same(again.batches, first.batches, "read twice", "it may depend on nothing but the file")
        self._smaller(first)

    def _read(self, enough: Callable[[_Reading], bool]) -> _Reading | None:
        reading = _Reading()
        try:
            for batch in self.source.read(self.part, self.path):
                reading.batches.append(batch)
                if enough(reading):
                    return reading
        except DataError as error:
            self._error(f"it cannot be read: {error}")
            return None
        except Exception as error:  # whatever another package's code may raise
            self._error(
                f"reading raises {type(error).__name__}: {_first_line(error)}; give what is no row as a BadRow, and "
                "raise DataError where the file as a whole is of no use"
            )
            return None
        reading.complete = True
        if not reading.batches:
            self.empty = True  # as of a header without rows
            return None
        return reading

    def _well_formed(self, reading: _Reading) -> bool:
        """Columns and ids; what else is asked of tables takes them for granted."""
        wanted = {LINE: pl.Int64(), **CANONICAL[self.part]}
        for batch in reading.batches:
            schema = dict(batch.rows.schema)
            if list(schema.items()) != list(wanted.items()):
                wrong = [name for name in (*wanted, *schema) if schema.get(name) != wanted.get(name)]
                detail = ", ".join(
                    f"{name} is {schema.get(name, 'not there')}, not {wanted.get(name, 'asked for')}"
                    for name in dict.fromkeys(wrong)
                )
                self._error(
                    f"the columns are not the canonical ones in their order ({detail or 'the order differs'}); end "
                    "`read` with `canonical(rows, part)`"
                )
                return False
            for name in IDS[self.part]:
                empty = batch.rows.filter(pl.col(name).is_null() | (pl.col(name) == ""))
                if empty.height:
                    line = empty[LINE][0]
                    return self._false(f"{name} is null or empty at line {line}; give such a row as a BadRow")
            if batch.rows[LINE].null_count():
                return self._false("`line` is null in places; number lines or records from 1")
        return True

    def _accounted(self, reading: _Reading) -> None:
        """Lines, bad rows, positions and texts, batch after batch."""
        last, position, size = 0, 0, self.path.stat().st_size
        reasons: Counter[str] = Counter()
        for number, batch in enumerate(reading.batches):
            lines, bad = batch.rows[LINE].to_list(), [row.line for row in batch.bad]
            for what, own in (("`line`", lines), ("the line of bad rows", bad)):
                if any(one >= other for one, other in pairwise(own)):
                    return self._error(
                        f"{what} does not rise from row to row in batch {number}; give rows in file order"
                    )
            both = sorted((*lines, *bad))
            if both and not (last < both[0] and both[-1] <= batch.last_line):
                return self._error(
                    f"batch {number} has lines {both[0]} to {both[-1]}, but must lie after {last}, the last line of "
                    f"the batch before, and not after its own last_line {batch.last_line}"
                )
            if len(set(both)) < len(both):
                return self._error(f"a line of batch {number} is both a row and a bad row; give it once")
            claimed, given = batch.last_line - last, len(both) + batch.blank
            header = 1 if number == 0 else 0  # a first line of column names is no row
            if not 0 <= claimed - given <= header:
                return self._error(
                    f"batch {number} accounts for {claimed} lines by last_line, but gives {given} (rows, bad rows and "
                    "blank lines); leave nothing out in silence, and number records where a row is no line"
                )
            if not position <= batch.position <= size:
                return self._error(
                    f"position {batch.position} of batch {number} is below that of the batch before, or past the "
                    f"file's {size} bytes; give the bytes on disk that were read"
                )
            last, position = batch.last_line, batch.position
            reasons.update(row.reason for row in batch.bad)
            if (long := max((len(row.raw) for row in batch.bad), default=0)) > RAW_CHARS:
                self._error(f"a bad row's raw has {long} characters; cut it at {RAW_CHARS}")
            if batch.raw is not None and lines and not isinstance(batch.raw(lines[0]), str):
                self._error(f"raw({lines[0]}) is no text; return the row's text, or leave `raw` out")
        for reason in reasons:
            if not REASON.fullmatch(reason) or len(reason) > REASON_CHARS:
                self._error(
                    f"{reason[:80]!r} is no name of a reason; use short words with hyphens like wrong-type-rating"
                )
                break
        if len(reasons) > REASONS:
            self._error(f"there are {len(reasons)} different reasons for bad rows; leave values out of their names")
        return None

    def _bounded(self, reading: _Reading) -> None:
        allowed = 8 * self.source.batch_bytes + (16 << 20)
        largest = max(int(batch.rows.estimated_size()) for batch in reading.batches)
        if largest > allowed:
            self._error(
                f"a batch holds {largest:,} bytes where batch_bytes is {self.source.batch_bytes:,}; give a batch about "
                "every batch_bytes, so that memory stays bounded"
            )

    def _smaller(self, first: _Reading) -> None:
        """The same rows in smaller batches, and on from between those."""
        end = first.batches[-1].last_line
        text = sum(int(batch.rows.estimated_size()) for batch in first.batches)
        with _batch_bytes(self.source, max(64, min(self.source.batch_bytes, text) // PIECES)):
            small = self._read(lambda reading: not first.complete and reading.batches[-1].last_line >= end)
            if small is None or not self._well_formed(small):
                return
            self._accounted(small)
            if len(small.batches) == 1 and first.rows.height >= PIECES and not is_built_in(self.source):
                self._warning(
                    f"batch_bytes = {self.source.batch_bytes:,} still gives one batch; unless the format has units of "
                    "its own, give a batch about every batch_bytes, so that memory stays bounded"
                )
            upto = pl.col(LINE) <= end
            if not small.rows.filter(upto).equals(first.rows) or [b for b in small.bad() if b[0] <= end] != first.bad():
                self._error("smaller batches give other rows; what a line is may not depend on the batch it stands in")
                return
            self._resumed(small)

    def _resumed(self, reading: _Reading) -> None:
        """Take reading up after some batches, as a scan does that was killed."""
        step = max(1, len(reading.batches) // RESUMED)
        places = {*range(0, len(reading.batches), step), len(reading.batches) - 1}
        for number in sorted(places):
            resume = reading.batches[number].resume
            if resume is None:
                continue
            try:
                resume = json.loads(json.dumps(resume))
            except (TypeError, ValueError) as error:
                return self._error(f"resume of batch {number} is no JSON value ({error}); use numbers, texts and lists")
            rest = reading.batches[number + 1 :]
            if not rest and not reading.complete:
                continue
            wanted = len(rest)
            on = self._resume(resume, None if reading.complete else wanted)
            if on is None or not self._same(
                on, rest, f"taken up after batch {number}", "`resume` must say where the next batch begins"
            ):
                return None
        return None

    def _resume(self, resume: Any, most: int | None) -> list[Batch] | None:
        batches: list[Batch] = []
        try:
            for batch in self.source.read(self.part, self.path, resume):
                batches.append(batch)
                if len(batches) == most:
                    break
        except Exception as error:  # whatever another package's code may raise
            self._error(f"reading on from resume {resume!r} raises {type(error).__name__}: {_first_line(error)}")
            return None
        return batches

    def _same(self, ours: Sequence[Batch], wanted: Sequence[Batch], when: str, remedy: str) -> bool:
        if len(ours) != len(wanted):
            return self._false(f"{when} it gives {len(ours)} batches instead of {len(wanted)}; {remedy}")
        for number, (one, other) in enumerate(zip(ours, wanted, strict=True)):
            names = ("bad", "blank", "last_line", "resume")
            wrong = [] if one.rows.schema == other.rows.schema and one.rows.equals(other.rows) else ["rows"]
            wrong += [name for name in names if _plain(getattr(one, name)) != _plain(getattr(other, name))]
            if wrong:
                return self._false(
                    f"{when} it gives other batches (first in {wrong[0]}, batch {number} of these); {remedy}"
                )
        return True

    def _false(self, what: str) -> bool:
        self._error(what)
        return False

    def _error(self, what: str) -> None:
        self.found.append(Finding("error", str(self.path), what))

    def _warning(self, what: str) -> None:
        self.found.append(Finding("warning", str(self.path), what))


def _declared(source: Source) -> Iterator[Finding]:
    """What the class says of itself."""
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
            lambda: source.find(RawInput(category=raw.category, **nowhere), fetch=False), "raises nothing"
        )
    if what:
        what = f"`find` {what} where a file is missing; raise DataError, as `local_files` does"
        yield Finding("error", source.name, what)


def _unknown_option(source: Source) -> Iterator[Finding]:
    if what := _unless_refused(lambda: type(source)({"no-such-option": 1}), "is accepted"):
        what = f"an unknown option {what}; check options in __init__ with `checked`"
        yield Finding("error", source.name, what)


def _unless_refused(call: Callable[[], object], otherwise: str) -> str | None:
    """What a call does that has to raise DataError, `otherwise` if it raises nothing; None where all is well."""
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
    """The commonest reasons of bad rows, each with its number and its first row."""
    first: dict[str, BadRow] = {}
    for row in rows:
        first.setdefault(row.reason, row)
    common = Counter(row.reason for row in rows).most_common(SHOWN)
    return "; ".join(f"{why} {n:,}× (line {first[why].line}: {_described(first[why])})" for why, n in common)


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


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _described(row: BadRow) -> str:
    return f"{described(row)}; {row.remedy}" if row.remedy else described(row)

"""Scan one category's raw files into Parquet: every row that can be read, whatever the protocol will make of it.

This is the expensive pass, and the only one that reads raw files, so it knows no threshold: a change of the protocol
never repeats it. Each batch becomes a part. A part is finished once its record is in the scratch folder, so a scan
that was killed resumes after it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
import xxhash

from nextquill_core.config import IngestConfig
from nextquill_core.errors import DataError
from nextquill_core.ingest.account import RowCounts, describe, first_by_reason, too_many_bad_rows
from nextquill_core.ingest.batches import PARTS, BadRow, Batch, Part
from nextquill_core.ingest.canonical import CANONICAL, PUBLISHED, review_facts
from nextquill_core.ingest.formats.text_files import is_empty_file
from nextquill_core.ingest.privacy import Privacy
from nextquill_core.ingest.selection import SUSPECT, quarantine_table, suspect_reason
from nextquill_core.ingest.sources.base import RawFiles, Source
from nextquill_core.progress import Progress
from storage.files import atomic_path, write_json
from storage.staging import Staging
from storage.stored_json import read_checked

UNREADABLE_ROWS = 10_000  # a file without one readable row among so many is not read to its end
TELLING_ROWS = 100_000  # from so many rows on, the share of bad rows in a file is known well enough to stop
LISTED = 1_000  # suspect rows of one reason that are listed a batch; all are counted
DIGEST_BYTES = 64 << 10  # small enough to stay in the processor's cache
WRITERS = 4  # most of them wait for the disk
HEADING = "Product Description"  # the first part of many descriptions


def scan_category(
    config: IngestConfig, source: Source, raw: RawFiles, privacy: Privacy, staging: Staging, progress: Progress
) -> dict[str, Any]:
    """Read a category's raw files into `reviews/`, `items/`, `bad/` and `suspect/`.

    Reviews: `row` (i64, numbers the lines of all files together), the canonical columns, `suspect` (str or null), and
    what the protocol decides by without looking at texts: `user`, `item` (u64, hashes of the ids) and the columns of
    `canonical.review_facts`. Of a source that publishes examples also `split`, `example` (numbered as `row`) and `own`.
    Items: `row`, `item` (u64), `item_id`, `title`, `description` (joined), `categories` (u32, how many) and
    `rating_number`.

    Args:
        config: `bad_rows: fail` stops at the first bad row, and too large a share of them stops early.
        source: How to read.
        raw: The files.
        privacy: What is hidden.
        staging: Where the tables go; an interrupted scan is resumed. The caller seals it.
        progress: Receives the number of bytes on disk that were read.

    Returns:
        The stats, as JSON values: the `RowCounts` of `reviews` and of `items`, under `empty_files` the names of the
        files of either part that hold no row, and `scanned_at`.

    Raises:
        DataError: A file cannot be used, too many of its rows are bad, or no file of a part holds a row.
    """
    begun = staging.scratch / "begun.json"
    if not begun.exists():
        write_json(begun, datetime.now(UTC).isoformat(timespec="seconds"))
    scanned_at = datetime.fromisoformat(read_checked(begun, str, "run the stage with --force"))
    meter = _Meter(progress, sum(path.stat().st_size for path in (*raw.items, *raw.reviews)), raw.category)
    stats: dict[str, Any] = {"scanned_at": scanned_at.isoformat(), "empty_files": {}}
    for part in reversed(PARTS):
        counts, last_row, empty = RowCounts(), 0, list[str]()
        namesakes = Counter(path.name for path in raw.of(part))
        for number, path in enumerate(raw.of(part)):
            name = path.name if namesakes[path.name] == 1 else str(path)
            file = _FileScan(config, source, privacy, staging, part, number, path, name, last_row, scanned_at)
            before, first_row = counts.read, last_row
            last_row = file.run(counts, meter)
            if counts.read == before:
                empty.append(name)
            else:
                counts.files.append((name, first_row))
        if not counts.read:
            raise _no_rows(raw.of(part))
        stats[part], stats["empty_files"][part] = counts.model_dump(mode="json"), empty
    progress(meter.total, meter.total, "done")
    return stats


def join_description(description: pl.Expr) -> pl.Expr:
    """Join the parts of an item's description (list of str) by blanks, without a leading "Product Description".

    Nulls in the list are left out.
    """
    parts = description.fill_null([])
    headed = parts.list.first().eq(HEADING).fill_null(False)
    return pl.when(headed).then(parts.list.slice(1)).otherwise(parts).list.join(" ").alias("description")


@dataclass
class _Meter:
    """Reports the progress over all files of a category.

    Attributes:
        before: Bytes of the files that are done.
    """

    progress: Progress
    total: int
    category: str
    before: int = 0

    def __call__(self, position: int, part: Part) -> None:
        self.progress(min(self.before + position, self.total), self.total, f"{self.category}: reading {part}")


@dataclass(frozen=True)
class _FileScan:
    """The scan of one file.

    Attributes:
        number: The file's place among those of its part.
        name: How tables and messages name the file.
        first_row: The `row` before its first.
    """

    config: IngestConfig
    source: Source
    privacy: Privacy
    staging: Staging
    part: Part
    number: int
    path: Path
    name: str
    first_row: int
    scanned_at: datetime

    def run(self, counts: RowCounts, meter: _Meter) -> int:
        """Scan the file, add its rows to `counts` and return the last `row`."""
        mine, done, resume, last_line = RowCounts(), 0, None, 0
        before, digest = self.path.stat(), _Digest(self.path)
        size = before.st_size
        if is_empty_file(self.path):
            digest.read_to(size)
            counts.digests.append(digest.hexadecimal)
            return self.first_row
        for record in self._finished():
            mine.add(record)
            done, resume, last_line = done + 1, record["resume"], record["last_line"]
        batches = self.source.read(self.part, self.path, resume)
        batches = batches if resume is not None else islice(batches, done, None)
        with ThreadPoolExecutor(WRITERS, thread_name_prefix="ingest-writer") as writers:
            writing: deque[Future[None]] = deque()
            for number, whole in enumerate(batches, done):
                batch, forgotten = self.privacy.apply(whole)
                table = self._table(batch.rows)
                suspects = self._suspects(table, batch)
                record = self._record(batch, table, suspects, forgotten)
                mine.add(record)
                last_line = batch.last_line
                self._stop_if_configured(batch.bad)
                self._stop_if_unreadable(mine, batch.position / size)
                if len(writing) == WRITERS:
                    writing.popleft().result()
                name = f"{self.number:04d}-{number:06d}"
                writing.append(writers.submit(self._write, name, table, batch.bad, suspects, record))
                meter(batch.position, self.part)
                digest.read_to(batch.position)
            for future in writing:
                future.result()
        self._stop_if_unreadable(mine, 1.0, at_end=True)
        digest.read_to(size)
        after = self.path.stat()
        if (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino):
            raise DataError("the file changed while it was read", str(self.path), "run the command again")
        meter.before += size
        counts.add(mine.model_dump(mode="json"))
        counts.digests.append(digest.hexadecimal)
        return self.first_row + last_line

    def _table(self, rows: pl.DataFrame) -> pl.DataFrame:
        row = (pl.col("line") + self.first_row).alias("row")
        if self.part == "items":
            return rows.select(
                row,
                pl.col("item_id").hash().alias("item"),
                "item_id",
                "title",
                join_description(pl.col("description")),
                pl.col("categories").list.len().fill_null(0),
                "rating_number",
            )
        now_ms = int(self.scanned_at.timestamp() * 1000)
        return rows.select(
            row,
            *CANONICAL["reviews"],
            *(name for name in PUBLISHED if name in rows.columns and name != "example"),
            *((pl.col("example") + self.first_row,) if "example" in rows.columns else ()),
            suspect_reason(self.source, now_ms),
            pl.col("user_id").hash().alias("user"),
            pl.col("item_id").hash().alias("item"),
            *review_facts(),
        )

    def _record(self, batch: Batch, table: pl.DataFrame, suspects: Sequence[BadRow], forgotten: int) -> dict[str, Any]:
        """Return the counts of a part and where reading resumes after it."""
        return {
            "read": table.height + len(batch.bad) + forgotten,
            "blank": batch.blank,
            "bad": dict(Counter(row.reason for row in batch.bad)),
            "suspect": dict(table[SUSPECT].drop_nulls().value_counts().iter_rows()) if SUSPECT in table else {},
            "forgotten": forgotten,
            "examples": {
                reason: f"{self.name}:{row.line}: {describe(row)}"
                for reason, row in first_by_reason([*batch.bad, *suspects]).items()
            },
            "remedies": {
                reason: row.remedy for reason, row in first_by_reason(row for row in batch.bad if row.remedy).items()
            },
            "resume": batch.resume,
            "last_line": batch.last_line,
        }

    def _write(
        self,
        name: str,
        table: pl.DataFrame,
        bad: Sequence[BadRow],
        suspects: Sequence[BadRow],
        record: Mapping[str, Any],
    ) -> None:
        self._write_table(f"{self.part}/{name}.parquet", table)
        for folder, rows in (("bad", bad), ("suspect", suspects)):
            if rows:
                listed = quarantine_table((self.name, row) for row in rows)
                self._write_table(f"{folder}/{self.part}-{name}.parquet", listed)
        write_json(self._record_path(name), record)

    def _write_table(self, name: str, table: pl.DataFrame) -> None:
        with atomic_path(self.staging.path(name)) as temporary:
            # compressed, texts would take a third less room, but the whole ingest a fifth more time
            table.write_parquet(temporary, compression="uncompressed", statistics=False)
        self.staging.finish(name, rows=table.height)

    def _suspects(self, table: pl.DataFrame, batch: Batch) -> list[BadRow]:
        if SUSPECT not in table:
            return []
        found = table.filter(pl.col(SUSPECT).is_not_null()).select("row", SUSPECT).group_by(SUSPECT).head(LISTED)
        raw = batch.raw or (lambda _: "")
        lines = ((row - self.first_row, reason) for reason, row in found.sort("row").iter_rows())
        return [BadRow(line, reason, raw(line)) for line, reason in lines]

    def _finished(self) -> Iterator[dict[str, Any]]:
        part = 0
        while (path := self._record_path(f"{self.number:04d}-{part:06d}")).exists():
            yield read_checked(path, dict[str, Any], "run the stage with --force")
            part += 1

    def _record_path(self, name: str) -> Path:
        return self.staging.scratch / self.part / f"{name}.json"

    def _stop_if_configured(self, bad: Sequence[BadRow]) -> None:
        if bad and self.config.bad_rows == "fail":
            raise DataError(
                f"{bad[0].reason}: {describe(bad[0])}",
                f"{self.path}, line {bad[0].line}",
                f"{bad[0].remedy or 'fix the line'}, or set ingest.bad_rows to quarantine",
            )

    def _stop_if_unreadable(self, mine: RowCounts, share_read: float, *, at_end: bool = False) -> None:
        """Stop where nothing in the file can be read, or where too much cannot and the rest will not change that."""
        bad = mine.bad.total()
        if mine.read and mine.read == bad and (at_end or mine.read >= UNREADABLE_ROWS):
            reason, example = next(each for each in mine.examples.items() if each[0] in mine.bad)
            raise DataError(
                f"none of {mine.read:,} rows can be read, the first is {reason} ({example})",
                str(self.path),
                mine.remedies.get(reason) or f"give a file as ingest.source {self.source.name} reads it",
            )
        # A source that does not say how far it has read leaves the share at 0; its files are judged at their end.
        if mine.read >= TELLING_ROWS and share_read and bad > self.config.max_bad_share * mine.read / share_read:
            raise too_many_bad_rows(mine, self.part, self.config.max_bad_share)


class _Digest:
    """Digests a file's bytes soon after the source has read them, when they are still in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done = 0
        self._state = xxhash.xxh3_128()

    def read_to(self, position: int) -> None:
        """Digest the bytes before `position`."""
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._done)
            while self._done < position and (piece := file.read(min(DIGEST_BYTES, position - self._done))):
                self._state.update(piece)
                self._done += len(piece)

    @property
    def hexadecimal(self) -> str:
        return self._state.hexdigest()


def _no_rows(paths: Sequence[Path]) -> DataError:
    if len(paths) == 1:
        return DataError("the file holds no rows", str(paths[0]), "fetch it again, or leave it out")
    return DataError(f"none of {len(paths):,} files holds a row", f"{paths[0]}, …", "fetch them again")

"""One category's raw files as Parquet: every row that can be read, whatever the protocol will think of it.

This is the expensive pass, and the only one that sees raw files, so it knows no threshold: a change of the protocol
never repeats it. A batch becomes a part; a part is finished once its record stands in the scratch folder, so a scan
that was killed goes on after it.
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
from nextquill_core.ingest.canonical import CANONICAL
from nextquill_core.ingest.clean import joined
from nextquill_core.ingest.empty import holds_nothing
from nextquill_core.ingest.privacy import Privacy
from nextquill_core.ingest.sources.base import BadRow, Batch, Part, RawFiles, Source
from nextquill_core.ingest.suspects import SUSPECT, suspect_reason
from nextquill_core.ingest.tally import Tally, described, listed, remedies, too_many_bad
from nextquill_core.progress import Progress
from storage.documents import read_checked
from storage.files import atomic_path, write_json
from storage.staging import Staging

HOPELESS_ROWS = 10_000  # a file without one readable row among so many is not read to its end
TELLING_ROWS = 100_000  # from so many rows on, the share of bad ones in a file is known well enough to stop
LISTED = 1_000  # suspect rows of one reason that are listed a batch; all are counted
DIGEST_BYTES = 64 << 10  # small enough to stay in the processor's cache
WRITERS = 4  # most of them wait for the disk
MIXER = pl.lit(0x9E3779B97F4A7C15, dtype=pl.UInt64)  # odd, and 2⁶⁴ over the golden ratio: it spreads every bit


def scan_category(
    config: IngestConfig, source: Source, raw: RawFiles, privacy: Privacy, staging: Staging, progress: Progress
) -> dict[str, Any]:
    """Read a category's raw files into `reviews/`, `items/`, `bad/` and `suspect/`.

    Reviews: `row` (i64, numbers the lines of all files together), the canonical columns, `suspect` (str or null), and
    what the protocol decides by without looking at texts: `user`, `item`, `text_hash`, `twin` (u64, hashes of the ids,
    of the raw text, and of the whole row), `chars` (u32, code points of the text) and `titled` (bool).
    Items: `row`, `item` (u64), `item_id`, `title`, `description` (joined), `categories` (u32, how many) and
    `rating_number`.

    Args:
        config: `bad_rows: fail` stops at the first bad row, and too large a share of them stops early.
        source: How to read.
        raw: The files.
        privacy: What is hidden.
        staging: Where the tables go; an interrupted scan is taken up. The caller seals it.
        progress: Told of the bytes on disk that were read.

    Returns:
        The stats, as JSON values: a `Tally` for `reviews` and one for `items`, under `empty_files` the names of the
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
    for part in ("items", "reviews"):
        tally, last_row, empty = Tally(), 0, list[str]()
        for number, path in enumerate(raw.of(part)):
            name = path.name if [file.name for file in raw.of(part)].count(path.name) == 1 else str(path)
            file = _File(config, source, privacy, staging, part, number, path, name, last_row, scanned_at)
            before, first_row = tally.read, last_row
            last_row = file.scan(tally, meter)
            if tally.read == before:
                empty.append(name)
            else:
                tally.files.append((name, first_row))
        if not tally.read:
            raise _no_rows(raw.of(part))
        stats[part], stats["empty_files"][part] = tally.to_json(), empty
    progress(meter.total, meter.total, "done")
    return stats


@dataclass
class _Meter:
    progress: Progress
    total: int
    category: str
    before: int = 0  # bytes of the files that are done

    def __call__(self, position: int, part: Part) -> None:
        self.progress(min(self.before + position, self.total), self.total, f"{self.category}: reading {part}")


@dataclass(frozen=True)
class _File:
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

    def scan(self, tally: Tally, meter: _Meter) -> int:
        """Scan the file and count it into `tally`; returns the last `row`."""
        mine, done, resume, last_line = Tally(), 0, None, 0
        if holds_nothing(self.path):
            tally.digests.append(_BytesRead(self.path).whole())
            return self.first_row
        for record in self._finished():
            mine.add(record)
            done, resume, last_line = done + 1, record["resume"], record["last_line"]
        batches = self.source.read(self.part, self.path, resume)
        batches = batches if resume is not None else islice(batches, done, None)
        before, bytes_read = self.path.stat(), _BytesRead(self.path)
        size = before.st_size
        with ThreadPoolExecutor(WRITERS, thread_name_prefix="ingest-writer") as writers:
            writing: deque[Future[None]] = deque()
            for number, whole in enumerate(batches, done):
                batch, forgotten = self.privacy.apply(whole)
                table = self._table(batch.rows)
                suspects = self._suspects(table, batch)
                record = self._record(batch, table, suspects, forgotten)
                mine.add(record)
                last_line = batch.last_line
                self._stop_if_asked_to(batch.bad)
                self._stop_if_hopeless(mine, batch.position / size)
                if len(writing) == WRITERS:
                    writing.popleft().result()
                name = f"{self.number:04d}-{number:06d}"
                writing.append(writers.submit(self._write, name, table, batch.bad, suspects, record))
                meter(batch.position, self.part)
                bytes_read.up_to(batch.position)
            for future in writing:
                future.result()
        self._stop_if_hopeless(mine, 1.0, at_end=True)
        bytes_read.up_to(size)
        after = self.path.stat()
        if (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino):
            raise DataError("the file changed while it was read", str(self.path), "run the command again")
        meter.before += size
        tally.add(mine.to_json())
        tally.digests.append(bytes_read.digest)
        return self.first_row + last_line

    def _table(self, rows: pl.DataFrame) -> pl.DataFrame:
        row = (pl.col("line") + self.first_row).alias("row")
        if self.part == "items":
            return rows.select(
                row,
                pl.col("item_id").hash().alias("item"),
                "item_id",
                "title",
                joined(pl.col("description")),
                pl.col("categories").list.len().fill_null(0),
                "rating_number",
            )
        now_ms = int(self.scanned_at.timestamp() * 1000)
        columns = tuple(CANONICAL["reviews"])
        return rows.select(
            row,
            *columns,
            suspect_reason(self.source, now_ms),
            pl.col("user_id").hash().alias("user"),
            pl.col("item_id").hash().alias("item"),
            pl.col("text").hash().alias("text_hash"),
            _mixed(columns).alias("twin"),
            pl.col("text").str.len_chars().fill_null(0).alias("chars"),
            (pl.col("title").fill_null("") != "").alias("titled"),
        )

    def _record(self, batch: Batch, table: pl.DataFrame, suspects: Sequence[BadRow], forgotten: int) -> dict[str, Any]:
        """What is known of a part once it is written."""
        return {
            "read": table.height + len(batch.bad) + forgotten,
            "blank": batch.blank,
            "bad": dict(Counter(row.reason for row in batch.bad)),
            "suspect": dict(table[SUSPECT].drop_nulls().value_counts().iter_rows()) if SUSPECT in table else {},
            "forgotten": forgotten,
            "examples": self._examples([*batch.bad, *suspects]),
            "remedies": remedies(batch.bad),
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
        self._write_listed(f"bad/{self.part}-{name}.parquet", bad)
        self._write_listed(f"suspect/{self.part}-{name}.parquet", suspects)
        write_json(self._record_path(name), record)

    def _write_listed(self, name: str, rows: Sequence[BadRow]) -> None:
        if rows:
            self._write_table(name, listed((self.name, row) for row in rows))

    def _write_table(self, name: str, table: pl.DataFrame) -> None:
        with atomic_path(self.staging.path(name)) as temporary:
            # packed, texts would take a third less room, but the whole ingest a fifth more time
            table.write_parquet(temporary, compression="uncompressed", statistics=False)
        self.staging.finish(name, rows=table.height)

    def _suspects(self, table: pl.DataFrame, batch: Batch) -> list[BadRow]:
        if SUSPECT not in table:
            return []
        found = table.filter(pl.col(SUSPECT).is_not_null()).select("row", SUSPECT).group_by(SUSPECT).head(LISTED)
        raw = batch.raw or (lambda _: "")
        lines = ((row - self.first_row, reason) for reason, row in found.sort("row").iter_rows())
        return [BadRow(line, reason, raw(line)) for line, reason in lines]

    def _examples(self, rows: Sequence[BadRow]) -> dict[str, str]:
        first: dict[str, str] = {}
        for row in rows:
            first.setdefault(row.reason, f"{self.name}:{row.line}: {described(row)}")
        return first

    def _finished(self) -> Iterator[dict[str, Any]]:
        part = 0
        while (path := self._record_path(f"{self.number:04d}-{part:06d}")).exists():
            yield read_checked(path, dict[str, Any], "run the stage with --force")
            part += 1

    def _record_path(self, name: str) -> Path:
        return self.staging.scratch / self.part / f"{name}.json"

    def _stop_if_asked_to(self, bad: Sequence[BadRow]) -> None:
        if bad and self.config.bad_rows == "fail":
            raise DataError(
                f"{bad[0].reason}: {described(bad[0])}",
                f"{self.path}, line {bad[0].line}",
                f"{bad[0].remedy or 'fix the line'}, or set ingest.bad_rows to quarantine",
            )

    def _stop_if_hopeless(self, mine: Tally, share_read: float, *, at_end: bool = False) -> None:
        """Stop where nothing in the file can be read, or where too much cannot and the rest will not change that."""
        bad = sum(mine.bad.values())
        if mine.read and mine.read == bad and (at_end or mine.read >= HOPELESS_ROWS):
            reason, example = next(each for each in mine.examples.items() if each[0] in mine.bad)
            raise DataError(
                f"none of {mine.read:,} rows can be read, the first is {reason} ({example})",
                str(self.path),
                mine.remedies.get(reason) or f"give a file as ingest.source {self.source.name} reads it",
            )
        if mine.read >= TELLING_ROWS and bad > self.config.max_bad_share * mine.read / share_read:
            raise too_many_bad(mine, self.part, self.config.max_bad_share)


class _BytesRead:
    """Digests a file's bytes soon after the source has read them, when they are still in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done = 0
        self._state = xxhash.xxh3_128()

    def up_to(self, position: int) -> None:
        """Take in what lies before `position`."""
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._done)
            while self._done < position and (piece := file.read(min(DIGEST_BYTES, position - self._done))):
                self._state.update(piece)
                self._done += len(piece)

    def whole(self) -> str:
        """The digest of all bytes of a small file."""
        self.up_to(self._path.stat().st_size)
        return self.digest

    @property
    def digest(self) -> str:
        return self._state.hexdigest()


def _no_rows(paths: Sequence[Path]) -> DataError:
    if len(paths) == 1:
        return DataError("the file holds no rows", str(paths[0]), "fetch it again, or leave it out")
    return DataError(f"none of {len(paths):,} files holds a row", f"{paths[0]}, …", "fetch them again")


def _mixed(columns: Sequence[str]) -> pl.Expr:
    """One hash (u64) of several columns; hashing them as a struct is ten times slower."""
    mixed = pl.lit(0, dtype=pl.UInt64)
    for column in columns:
        mixed = mixed * MIXER + pl.col(column).hash()
    return mixed

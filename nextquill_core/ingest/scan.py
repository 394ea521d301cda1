"""Raw files into Parquet parts of what single-row rules keep, with an account of every line.

One part a block. A part is finished once its record stands beside it, so a scan that was killed goes on with the next
block; what the parts hold together does not depend on where blocks end.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from nextquill_core.config import IngestConfig
from nextquill_core.errors import DataError
from nextquill_core.ingest.blocks import Block, read_blocks
from nextquill_core.ingest.parse import BadLine, Parsed, Parser
from nextquill_core.ingest.sources import Column
from storage.files import atomic_path, write_json

HOPELESS_ROWS = 10_000  # a file without one readable row among so many is not read to its end
UNREADABLE = ("not-json", "not-an-object", "invalid-utf8", "line-too-long")
QUARANTINE = {"file": pl.String, "line": pl.Int64, "reason": pl.String, "raw": pl.String}


@dataclass(frozen=True)
class Kept:
    """What the rules make of some rows: those to store, and how many went for which reason."""

    rows: pl.DataFrame
    dropped: Mapping[str, int]


Rules = Callable[[pl.DataFrame], Kept]


@dataclass
class Scan:
    """The outcome of scanning one category's reviews or items.

    Attributes:
        parts: Parquet files with the kept rows; `row` (i64) numbers the lines of all files together, in order.
        quarantine: Parquet files with the bad rows.
        read: Rows read: every line but the blank ones.
        dropped: Rows that went, by reason; bad ones under `bad:REASON`.
        examples: The first bad line of each reason, as `FILE:LINE: TEXT`.
    """

    parts: list[Path] = field(default_factory=list)
    quarantine: list[Path] = field(default_factory=list)
    read: int = 0
    blank: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a part's record in."""
        self.read += record["read"]
        self.blank += record["blank"]
        self.bad.update(record["bad"])
        self.dropped.update(record["dropped"])
        for reason, example in record["examples"].items():
            self.examples.setdefault(reason, example)

    def frame(self) -> pl.LazyFrame:
        """All kept rows, in file order."""
        return pl.scan_parquet(self.parts)


@dataclass(frozen=True)
class Scanner:
    """Scans files in blocks, part by part.

    Attributes:
        config: What happens to bad rows, and how many may be.
        folder: Where the parts go; what an earlier run of the same config left there is taken up.
        block_bytes: Size of a block; it does not show in the outcome.
    """

    config: IngestConfig
    folder: Path
    block_bytes: int

    def scan(
        self,
        what: Literal["reviews", "items"],
        files: Sequence[Path],
        columns: Mapping[str, Column],
        rules: Rules,
        advance: Callable[[int], None],
    ) -> Scan:
        """Scan the files of one kind.

        Args:
            what: Which kind they are.
            files: In the order in which their rows count.
            columns: Where raw rows hold the canonical columns.
            rules: Given the canonical columns and `row`, says which rows are stored, and what of them.
            advance: Called with the bytes on disk that have been read since the last call.

        Raises:
            DataError: A file cannot be read or holds no rows, or too many rows are bad.
        """
        total = Scan()
        parser = Parser(columns)
        first_row = 0
        for number, path in enumerate(files):
            label = path.name if [file.name for file in files].count(path.name) == 1 else str(path)
            one = _OneFile(self, path, label, self.folder / what / f"{number:04d}", first_row)
            first_row += one.scan(parser, rules, total, advance)
        share = sum(total.bad.values()) / total.read
        if share > self.config.max_bad_share:
            raise DataError(
                f"{sum(total.bad.values()):,} of {total.read:,} rows cannot be read ({share:.2%}, allowed are "
                f"{self.config.max_bad_share:.2%}): {_commonest(total)}",
                f"{what}, {files[0]}" + (f" and {len(files) - 1} more" if len(files) > 1 else ""),
                "mend the file, or raise ingest.max_bad_share",
            )
        return total


@dataclass(frozen=True)
class _OneFile:
    scanner: Scanner
    path: Path
    label: str
    folder: Path
    first_row: int

    def scan(self, parser: Parser, rules: Rules, total: Scan, advance: Callable[[int], None]) -> int:
        """Scan one file and count it into `total`; returns its number of lines."""
        self.folder.mkdir(parents=True, exist_ok=True)
        mine = Scan()
        part, end, line, read, whole = 0, 0, 1, 0, False
        for record in self._finished():
            mine.add(record)
            part, end, line, whole = part + 1, record["end"], record["next_line"], record["last"]
            advance(record["position"] - read)
            read = record["position"]
        if not whole:
            for block in read_blocks(self.path, block_bytes=self.scanner.block_bytes, start=end, first_line=line):
                record = self._write(part, block, parser.parse(block), rules)
                mine.add(record)
                part, line = part + 1, record["next_line"]
                self._stop_if_hopeless(mine, at_end=False)
                advance(block.position - read)
                read = block.position
        self._stop_if_hopeless(mine, at_end=True)
        total.add(
            {name: getattr(mine, name) for name in ("read", "blank", "bad", "dropped", "examples")},
        )
        total.parts += [self._part(number) for number in range(part)]
        total.quarantine += [path for number in range(part) if (path := self._bad(number)).exists()]
        return line - 1

    def _write(self, part: int, block: Block, parsed: Parsed, rules: Rules) -> dict[str, Any]:
        if parsed.bad and self.scanner.config.bad_rows == "fail":
            first = parsed.bad[0]
            raise DataError(
                f"{first.reason}: {_shown(first.raw)}",
                f"{self.path}, line {first.line}",
                "mend the line, or set ingest.bad_rows to quarantine",
            )
        kept = rules(parsed.rows.with_columns(row=pl.col("line") + self.first_row))
        if parsed.bad and self.scanner.config.bad_rows == "quarantine":
            columns = {
                "file": [self.label] * len(parsed.bad),
                "line": [bad.line for bad in parsed.bad],
                "reason": [bad.reason for bad in parsed.bad],
                "raw": [bad.raw for bad in parsed.bad],
            }
            with atomic_path(self._bad(part)) as temporary:
                pl.DataFrame(columns, schema=QUARANTINE).write_parquet(temporary)
        with atomic_path(self._part(part)) as temporary:
            kept.rows.write_parquet(temporary, compression="lz4")
        rows = parsed.rows.height + len(parsed.bad)
        record = {
            "read": rows,
            "blank": parsed.blank,
            "bad": Counter(bad.reason for bad in parsed.bad),
            "dropped": dict(kept.dropped),
            "examples": self._examples(parsed.bad),
            "end": block.end,
            "next_line": block.first_line + rows + parsed.blank,
            "position": block.position,
            "last": bool(block.fault and block.fault.endswith("gzip")),
        }
        write_json(self._record(part), record)
        return record

    def _examples(self, bad: Sequence[BadLine]) -> dict[str, str]:
        first: dict[str, str] = {}
        for line in bad:
            first.setdefault(line.reason, f"{self.label}:{line.line}: {_shown(line.raw)}")
        return first

    def _finished(self) -> Iterator[dict[str, Any]]:
        part = 0
        while self._record(part).exists():
            yield json.loads(self._record(part).read_text(encoding="utf-8"))
            part += 1

    def _stop_if_hopeless(self, so_far: Scan, *, at_end: bool) -> None:
        if at_end and not so_far.read:
            raise DataError("the file holds no rows", str(self.path), "fetch it again, or leave it out")
        unreadable = sum(so_far.bad[reason] for reason in UNREADABLE)
        if so_far.read == unreadable and (at_end or so_far.read >= HOPELESS_ROWS):
            reason, example = next(iter(so_far.examples.items()))
            raise DataError(
                f"is not JSON lines: none of {so_far.read:,} rows can be read, the first is {reason} ({example})",
                str(self.path),
                "give a file with one JSON object a line",
            )

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:06d}.parquet"

    def _bad(self, number: int) -> Path:
        return self.folder / f"{number:06d}.bad.parquet"

    def _record(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"


def scratch_for(folder: Path, key: Mapping[str, Any]) -> Path:
    """An emptied folder, unless it already holds the work that goes by the same key."""
    record = folder / "key.json"
    wanted = json.dumps(key, sort_keys=True)
    if not record.exists() or record.read_text(encoding="utf-8").strip() != json.dumps(wanted):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(record, wanted)
    return folder


def _commonest(scan: Scan) -> str:
    return "; ".join(f"{reason} {count:,}× ({scan.examples[reason]})" for reason, count in scan.bad.most_common(3))


def _shown(raw: str) -> str:
    return raw if len(raw) <= 80 else raw[:77] + "..."

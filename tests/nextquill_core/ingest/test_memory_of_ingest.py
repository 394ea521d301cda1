"""Blank lines and bad rows cost bounded memory, and nothing of them is lost for it."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from nextquill_core.ingest.formats import blocks
from nextquill_core.ingest.formats.blocks import read_blocks
from nextquill_core.ingest.sequences import write_quarantine
from nextquill_core.ingest.sources import source
from nextquill_core.ingest.tally import QUARANTINE

ROW = {"user_id": "u", "parent_asin": "i", "rating": 5.0, "title": "t", "text": "x" * 30, "timestamp": 1600000000000}
LINE = json.dumps(ROW).encode() + b"\n"

READING = """
import resource, sys
from pathlib import Path
from nextquill_core.ingest.sources import source
found = [0, 0, 0]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for batch in source("amazon-2023", {}).read("reviews", Path(sys.argv[1]), None):
    found = [a + b for a, b in zip(found, (batch.rows.height, len(batch.bad), batch.blank))]
print(*found, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def read_alone(path: Path) -> list[int]:
    """Rows, bad rows and blank lines of a file read in a process of its own, and the memory in MB that it took."""
    done = subprocess.run([sys.executable, "-c", READING, str(path)], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def test_blank_lines_cost_no_memory_of_their_own(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "r.jsonl.gz", "wb", compresslevel=1) as file:
        file.write(LINE + b"\n" * (48 << 20) + LINE)
    rows, bad, blank, megabytes = read_alone(tmp_path / "r.jsonl.gz")
    assert (rows, bad, blank) == (2, 0, 48 << 20)
    assert megabytes < 500  # 4,000 where a blank line costs 80 bytes


def test_short_bad_lines_come_in_small_batches(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(LINE + b"bad\n" * 1_000_000)
    rows, bad, blank, megabytes = read_alone(tmp_path / "r.jsonl")
    assert (rows, bad, blank) == (1, 1_000_000, 0)
    assert megabytes < 400


def lines_of(seed: int) -> bytes:
    choice = random.Random(seed)
    kinds = (LINE, b"\n", b"\n\n\n", b" \n", b"\r\n", b"bad\n", b"[1]\n", b'{"a": 1}\r\n', b"{\n", b'\xff"\n')
    text = b"".join(choice.choice(kinds) for _ in range(choice.randrange(60)))
    return text.removesuffix(b"\n") if choice.random() < 0.3 else text


@pytest.mark.parametrize("seed", range(60))
def test_every_line_has_its_number_wherever_blocks_are_cut(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the lines as Python splits them, and against reading that begins again at each place where it may."""
    path = tmp_path / "r.jsonl"
    path.write_bytes(lines_of(seed))
    lines = path.read_bytes().split(b"\n")
    lines = lines[:-1] if lines[-1] == b"" else lines
    blank = sum(not line.strip(b" \t\r\n") for line in lines)
    good = [number for number, line in enumerate(lines, 1) if line.strip() == LINE.strip()]
    monkeypatch.setattr(blocks, "MOST_ODD_LINES", 3)
    batches = list(source("amazon-2023", {}).read("reviews", path, None))
    assert sum(batch.blank for batch in batches) == blank
    assert [line for batch in batches for line in batch.rows["line"] if line in good] == good
    bad = {row.line: row.raw for batch in batches for row in batch.bad}
    rows = [line for batch in batches for line in batch.rows["line"]]
    assert len(bad) + len(rows) + blank == len(lines)
    for number, raw in bad.items():
        assert raw.rstrip("\r") == lines[number - 1].decode(errors="replace").rstrip("\r")
    for done, batch in enumerate(batches):
        again = list(source("amazon-2023", {}).read("reviews", path, batch.resume))
        assert [later.last_line for later in again] == [later.last_line for later in batches[done + 1 :]]
        assert [later.bad for later in again] == [later.bad for later in batches[done + 1 :]]


def test_blocks_of_objects_are_cut_by_size_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.jsonl").write_bytes(LINE * 500 + b"\n" * 500)
    expected = [(block.first_line, block.end) for block in read_blocks(tmp_path / "r.jsonl", block_bytes=1 << 14)]
    monkeypatch.setattr(blocks, "MOST_ODD_LINES", 3)
    assert [(b.first_line, b.end) for b in read_blocks(tmp_path / "r.jsonl", block_bytes=1 << 14)] == expected


class Kept:
    """A staging that keeps its tables in memory."""

    def __init__(self) -> None:
        self.tables: dict[str, pa.Table] = {}

    def has(self, name: str) -> bool:
        return name in self.tables

    def write_table(self, name: str, table: pa.Table) -> None:
        self.tables[name] = table


@pytest.mark.parametrize("sizes", [[0], [3], [10], [4, 0, 6], [7, 7, 7], [25, 1], [20]])
def test_the_quarantine_is_written_part_by_part(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextquill_core.ingest.sequences.ROWS_PER_SHARD", 10)
    numbers = iter(range(100))
    parts = [
        pl.DataFrame([("f", next(numbers), "bad", "x") for _ in range(size)], schema=QUARANTINE, orient="row")
        for size in sizes
    ]
    read: list[int] = []
    staging = Kept()

    def reading() -> object:
        for number, part in enumerate(parts):
            read.append(number)
            yield part
            if sum(sizes[: number + 1]) >= 10:
                assert staging.tables, "a full shard is written before the next part is read"

    write_quarantine(staging, 2, reading())  # type: ignore[arg-type]
    total = sum(sizes)
    heights = [10] * (total // 10) + ([total % 10] if total % 10 or not total else [])
    assert [table.num_rows for table in staging.tables.values()] == heights
    assert list(staging.tables) == [f"quarantine/002-{shard:05d}.parquet" for shard in range(len(heights))]
    assert [line for table in staging.tables.values() for line in table["line"].to_pylist()] == list(range(total))

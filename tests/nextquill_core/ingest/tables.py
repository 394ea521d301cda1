"""Small tables of reviews in every format, and the source `table` that reads them."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nextquill_core.ingest.batches import Batch, Part
from nextquill_core.ingest.sources import source

REVIEWS = {"user_id": "uid", "item_id": "bid", "rating": "stars", "title": "head", "text": "body", "timestamp": "date"}

ITEMS = {"item_id": "bid", "title": "name", "description": "about", "categories": "cats", "rating_number": "n"}

OPTIONS: dict[str, Any] = {"reviews": REVIEWS, "items": ITEMS}

NOON = 1530964800000  # 2018-07-07 12:00 UTC: 17,719 days and a half

ROW = {"uid": "u1", "bid": "i1", "stars": 4, "head": "h", "body": "good", "date": NOON}

CANONICAL = {"user_id": "u1", "item_id": "i1", "rating": 4.0, "title": "h", "text": "good", "timestamp_ms": NOON}

HEADER = b"uid,bid,stars,head,body,date\n"

FINE = b"u1,i1,4,h,good,1530964800000"


def batches(
    path: Path, part: Part = "reviews", options: dict[str, Any] | None = None, size: int | None = None
) -> list[Batch]:
    reader = source("table", OPTIONS | (options or {}))
    if size:
        reader.batch_bytes = size
    return list(reader.read(part, path))


def rows(found: Iterable[Batch]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "line"} for batch in found for row in batch.rows.to_dicts()]


def bad(found: Iterable[Batch]) -> list[tuple[int, str]]:
    return [(row.line, row.reason) for batch in found for row in batch.bad]


def as_csv(table: list[dict[str, Any]], **style: Any) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(table[0]), **style)
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue().encode()


def write_csv(folder: Path, data: bytes, name: str = "r.csv") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def write_lines(folder: Path, *found: Any) -> Path:
    path = folder / "r.jsonl"
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in found))
    return path


def write_parquet(folder: Path, columns: dict[str, Any], name: str = "r.parquet") -> Path:
    pq.write_table(pa.table(columns), folder / name)
    return folder / name


def accounted(found: list[Batch], count: int) -> None:
    """Rows, bad rows and blank ones are all there are, and their numbers rise."""
    last = 0
    for batch in found:
        numbers = sorted([*batch.rows["line"].to_list(), *(row.line for row in batch.bad)])
        assert numbers == sorted(set(numbers))
        assert all(last < number <= batch.last_line for number in numbers)
        last = batch.last_line
    assert sum(batch.rows.height + len(batch.bad) + batch.blank for batch in found) == count

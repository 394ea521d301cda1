"""Parts without rows among others, as Spark, Athena and Kafka writers leave them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nextquill_core.errors import DataError
from tests.nextquill_core.ingest.world import World, without_examples

HEADER = b"user,item,body,t\n"
OPTIONS = {
    "reviews": {"user_id": "user", "item_id": "item", "text": "body", "timestamp": "t"},
    "items": {"item_id": "item"},
}
ROWS = [("ann", f"i{n}", f"text {n}", n + 1) for n in range(4)] + [("bob", f"i{n}", f"b {n}", n + 1) for n in range(4)]


def csv(rows: list[Any]) -> bytes:
    return HEADER + b"".join(",".join(map(str, row)).encode() + b"\n" for row in rows)


def parquet(path: Path, rows: list[Any], kind: pa.DataType | None = None) -> None:
    columns = dict(zip(("user", "item", "body", "t"), zip(*rows, strict=True), strict=True)) if rows else {}
    empty = {name: pa.array([], kind or pa.null()) for name in ("user", "item", "body", "t")}
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()} or empty), path)


def run(world: World, reviews: str) -> dict[str, Any]:
    items = world.write("items.csv", b"item\n" + b"".join(f"i{n}\n".encode() for n in range(4)))
    return world.run(world.config(world.folder / reviews, items, source="table", options=OPTIONS))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("part-1.csv", b""),
        ("part-1.csv", HEADER),
        ("part-1.csv", b"\n"),
        ("part-1.csv", b"\xef\xbb\xbf"),
        ("part-1.csv.gz", gzip.compress(b"", mtime=0)),
        ("part-1.csv.gz", gzip.compress(HEADER, mtime=0)),
        ("part-1.jsonl", b""),
        ("part-1.jsonl", b"\n\n"),
    ],
)
def test_an_empty_part_is_passed_over_and_counted(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "part-0.csv").write_bytes(csv(ROWS[:4]))
    (tmp_path / name).write_bytes(content)
    (tmp_path / "part-2.csv").write_bytes(csv([*ROWS[4:], ("", "i0", "no user", 9)]))
    world = World(tmp_path)
    stats = run(world, "part-*")
    assert stats["users"] == 2
    assert stats["reviews"] == {"read": 9, "kept": 8, "dropped": {"missing-user": 1}}
    assert stats["per_category"]["C"]["reviews"]["empty_files"] == [name]
    assert stats["notes"] == [f"C: 1 files of reviews hold no row and are passed over ({name})"]
    assert [(row["file"], row["line"]) for row in world.table("quarantine")] == [("part-2.csv", 6)]


@pytest.mark.parametrize("kind", [pa.null(), pa.string(), pa.float64(), pa.bool_()])
def test_a_parquet_part_without_rows_may_have_any_types(tmp_path: Path, kind: pa.DataType) -> None:
    parquet(tmp_path / "part-0.parquet", [], kind)
    parquet(tmp_path / "part-1.parquet", ROWS)
    assert run(World(tmp_path), "part-*")["reviews"]["kept"] == 8


def test_the_same_rows_come_out_as_without_the_empty_parts(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir(), other.mkdir()
    for folder in (one, other):
        (folder / "part-1.csv").write_bytes(csv(ROWS))
    for name in ("part-0.csv", "part-2.csv"):
        (other / name).write_bytes(b"")
    assert without_examples(run(World(one), "part-*"))["reviews"] == run(World(other), "part-*")["reviews"]
    assert World(one).shards() == World(other).shards()


def test_where_no_part_has_a_row_the_run_stops(tmp_path: Path) -> None:
    (tmp_path / "part-0.csv").write_bytes(b"")
    (tmp_path / "part-1.csv").write_bytes(b"")
    with pytest.raises(DataError, match=r"part-\*: all 2 files are empty"):
        run(World(tmp_path), "part-*")
    (tmp_path / "part-1.csv").write_bytes(HEADER)
    with pytest.raises(DataError, match="none of 2 files holds a row"):
        run(World(tmp_path), "part-*")
    with pytest.raises(DataError, match=r"part-1\.csv: the file holds no rows; fetch it again, or leave it out"):
        run(World(tmp_path), "part-1.csv")
    with pytest.raises(DataError, match=r"part-0\.csv: the file is empty; fetch it again, or leave it out"):
        run(World(tmp_path), "part-0.csv")


def test_hive_folders_are_read(tmp_path: Path) -> None:
    for day, rows in (("dt=2024-01-01", ROWS[:4]), ("dt=2024-01-02", ROWS[4:])):
        (tmp_path / "r" / day).mkdir(parents=True)
        (tmp_path / "r" / day / "part-0.csv").write_bytes(csv(rows))
        (tmp_path / "r" / day / "part-1.csv").write_bytes(b"")
    (tmp_path / "r" / "_SUCCESS").touch()
    assert run(World(tmp_path), "r")["users"] == 2

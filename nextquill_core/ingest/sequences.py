"""The artifact's tables: user sequences, their items, the examples, and the rows that could not be read.

Users stand in the order of their ids, a fixed number of them to a shard. Texts wait in Parquet parts sorted by user,
so that a shard is gathered without holding the others in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa

from nextquill_core.ingest.clean import cleaned
from nextquill_core.ingest.cohort import TARGET
from nextquill_core.ingest.splits import SPLIT
from nextquill_core.schemas import EXAMPLES, ITEMS, QUARANTINE, REVIEW, SEQUENCES
from storage.files import atomic_path
from storage.staging import Staging

USERS_PER_SHARD = 1000
ROWS_PER_SHARD = 100_000  # of items and of quarantined rows
GATHER_PARTS = 16  # of a scan, whose texts are in memory at a time: 400 MB if everybody stays
ROW_GROUP = 20_000  # small enough that a shard skips most of what is not its own


def gather(parts: list[Path], chosen: pl.DataFrame, folder: Path) -> tuple[list[Path], pl.DataFrame]:
    """Take the chosen reviews out of the scan's parts, clean their texts, and sort them by user.

    Args:
        parts: The parts of the reviews' scan.
        chosen: `row` and `user` (the user's place among the sorted ids) of the reviews wanted.
        folder: Where the sorted reviews go.

    Returns:
        Parquet files with `row`, `user`, `title`, cleaned `text` and `rating`; and `row` with `text` (u64), the hash
        of the cleaned text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    hashes = [pl.DataFrame(schema={"row": pl.Int64, "text": pl.UInt64})]
    for batch in _batches(parts, chosen):
        texts = batch.with_columns(cleaned(pl.col("text"))).sort("user", "row")
        hashes.append(texts.select("row", pl.col("text").hash()))
        files.append(folder / f"{len(files):05d}.parquet")
        with atomic_path(files[-1]) as temporary:
            texts.write_parquet(temporary, compression="lz4", row_group_size=ROW_GROUP)
    return files, pl.concat(hashes)


def _batches(parts: list[Path], chosen: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The chosen reviews with their texts, in file order, `GATHER_PARTS` parts at a time."""
    chosen = chosen.sort("row")
    for start in range(0, len(parts), GATHER_PARTS):
        some = pl.scan_parquet(parts[start : start + GATHER_PARTS])
        mine = _between(chosen, "row", some.select("row").collect()["row"])
        if mine.height:
            texts = some.select("row", "rating", pl.col("title").fill_null(""), "text")
            yield texts.filter(pl.col("row").is_in(mine["row"].implode())).collect().join(mine, on="row")


def _between(rows: pl.DataFrame, column: str, values: pl.Series) -> pl.DataFrame:
    """The part of `rows`, which is sorted by `column`, that stands between the first and the last of `values`."""
    if values.is_empty():
        return rows.clear()
    first = rows[column].search_sorted(values[0], side="left")
    last = rows[column].search_sorted(values[-1], side="right")
    return rows.slice(first, last - first)


def write_sequences(
    staging: Staging, number: int, category: str, users: pl.DataFrame, rows: pl.DataFrame, texts: list[Path]
) -> Counter[str]:
    """Write a category's sequences and examples.

    Args:
        staging: The artifact.
        number: The category's place in the config.
        category: Its name.
        users: `user` (place among the sorted ids) and `user_id` of all users, sorted.
        rows: `row`, `user`, `item_id`, `time`, `target` and `split` of all reviews, sorted by user, oldest first.
        texts: What `gather` wrote.

    Returns:
        The number of examples by split.
    """
    splits: Counter[str] = Counter()
    for shard, start in enumerate(range(0, users.height, USERS_PER_SHARD)):
        some = users.slice(start, USERS_PER_SHARD)
        mine = _between(rows, "user", some["user"])
        names = [f"{table}/{number:03d}-{shard:05d}.parquet" for table in ("sequences", "examples")]
        examples = _examples(category, some["user_id"], mine)
        splits.update(examples["split"].to_pylist())
        if not all(staging.has(name) for name in names):
            between = pl.col("user").is_between(some["user"][0], some["user"][-1])
            found = pl.scan_parquet(texts).filter(between).drop("user").collect()
            whole = mine.join(found, on="row", how="left", maintain_order="left")
            staging.write_table(names[0], _sequences(category, some["user_id"], whole))
            staging.write_table(names[1], examples)
    return splits


def _sequences(category: str, user_ids: pl.Series, rows: pl.DataFrame) -> pa.Table:
    reviews = pa.StructArray.from_arrays(
        [
            rows["item_id"].to_arrow().cast(pa.string()),
            rows["rating"].to_arrow().cast(pa.float32()),
            rows["title"].to_arrow().cast(pa.string()),
            rows["text"].to_arrow().cast(pa.string()),
            rows["time"].to_arrow(),
        ],
        fields=list(REVIEW),
    )
    sizes = rows.group_by("user", maintain_order=True).len()["len"].cast(pl.Int32)
    offsets = pl.concat([pl.Series([0], dtype=pl.Int32), sizes.cum_sum().cast(pl.Int32)]).to_arrow()
    return pa.Table.from_arrays(
        [
            user_ids.to_arrow().cast(pa.string()),
            pl.repeat(category, len(user_ids), eager=True).to_arrow().cast(pa.string()),  # pa.repeat imports pandas
            pa.ListArray.from_arrays(offsets, reviews),
        ],
        schema=SEQUENCES,
    )


def _examples(category: str, user_ids: pl.Series, rows: pl.DataFrame) -> pa.Table:
    """One example a target; its history is all that the user wrote before."""
    named = pl.DataFrame({"user": rows["user"].unique(maintain_order=True), "user_id": user_ids})
    place = pl.int_range(pl.len(), dtype=pl.Int32).over("user").alias("target")
    targets = rows.select("user", SPLIT, place, wanted=TARGET).filter("wanted").join(named, on="user", how="left")
    examples = targets.select(
        pl.concat_str(pl.lit(f"{category}:"), "user_id", pl.lit(":"), "target").alias("example_id"),
        "user_id",
        pl.lit(category).alias("category"),
        SPLIT,
        "target",
        pl.int_ranges(0, "target", dtype=pl.Int32).alias("history"),
    )
    return examples.to_arrow().cast(EXAMPLES)


def write_items(staging: Staging, number: int, category: str, items: pl.DataFrame) -> None:
    """Write a category's items (item_id, title, description; sorted)."""
    table = items.select("item_id", pl.lit(category).alias("category"), "title", "description").to_arrow().cast(ITEMS)
    _write_shards(staging, f"items/{number:03d}", table)


def write_quarantine(staging: Staging, number: int, listed: Iterable[pl.DataFrame]) -> None:
    """Write a category's bad, suspect and repeated rows; an empty table where there are none.

    Args:
        staging: Where to.
        number: The category's.
        listed: At least one table; each is read when its turn comes, so that few are in memory together.
    """
    held: list[pl.DataFrame] = []
    rows, shard = 0, 0

    def write(count: int) -> None:
        nonlocal held, rows, shard
        whole = pl.concat(held)
        name = f"quarantine/{number:03d}-{shard:05d}.parquet"
        if not staging.has(name):
            staging.write_table(name, whole.head(count).to_arrow().cast(QUARANTINE))
        held, rows, shard = [whole.slice(count)], rows - count, shard + 1

    for table in listed:
        held.append(table)
        rows += table.height
        while rows >= ROWS_PER_SHARD:
            write(ROWS_PER_SHARD)
    if rows or not shard:
        write(rows)


def _write_shards(staging: Staging, prefix: str, table: pa.Table) -> None:
    for shard, start in enumerate(range(0, max(table.num_rows, 1), ROWS_PER_SHARD)):
        name = f"{prefix}-{shard:05d}.parquet"
        if not staging.has(name):
            staging.write_table(name, table.slice(start, ROWS_PER_SHARD))

"""Time to find one user's newest reviews with their items, against Polars with a filter on the same files.

    python -m benchmarks.lookup --users 100000 10000000

For each number of users, sequences and items are written as ingest writes them, 1,000 users to a file and 25 to a row
group, in a temporary folder. One row group of every twentieth file has users with 18 to 80 reviews of 200 to 12,000
characters; those are looked up. All other users have one short review each, so that ten million users fit on a disk;
they make the search among files as long as it is.
One line of JSON holds, over distinct users, the median and 95th percentile of the milliseconds for a lookup of eight
reviews with items, the first lookup of a process, and the ratio to Polars; `cpu` is processor time, which a busy
machine changes less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks.raw import LONGEST, _pool
from nextquill_core.ingest.sequences import ITEMS_PER_GROUP, ROWS_PER_SHARD, USERS_PER_GROUP, USERS_PER_SHARD
from nextquill_core.schemas import ITEMS, SEQUENCES
from nextquill_core.writing.histories import Histories
from storage.tables import write_table

EVERY = 20
ITEM_COUNT = 200_000
SHOWN = 8


def write_artifact(folder: Path, users: int, seed: int = 0) -> list[str]:
    """Write the tables of an ingest artifact, and return the users with long histories.

    Args:
        folder: The folder.
        users: Number of users.
        seed: Seed of all random draws.
    """
    rng = np.random.default_rng(seed)
    pool = _pool(rng)

    def cut(length: int) -> str:
        start = int(rng.integers(0, len(pool) - LONGEST))
        return pool[start : start + length]

    def review(chars: int) -> dict[str, Any]:
        item = f"B{int(rng.integers(0, ITEM_COUNT)):09d}"
        return {"item_id": item, "rating": 4.0, "title": cut(24), "text": cut(chars), "timestamp_ms": 1}

    def reviews() -> list[dict[str, Any]]:
        lengths = np.clip(rng.lognormal(6.2, 0.8, int(rng.integers(18, 81))), 200, LONGEST)
        return [review(int(length)) for length in lengths]

    (folder / "sequences").mkdir(parents=True)
    (folder / "items").mkdir()
    short, long = [review(20)], list[str]()
    for number in range(-(-users // USERS_PER_SHARD)):
        ids = [f"AE{user:026d}" for user in range(number * USERS_PER_SHARD, min(users, (number + 1) * USERS_PER_SHARD))]
        begin = int(rng.integers(0, len(ids) // USERS_PER_GROUP)) * USERS_PER_GROUP
        chosen = range(begin, begin + USERS_PER_GROUP) if number % EVERY == 0 else range(0)
        rows = {
            "user_id": ids,
            "category": ["Books"] * len(ids),
            "reviews": [reviews() if place in chosen else short for place in range(len(ids))],
        }
        table = pa.table(rows, schema=SEQUENCES)
        write_table(folder / "sequences" / f"000-{number:05d}.parquet", table, USERS_PER_GROUP)
        long += [ids[place] for place in chosen]
    for number, start in enumerate(range(0, ITEM_COUNT, ROWS_PER_SHARD)):
        ids = [f"B{item:09d}" for item in range(start, min(ITEM_COUNT, start + ROWS_PER_SHARD))]
        texts = [cut(int(length)) for length in np.clip(rng.lognormal(6, 0.8, len(ids)), 100, 2000)]
        columns = {"item_id": ids, "category": ["Books"] * len(ids), "title": ids, "description": texts}
        table = pa.table(columns, schema=ITEMS)
        write_table(folder / "items" / f"000-{number:05d}.parquet", table, ITEMS_PER_GROUP)
    return long


def ours(folder: Path) -> Callable[[str], int]:
    """Return a function that looks a user up and returns the number of characters of the newest reviews."""
    histories = Histories(folder)

    def look_up(user: str) -> int:
        (sequence,) = histories.sequences([user])
        return sum(len(review.text) for review in histories.reviews(sequence, len(sequence.reviews), SHOWN))

    return look_up


def polars(folder: Path) -> Callable[[str], int]:
    """Return a function that does the same by a filter on all files."""

    def look_up(user: str) -> int:
        found = pl.scan_parquet(folder / "sequences" / "*.parquet").filter(pl.col("user_id") == user).collect()
        newest = found["reviews"][0].to_list()[-SHOWN:]
        ids = [review["item_id"] for review in newest]
        items = pl.scan_parquet(folder / "items" / "*.parquet").filter(pl.col("item_id").is_in(ids)).collect()
        assert items.height == len(set(ids))
        return sum(len(review["text"]) for review in newest)

    return look_up


def compare(users: int, lookups: int, folder: Path) -> dict[str, float]:
    """Time both sides on distinct users, by turns.

    Args:
        users: Number of users.
        lookups: Number of lookups of ours; Polars makes a tenth as many.
        folder: Folder for all files.
    """
    long = write_artifact(folder, users)
    chosen = np.random.default_rng(1).permutation(long)[:lookups].tolist()
    begun = time.perf_counter()
    side = ours(folder)
    side(chosen[0])
    first = time.perf_counter() - begun
    reference = polars(folder)
    wall: dict[str, list[float]] = {"ours": [], "polars": []}
    cpu: dict[str, list[float]] = {"ours": [], "polars": []}

    def timed(name: str, look_up: Callable[[str], int], user: str) -> int:
        begun, worked = time.perf_counter(), time.process_time()
        found = look_up(user)
        wall[name].append(1e3 * (time.perf_counter() - begun))
        cpu[name].append(1e3 * (time.process_time() - worked))
        return found

    for number, user in enumerate(chosen):
        found = timed("ours", side, user)
        if number % 10 == 0:
            assert timed("polars", reference, user) == found
    middle = {name: statistics.median(values) for name, values in wall.items()}
    middle_cpu = {name: statistics.median(values) for name, values in cpu.items()}
    return {
        "users": users,
        "ours_ms": round(middle["ours"], 2),
        "ours_p95_ms": round(sorted(wall["ours"])[int(0.95 * len(wall["ours"]))], 2),
        "ours_cpu_ms": round(middle_cpu["ours"], 2),
        "first_ms": round(1e3 * first, 2),
        "polars_ms": round(middle["polars"], 1),
        "ratio": round(middle["ours"] / middle["polars"], 4),
        "ratio_cpu": round(middle_cpu["ours"] / middle_cpu["polars"], 4),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[100_000])
    parser.add_argument("--lookups", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="folder for all files, 0.2 kB per user")
    arguments = parser.parse_args()
    for users in arguments.users:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            print(json.dumps(compare(users, arguments.lookups, Path(folder, "artifact"))), flush=True)


if __name__ == "__main__":
    main()

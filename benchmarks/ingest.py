"""Speed of the ingest stage against the time that Polars alone needs to read, filter, join and write the same files.

    python -m benchmarks.ingest --rows 1000000 3000000

For each size, synthetic reviews are generated, both sides run in turns, each in a separate process, and one line of
JSON holds the medians: seconds, their ratio, seconds per million rows, and peak resident memory. With `--gzip` the
reviews are compressed, and the reference only decompresses them.

Ingest does more than the reference: it digests the raw files, checks every line, accounts for every row, selects the
users and writes their sequences. The reference keeps the rows that pass the thresholds for single rows.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from benchmarks.raw import RawCategory, write_category

KEYS = ("user_id", "parent_asin", "title", "text")


def ingest(reviews: Path, items: Path, out: Path) -> None:
    """Scan and ingest, as the stage does.

    Args:
        reviews: The review file.
        items: The item file.
        out: Folder of the store.
    """
    from nextquill_core.config import parse_config
    from nextquill_core.pipeline.run import Run

    inputs = [{"category": "Books", "reviews": str(reviews), "items": str(items)}]
    settings = {"store": str(out), "ingest": {"inputs": inputs}, "model": {"name_or_path": "tiny"}}
    run = Run(parse_config(settings, "the benchmark"))
    run.make(run.plan.scans["Books"])
    run.make(run.plan.ingest)


def polars(reviews: Path, items: Path, out: Path) -> None:
    """Read, filter, join and write with Polars' streaming engine.

    Args:
        reviews: The review file.
        items: The item file.
        out: Folder for the result.
    """
    import polars as pl

    chars = pl.col("description").list.join(" ").str.len_chars()
    strings = pl.List(pl.String)
    kept = pl.scan_ndjson(
        items, schema={"parent_asin": pl.String, "title": pl.String, "description": strings, "categories": strings}
    ).filter(chars.is_between(100, 2000))
    schema = dict.fromkeys(KEYS, pl.String) | {"rating": pl.Float64, "timestamp": pl.Int64}
    out.mkdir(parents=True)
    (
        pl.scan_ndjson(reviews, schema=schema)
        .filter(pl.col("text").str.len_chars() >= 200)
        .join(kept.select("parent_asin"), on="parent_asin", how="semi")
        .sink_parquet(out / "reviews.parquet")
    )


def inflate(reviews: Path, _items: Path, _out: Path) -> None:
    """Decompress the reviews and discard them."""
    inflater = zlib.decompressobj(wbits=31)
    with reviews.open("rb") as file:
        while packed := file.read(1 << 20):
            inflater.decompress(packed)


SIDES: dict[str, Callable[[Path, Path, Path], None]] = {"ingest": ingest, "polars": polars, "inflate": inflate}


def measured(side: str, files: RawCategory, scratch: Path) -> tuple[float, float]:
    """Run one side in a separate process; return its seconds without imports, and its peak memory in GB.

    Args:
        side: One of `SIDES`.
        files: The raw files.
        scratch: Folder for the result; it is removed.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    os.sync()  # otherwise this run would pay for writing back what the last one wrote
    command = [sys.executable, "-m", "benchmarks.ingest", "--side", side]
    done = subprocess.run(
        [*command, str(files.reviews), str(files.items), str(scratch)], check=True, capture_output=True, text=True
    )
    shutil.rmtree(scratch, ignore_errors=True)
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def compare(rows: int, rounds: int, folder: Path, *, compressed: bool) -> dict[str, float]:
    """Run both sides in turns on synthetic reviews, and return the medians.

    Args:
        rows: Number of reviews.
        rounds: Number of runs of each side.
        folder: Folder for all files.
        compressed: Whether to compress the reviews.
    """
    files = write_category(folder / "raw", rows)
    size = files.reviews.stat().st_size
    if compressed:
        packed = files.reviews.with_name("reviews.jsonl.gz")
        with files.reviews.open("rb") as plain, gzip.open(packed, "wb", compresslevel=5) as target:
            shutil.copyfileobj(plain, target, 1 << 20)
        files.reviews.unlink()
        files = RawCategory(packed, files.items)
    reference = "inflate" if compressed else "polars"
    taken: dict[str, list[tuple[float, float]]] = {"ingest": [], reference: []}
    for _ in range(rounds):
        for side, runs in taken.items():
            runs.append(measured(side, files, folder / "out"))
    shutil.rmtree(folder / "raw")
    ours, theirs = (statistics.median(seconds for seconds, _ in taken[side]) for side in ("ingest", reference))
    ratios = [one[0] / other[0] for one, other in zip(taken["ingest"], taken[reference], strict=True)]
    return {
        "rows": rows,
        "raw_gb": round(size / 1e9, 2),
        "ingest_s": round(ours, 2),
        f"{reference}_s": round(theirs, 2),
        "ratio": round(statistics.median(ratios), 3),
        "ingest_s_per_million_rows": round(ours / rows * 1e6, 2),
        "ingest_peak_gb": round(max(peak for _, peak in taken["ingest"]), 2),
        f"{reference}_peak_gb": round(max(peak for _, peak in taken[reference]), 2),
    }


def main() -> None:
    """Run the benchmark, or one side of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gzip", action="store_true", help="compressed reviews, against plain inflating")
    parser.add_argument("--folder", type=Path, help="folder for all files, 1.4 kB per row")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("paths", type=Path, nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        import nextquill_core.ingest.formats.json_parser
        import nextquill_core.ingest.scan
        import nextquill_core.ingest.sequences
        import nextquill_core.pipeline.ingest  # noqa: F401 (a long-lived worker has loaded these already)

        begun = time.perf_counter()
        SIDES[arguments.side](*arguments.paths)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps([time.perf_counter() - begun, peak]))
        return
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            print(json.dumps(compare(rows, arguments.rounds, Path(folder), compressed=arguments.gzip)), flush=True)


if __name__ == "__main__":
    main()

"""The ingest stage: scans in, user sequences, items, examples and quarantine out, every row accounted for.

Users are sorted by id, a fixed number of them to a shard. Texts wait in Parquet parts sorted by user, so that a shard
is gathered without holding the others in memory.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from nextquill_core.config import IngestConfig
from nextquill_core.errors import DataError
from nextquill_core.ingest.account import CategoryAccount, stats
from nextquill_core.ingest.batches import Part
from nextquill_core.ingest.cohort import (
    DPL_REVIEWS,
    KEY,
    SPLIT,
    TARGET,
    Cuts,
    assign_splits,
    find_cuts,
    first_core,
    second_core,
)
from nextquill_core.ingest.diagnosis import Trial, no_row_passes, no_user_passes, nothing_to_train
from nextquill_core.ingest.markup import SPACE
from nextquill_core.ingest.published import published_examples, without_thresholds
from nextquill_core.ingest.reader import repeated_targets
from nextquill_core.ingest.selection import (
    Items,
    Scanned,
    Selection,
    check_bad_rows,
    duplicates,
    passing_reviews,
    select_items,
    select_reviews,
)
from nextquill_core.ingest.sources.base import Source
from nextquill_core.progress import Progress
from nextquill_core.records import SPLITS
from nextquill_core.schemas import EXAMPLES, ITEMS, QUARANTINE, SEQUENCES
from storage.files import atomic_path
from storage.staging import Staging

USERS_PER_SHARD = 1000
ROWS_PER_SHARD = 100_000  # of items and of quarantined rows
USERS_PER_GROUP, ITEMS_PER_GROUP = 25, 500  # of a Parquet row group, which the lookup of a user or an item reads whole
GATHER_PARTS = 16  # of a scan, whose texts are in memory at a time: 400 MB if all users stay
ROW_GROUP = 20_000  # small enough that a shard skips most rows of other shards
# Runs of one plain blank stay as they are, so that the expression matches only where there is work to do.
_RUN = rf"[{SPACE}]{{2,}}|[{SPACE}--[ ]]"


@dataclass(frozen=True)
class _Chosen:
    """The users and reviews of a category that stay.

    Attributes:
        rows: `row`, `user` (place among the sorted ids), `item` (hash), `time`, `target`; by user, oldest first.
        users: `user` and `user_id`.
        texts: The files that `gather` wrote.
        trial: The category under other thresholds; None where no threshold applies.
        examples: The published examples as `published.PublishedExamples` has them; None where they follow from `rows`.
    """

    scanned: Scanned
    items: Items
    selection: Selection
    rows: pl.DataFrame
    users: pl.DataFrame
    texts: list[Path]
    trial: Trial | None = None
    examples: pl.DataFrame | None = None

    @property
    def training_users(self) -> int:
        """Number of users with a target for training under `dpl`."""
        return int((self.rows.group_by("user").len()["len"] >= DPL_REVIEWS).sum())

    @property
    def notes(self) -> list[str]:
        """What a user should know about the data, in sentences."""
        name, found = self.scanned.category, []
        for part, files in self.scanned.empty_files.items():
            if files:
                some = ", ".join(files[:3]) + (", …" if len(files) > 3 else "")
                found.append(f"{name}: {len(files):,} files of {part} hold no row and are passed over ({some})")
        users, training = self.users.height, self.training_users
        if self.trial and self.trial.protocol.name == "dpl" and 0 < training < users:
            found.append(
                f"{name}: only {training:,} of {users:,} users have a target to train on; the others have fewer than "
                f"{DPL_REVIEWS} reviews, and {KEY}.min_user_reviews of {DPL_REVIEWS} leaves most of them out"
            )
        if self.examples is not None and (absent := set(SPLITS) - set(self.examples[SPLIT])):
            missing = ", ".join(name for name in SPLITS if name in absent)
            found.append(f"{name}: the files hold no examples of {missing}")
        return found


def make_sequences(
    config: IngestConfig, source: Source, scans: Sequence[Scanned], staging: Staging, progress: Progress
) -> dict[str, Any]:
    """Apply the protocol to scanned categories and write the tables of the ingest artifact.

    Args:
        config: The protocol, and what happens to bad and suspect rows.
        source: What read the raw files.
        scans: Each category's scan, in the order in which the categories are to appear.
        staging: Where the tables go; the caller seals it.
        progress: Receives the name of the current category.

    Returns:
        The stats, as JSON values: see `account.stats`. Where points in time separate the splits, they are under `cuts`.
        What a user should know about the data, in sentences, is under `notes`.

    Raises:
        DataError: Too many rows are bad, no user passes the thresholds, or a split is empty.
    """
    shutil.rmtree(staging.scratch, ignore_errors=True)
    chosen: list[_Chosen] = []
    for number, scanned in enumerate(replace(scan, html=config.clean.html) for scan in scans):
        check_bad_rows(scanned, config)
        progress(number, 2 * len(scans), f"{scanned.category}: choosing users")
        choose = _choose_published if config.protocol.name == "published" else _choose
        chosen.append(choose(config, source, scanned, staging.scratch / f"{number:03d}"))
    cuts = find_cuts([one.rows.filter(TARGET)["time"] for one in chosen], config.protocol)
    notes = [note for one in chosen for note in one.notes]
    if config.protocol.name == "dpl" and not any(one.training_users for one in chosen):
        users = sum(one.users.height for one in chosen)
        raise nothing_to_train(users, {one.scanned.category: one.trial for one in chosen if one.trial})
    accounts: dict[str, CategoryAccount] = {}
    for number, one in enumerate(chosen):
        progress(len(scans) + number, 2 * len(scans), f"{one.scanned.category}: writing")
        accounts[one.scanned.category] = _write(config, one, cuts, staging, number)
    progress(2 * len(scans), 2 * len(scans), "done")
    return stats(accounts) | ({"cuts": asdict(cuts)} if cuts else {}) | ({"notes": notes} if notes else {})


def clean_text(text: pl.Expr) -> pl.Expr:
    r"""Strip, and turn runs of white space into one blank: Python's `re.sub(r"\s+", " ", text.strip())`."""
    return text.str.replace_all(_RUN, " ").str.strip_chars(" ")


def gather(scanned: Scanned, chosen: pl.DataFrame, folder: Path) -> tuple[list[Path], pl.DataFrame]:
    """Take the chosen reviews out of the scan's parts, clean their texts, and sort them by user.

    Args:
        scanned: The category.
        chosen: `row` and `user` (the user's place among the sorted ids) of the reviews wanted.
        folder: Where the sorted reviews go.

    Returns:
        Parquet files with `row`, `user`, `title`, cleaned `text` and `rating`; and `row` with `text` (u64), the hash
        of the cleaned text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    hashes = [pl.DataFrame(schema={"row": pl.Int64, "text": pl.UInt64})]
    for batch in _batches(scanned, chosen):
        texts = batch.with_columns(clean_text(pl.col("text"))).sort("user", "row")
        hashes.append(texts.select("row", pl.col("text").hash()))
        files.append(folder / f"{len(files):05d}.parquet")
        with atomic_path(files[-1]) as temporary:
            texts.write_parquet(temporary, compression="lz4", row_group_size=ROW_GROUP)
    return files, pl.concat(hashes)


def write_sequences(
    staging: Staging,
    number: int,
    category: str,
    users: pl.DataFrame,
    rows: pl.DataFrame,
    texts: list[Path],
    published: pl.DataFrame | None = None,
) -> Counter[str]:
    """Write a category's sequences and examples.

    Args:
        staging: The artifact.
        number: The category's place in the config.
        category: Its name.
        users: `user` (place among the sorted ids) and `user_id` of all users, sorted.
        rows: `row`, `user`, `item_id`, `time`, `target` and `split` of all reviews, sorted by user, oldest first.
        texts: The files that `gather` wrote.
        published: `user`, `split`, `target` and `history` of published examples, sorted by user; None where the
            examples follow from `rows`: a target's history is all earlier reviews.

    Returns:
        The number of examples by split.
    """
    splits: Counter[str] = Counter()
    for shard, start in enumerate(range(0, users.height, USERS_PER_SHARD)):
        some = users.slice(start, USERS_PER_SHARD)
        mine = _between(rows, "user", some["user"])
        names = [f"{table}/{number:03d}-{shard:05d}.parquet" for table in ("sequences", "examples")]
        placed = _targets(mine) if published is None else _between(published, "user", some["user"])
        examples = _examples(category, some, placed)
        splits.update(examples["split"].to_pylist())
        if not all(staging.has(name) for name in names):
            between = pl.col("user").is_between(some["user"][0], some["user"][-1])
            found = pl.scan_parquet(texts).filter(between).drop("user").collect()
            whole = mine.join(found, on="row", how="left", maintain_order="left")
            staging.write_table(names[0], _sequences(category, some["user_id"], whole), USERS_PER_GROUP)
            staging.write_table(names[1], examples)
    return splits


def write_items(staging: Staging, number: int, category: str, items: pl.DataFrame) -> None:
    """Write a category's items.

    Args:
        staging: The artifact.
        number: The category's place in the config.
        category: Its name.
        items: `item_id`, `title` and `description`, sorted.
    """
    table = items.select("item_id", pl.lit(category).alias("category"), "title", "description").to_arrow().cast(ITEMS)
    for shard, start in enumerate(range(0, max(table.num_rows, 1), ROWS_PER_SHARD)):
        name = f"items/{number:03d}-{shard:05d}.parquet"
        if not staging.has(name):
            staging.write_table(name, table.slice(start, ROWS_PER_SHARD), ITEMS_PER_GROUP)


def write_quarantine(staging: Staging, number: int, tables: Iterable[pl.DataFrame]) -> None:
    """Write a category's bad, suspect and repeated rows; an empty table where there are none.

    Args:
        staging: The artifact.
        number: The category's place in the config.
        tables: At least one table, as `selection.quarantine_table` makes them; each is read when its turn comes, so
            that few are in memory together.
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

    for table in tables:
        held.append(table)
        rows += table.height
        while rows >= ROWS_PER_SHARD:
            write(ROWS_PER_SHARD)
    if rows or not shard:
        write(rows)


def _choose(config: IngestConfig, source: Source, scanned: Scanned, folder: Path) -> _Chosen:
    protocol, name = config.protocol, scanned.category
    items = select_items(scanned, protocol, source)
    selection = select_reviews(scanned, config, items, source)
    reviews = selection.account
    if selection.rows.is_empty():
        raise no_row_passes(name, reviews, items.account, partial(_lengths, scanned))
    trial = Trial(selection.rows, partial(_cleaned_hashes, scanned, selection.rows), protocol)
    first = first_core(selection.rows, protocol)
    reviews.dropped.update(first.dropped)
    if first.rows.is_empty():
        raise no_user_passes(name, reviews, first, None, trial)
    users = _users(scanned, first.rows)
    ranked = first.rows.rename({"user": "user_hash"}).join(users, on="user_hash", maintain_order="left")
    texts, hashes = gather(scanned, ranked.select("row", "user"), folder)
    second = second_core(ranked.drop("text").join(hashes, on="row"), protocol)
    reviews.dropped.update(second.dropped)
    if second.rows.is_empty():
        raise no_user_passes(name, reviews, first, second, trial)
    rows = second.rows.select("row", "user", "item", "time", TARGET)
    users = users.join(rows, on="user", how="semi").sort("user").select("user", "user_id")
    return _Chosen(scanned, items, selection, rows, users, texts, trial)


def _choose_published(config: IngestConfig, source: Source, scanned: Scanned, folder: Path) -> _Chosen:
    """Take the examples of the files as they are.

    Raises:
        DataError: The name of a file does not show its split, or no row is an example.
    """
    name, config = scanned.category, without_thresholds(config)
    items = select_items(scanned, config.protocol, source)
    same = ["item", "text_hash", pl.col("title").hash(), pl.col("rating").hash()]
    same += ["timestamp_ms"] if source.dated else []
    columns = ("row", "user", "item", "timestamp_ms", SPLIT, "example", "own", pl.struct(same).hash().alias("key"))
    passed, reviews = passing_reviews(scanned, config, items, source, columns)
    if (nowhere := passed.filter(pl.col(SPLIT).is_null())).height:
        file, _ = scanned.counts["reviews"].place(nowhere["row"][0])
        raise DataError(
            "its name does not show the split of its examples",
            file,
            "rename it so that it begins with train, val or test, or move it into a folder of that name",
        )
    users = _users(scanned, passed)
    ranked = passed.rename({"user": "user_hash", "timestamp_ms": "time"}).join(
        users, on="user_hash", maintain_order="left"
    )
    found = published_examples(ranked, dated=source.dated)
    if found.examples.is_empty():
        reasons = [f"{count:,} as `{reason}`" for reason, count in reviews.dropped.most_common(3) if count]
        dropped = f" (dropped: {', '.join(reasons)})" if reasons else ""
        raise DataError(
            f"no row of {name} is an example: {reviews.read:,} reviews read, and none of them is a target{dropped}",
            ", ".join(file for file, _ in scanned.counts["reviews"].files),
            f"check that the files are what {source.name} reads, or set {KEY}.name to dpl",
        )
    reviews.dropped.update(found.dropped)
    texts, _ = gather(scanned, found.rows.select("row", "user"), folder)
    users = users.join(found.rows, on="user", how="semi").sort("user").select("user", "user_id")
    selection = Selection(found.rows, pl.Series("row", [], pl.Int64), reviews)
    return _Chosen(scanned, items, selection, found.rows, users, texts, examples=found.examples)


def _lengths(scanned: Scanned, part: Part) -> pl.Series:
    """Return the number of characters of each review's text, or of each item's description."""
    chars = pl.col("chars") if part == "reviews" else pl.col("description").str.len_chars()
    return scanned.read(part, chars.alias("chars"))["chars"]


def _cleaned_hashes(scanned: Scanned, rows: pl.DataFrame) -> pl.DataFrame:
    """Return `row` and the hash of the cleaned `text` of these reviews."""
    texts = scanned.table("reviews").select("row", clean_text(pl.col("text")).hash().alias("text"))
    return texts.join(rows.select("row").lazy(), on="row", how="semi").collect(engine="streaming")


def _users(scanned: Scanned, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the users of `rows`: `user_hash` (u64), `user_id`, and `user` (u32), their place among the sorted ids."""
    wanted = rows.select("user").unique()
    ids = scanned.table("reviews").select("user", "user_id")
    found = ids.join(wanted.lazy(), on="user", how="semi").unique().collect(engine="streaming")
    if found.height != wanted.height:
        raise RuntimeError("two user ids share a 64-bit hash")
    return found.rename({"user": "user_hash"}).sort("user_id").with_row_index("user")


def _write(config: IngestConfig, chosen: _Chosen, cuts: Cuts | None, staging: Staging, number: int) -> CategoryAccount:
    """Write a category's tables and return its account."""
    scanned, name = chosen.scanned, chosen.scanned.category
    items = chosen.items.describe(scanned, chosen.rows["item"])
    split = chosen.rows if chosen.examples is not None else assign_splits(chosen.rows, cuts)
    rows = split.join(items.select("item", "item_id"), on="item", maintain_order="left")
    examples = write_sequences(staging, number, name, chosen.users, rows, chosen.texts, chosen.examples)
    write_items(staging, number, name, items)
    bad = scanned.parts("bad") if config.bad_rows == "quarantine" else []
    suspect = scanned.parts("suspect") if config.suspect_rows != "ignore" else []
    twins = duplicates(scanned, chosen.selection)
    write_quarantine(staging, number, chain((pl.read_parquet(path) for path in (*bad, *suspect)), [twins]))
    reviews, account = chosen.selection.account, chosen.items.account
    reviews.kept = rows.height
    account.kept = items.height
    account.dropped["in_no_sequence"] += chosen.items.kept.height - items.height
    repeated = repeated_targets(
        *(sorted(staging.path(table).glob(f"{number:03d}-*.parquet")) for table in ("sequences", "examples"))
    )
    return CategoryAccount(reviews, account, chosen.users.height, examples, repeated)


def _batches(scanned: Scanned, chosen: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield the chosen reviews with their texts, in file order, `GATHER_PARTS` parts at a time."""
    chosen, parts = chosen.sort("row"), scanned.parts("reviews")
    for start in range(0, len(parts), GATHER_PARTS):
        some = scanned.table("reviews", parts[start : start + GATHER_PARTS])
        mine = _between(chosen, "row", some.select("row").collect()["row"])
        if mine.height:
            texts = some.select("row", "rating", pl.col("title").fill_null(""), "text")
            yield texts.filter(pl.col("row").is_in(mine["row"].implode())).collect().join(mine, on="row")


def _between(rows: pl.DataFrame, column: str, values: pl.Series) -> pl.DataFrame:
    """Return the part of `rows`, which is sorted by `column`, between the first and the last of `values`."""
    if values.is_empty():
        return rows.clear()
    first = rows[column].search_sorted(values[0], side="left")
    last = rows[column].search_sorted(values[-1], side="right")
    return rows.slice(first, last - first)


def _sequences(category: str, user_ids: pl.Series, rows: pl.DataFrame) -> pa.Table:
    """Return one row a user, with all reviews."""
    review = pl.struct("item_id", pl.col("rating").cast(pl.Float32), "title", "text", timestamp_ms="time")
    reviews = rows.group_by("user", maintain_order=True).agg(review.alias("reviews"))["reviews"]
    users = pl.DataFrame({"user_id": user_ids, "reviews": reviews})
    return users.select("user_id", pl.lit(category).alias("category"), "reviews").to_arrow().cast(SEQUENCES)


def _targets(rows: pl.DataFrame) -> pl.DataFrame:
    """Return `user`, `split`, `target` and `history` of each target; its history is all earlier reviews of the user."""
    place = pl.int_range(pl.len(), dtype=pl.Int32).over("user").alias("target")
    targets = rows.select("user", SPLIT, place, wanted=TARGET).filter("wanted")
    return targets.select("user", SPLIT, "target", pl.int_ranges(0, "target", dtype=pl.Int32).alias("history"))


def _examples(category: str, users: pl.DataFrame, placed: pl.DataFrame) -> pa.Table:
    """Return the table of examples.

    Args:
        category: The category's name.
        users: `user` and `user_id`.
        placed: `user`, `split`, `target` and `history`, by user.
    """
    named = placed.join(users.select("user", "user_id"), on="user", how="left", maintain_order="left")
    examples = named.select(
        pl.concat_str(pl.lit(f"{category}:"), "user_id", pl.lit(":"), "target").alias("example_id"),
        "user_id",
        pl.lit(category).alias("category"),
        SPLIT,
        "target",
        "history",
    )
    return examples.to_arrow().cast(EXAMPLES)

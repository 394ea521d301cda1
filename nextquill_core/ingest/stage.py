"""The ingest stage: scans in, user sequences, items, examples and quarantine out, every row accounted for."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from nextquill_core.config import IngestConfig
from nextquill_core.ingest import cohort
from nextquill_core.ingest.clean import cleaned
from nextquill_core.ingest.repeated import repeated_targets
from nextquill_core.ingest.report import Account, CategoryAccount, stats
from nextquill_core.ingest.rules import KEY
from nextquill_core.ingest.selection import (
    Items,
    Scanned,
    Selection,
    check_bad_rows,
    duplicates,
    select_items,
    select_reviews,
)
from nextquill_core.ingest.sequences import gather, write_items, write_quarantine, write_sequences
from nextquill_core.ingest.sources import Part, Source
from nextquill_core.ingest.splits import NEEDED, Cuts, cuts, labelled
from nextquill_core.ingest.thresholds import Trial, no_row_passes, no_user_passes, nothing_to_train
from nextquill_core.progress import Progress
from storage.staging import Staging


def make_sequences(
    config: IngestConfig, source: Source, scans: Sequence[Scanned], staging: Staging, progress: Progress
) -> dict[str, Any]:
    """Apply the protocol to scanned categories and write the tables of the ingest artifact.

    Args:
        config: The protocol, and what happens to bad and suspect rows.
        source: What read the raw files.
        scans: Each category's scan, in the order in which the categories are to appear.
        staging: Where the tables go; the caller seals it.
        progress: Told which category is being worked on.

    Returns:
        The stats, as JSON values: see `report.stats`. Where points in time part the splits, they are under `cuts`.
        What a user should know of the data, in sentences, is under `notes`.

    Raises:
        DataError: Too many rows are bad, no user passes the thresholds, or a split is empty.
    """
    shutil.rmtree(staging.scratch, ignore_errors=True)
    chosen: list[_Chosen] = []
    for number, scanned in enumerate(scans):
        check_bad_rows(scanned, config)
        progress(number, 2 * len(scans), f"{scanned.category}: choosing users")
        chosen.append(_choose(config, source, scanned, staging.scratch / f"{number:03d}"))
    points = cuts([one.rows.filter(cohort.TARGET)["time"] for one in chosen], config.protocol)
    notes = [note for one in chosen for note in one.notes]
    if config.protocol.name == "dpl" and not any(one.training_users for one in chosen):
        users = sum(one.users.height for one in chosen)
        raise nothing_to_train(users, {one.scanned.category: one.trial for one in chosen})
    accounts: dict[str, CategoryAccount] = {}
    for number, one in enumerate(chosen):
        progress(len(scans) + number, 2 * len(scans), f"{one.scanned.category}: writing")
        accounts[one.scanned.category] = _write(config, one, points, staging, number)
    progress(2 * len(scans), 2 * len(scans), "done")
    return stats(accounts) | ({"cuts": points.to_json()} if points else {}) | ({"notes": notes} if notes else {})


@dataclass(frozen=True)
class _Chosen:
    """Who and what of a category stays.

    Attributes:
        rows: `row`, `user` (place among the sorted ids), `item` (hash), `time`, `target`; by user, oldest first.
        users: `user` and `user_id`.
        texts: What `gather` wrote.
        trial: The category under other thresholds.
    """

    scanned: Scanned
    items: Items
    selection: Selection
    reviews: Account
    rows: pl.DataFrame
    users: pl.DataFrame
    texts: list[Path]
    trial: Trial

    @property
    def training_users(self) -> int:
        """How many users have a target for training under `dpl`."""
        return int((self.rows.group_by("user").len()["len"] >= NEEDED).sum())

    @property
    def notes(self) -> list[str]:
        """What a user should know of the data, in sentences."""
        name, found = self.scanned.category, []
        for part, files in self.scanned.empty_files.items():
            if files:
                some = ", ".join(files[:3]) + (", …" if len(files) > 3 else "")
                found.append(f"{name}: {len(files):,} files of {part} hold no row and are passed over ({some})")
        users, training = self.users.height, self.training_users
        if self.trial.protocol.name == "dpl" and 0 < training < users:
            found.append(
                f"{name}: only {training:,} of {users:,} users have a target to train on; the others have fewer than "
                f"{NEEDED} reviews, and {KEY}.min_user_reviews of {NEEDED} leaves most of them out"
            )
        return found


def _choose(config: IngestConfig, source: Source, scanned: Scanned, folder: Path) -> _Chosen:
    protocol, name = config.protocol, scanned.category
    items = select_items(scanned, protocol, source)
    selection = select_reviews(scanned, config, items, source)
    reviews = selection.account
    if selection.rows.is_empty():
        raise no_row_passes(name, reviews, items.account, partial(_lengths, scanned))
    trial = Trial(selection.rows, partial(_cleaned_hashes, scanned, selection.rows), protocol)
    first = cohort.core(selection.rows, protocol)
    reviews.dropped.update(first.dropped)
    if first.rows.is_empty():
        raise no_user_passes(name, reviews, first, None, trial)
    users = _users(scanned, first.rows)
    ranked = first.rows.rename({"user": "user_hash"}).join(users, on="user_hash", maintain_order="left")
    texts, hashes = gather(scanned.parts("reviews"), ranked.select("row", "user"), folder)
    second = cohort.split(ranked.drop("text").join(hashes, on="row"), protocol)
    reviews.dropped.update(second.dropped)
    if second.rows.is_empty():
        raise no_user_passes(name, reviews, first, second, trial)
    rows = second.rows.select("row", "user", "item", "time", cohort.TARGET)
    users = users.join(rows, on="user", how="semi").sort("user").select("user", "user_id")
    return _Chosen(scanned, items, selection, reviews, rows, users, texts, trial)


def _lengths(scanned: Scanned, part: Part) -> pl.Series:
    """The number of characters of each review's text, or of each item's description."""
    chars = pl.col("chars") if part == "reviews" else pl.col("description").str.len_chars()
    return scanned.table(part).select(chars.alias("chars")).collect()["chars"]


def _cleaned_hashes(scanned: Scanned, rows: pl.DataFrame) -> pl.DataFrame:
    """`row` and the hash of the cleaned `text` of these reviews."""
    texts = scanned.table("reviews").select("row", cleaned(pl.col("text")).hash().alias("text"))
    return texts.join(rows.select("row").lazy(), on="row", how="semi").collect(engine="streaming")


def _write(
    config: IngestConfig, chosen: _Chosen, points: Cuts | None, staging: Staging, number: int
) -> CategoryAccount:
    scanned, name = chosen.scanned, chosen.scanned.category
    items = chosen.items.describe(scanned, chosen.rows["item"])
    rows = labelled(chosen.rows, points).join(items.select("item", "item_id"), on="item", maintain_order="left")
    examples = write_sequences(staging, number, name, chosen.users, rows, chosen.texts)
    write_items(staging, number, name, items)
    listed = scanned.parts("bad") if config.bad_rows == "quarantine" else []
    suspect = scanned.parts("suspect") if config.suspect_rows != "ignore" else []
    twins = duplicates(scanned, chosen.selection)
    write_quarantine(staging, number, chain((pl.read_parquet(path) for path in (*listed, *suspect)), [twins]))
    chosen.reviews.kept = rows.height
    account = chosen.items.account
    account.kept = items.height
    account.dropped["in_no_sequence"] = chosen.items.kept.height - items.height
    repeated = repeated_targets(
        *(sorted(staging.path(table).glob(f"{number:03d}-*.parquet")) for table in ("sequences", "examples"))
    )
    return CategoryAccount(chosen.reviews, account, chosen.users.height, examples, repeated)


def _users(scanned: Scanned, rows: pl.DataFrame) -> pl.DataFrame:
    """The users of `rows`: `user_hash` (u64), `user_id`, and `user` (u32), their place among the sorted ids."""
    wanted = rows.select("user").unique()
    ids = scanned.table("reviews").select("user", "user_id")
    found = ids.join(wanted.lazy(), on="user", how="semi").unique().collect(engine="streaming")
    if found.height != wanted.height:
        raise RuntimeError("two user ids share a 64-bit hash")
    return found.rename({"user": "user_hash"}).sort("user_id").with_row_index("user")

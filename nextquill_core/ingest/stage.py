"""The ingest stage: scans in, user sequences, items, examples and quarantine out, every row accounted for."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from nextquill_core.config import IngestConfig
from nextquill_core.ingest import cohort
from nextquill_core.ingest.report import Account, CategoryAccount, nobody_left, stats
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
from nextquill_core.ingest.sources import Source
from nextquill_core.ingest.splits import Cuts, cuts, labelled
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

    Raises:
        DataError: Too many rows are bad, nobody passes the thresholds, or a split is empty.
    """
    shutil.rmtree(staging.scratch, ignore_errors=True)
    chosen: list[_Chosen] = []
    for number, scanned in enumerate(scans):
        check_bad_rows(scanned, config)
        progress(number, 2 * len(scans), f"{scanned.category}: choosing users")
        chosen.append(_choose(config, source, scanned, staging.scratch / f"{number:03d}"))
    points = cuts([one.rows.filter(cohort.TARGET)["time"] for one in chosen], config.protocol)
    accounts: dict[str, CategoryAccount] = {}
    for number, one in enumerate(chosen):
        progress(len(scans) + number, 2 * len(scans), f"{one.scanned.category}: writing")
        accounts[one.scanned.category] = _write(config, one, points, staging, number)
    progress(2 * len(scans), 2 * len(scans), "done")
    return stats(accounts) | ({"cuts": points.to_json()} if points else {})


@dataclass(frozen=True)
class _Chosen:
    """Who and what of a category stays.

    Attributes:
        rows: `row`, `user` (place among the sorted ids), `item` (hash), `time`, `target`; by user, oldest first.
        users: `user` and `user_id`.
        texts: What `gather` wrote.
    """

    scanned: Scanned
    items: Items
    selection: Selection
    reviews: Account
    rows: pl.DataFrame
    users: pl.DataFrame
    texts: list[Path]


def _choose(config: IngestConfig, source: Source, scanned: Scanned, folder: Path) -> _Chosen:
    protocol, name = config.protocol, scanned.category
    items = select_items(scanned, protocol, source.absent)
    selection = select_reviews(scanned, config, items, source.absent)
    reviews = selection.account
    if selection.rows.is_empty():
        raise nobody_left(name, reviews, items.account, None, None, protocol)
    first = cohort.core(selection.rows, protocol)
    reviews.dropped.update(first.dropped)
    if first.rows.is_empty():
        raise nobody_left(name, reviews, items.account, first, None, protocol)
    users = _users(scanned, first.rows)
    ranked = first.rows.rename({"user": "user_hash"}).join(users, on="user_hash", maintain_order="left")
    texts, hashes = gather(scanned.parts("reviews"), ranked.select("row", "user"), folder)
    second = cohort.split(ranked.drop("text").join(hashes, on="row"), protocol)
    reviews.dropped.update(second.dropped)
    if second.rows.is_empty():
        raise nobody_left(name, reviews, items.account, first, second, protocol)
    rows = second.rows.select("row", "user", "item", "time", cohort.TARGET)
    users = users.join(rows, on="user", how="semi").sort("user").select("user", "user_id")
    return _Chosen(scanned, items, selection, reviews, rows, users, texts)


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
    write_quarantine(staging, number, [pl.read_parquet(path) for path in (*listed, *suspect)] + [twins])
    chosen.reviews.kept = rows.height
    account = chosen.items.account
    account.kept = items.height
    account.dropped["in_no_sequence"] = chosen.items.kept.height - items.height
    return CategoryAccount(chosen.reviews, account, chosen.users.height, examples)


def _users(scanned: Scanned, rows: pl.DataFrame) -> pl.DataFrame:
    """The users of `rows`: `user_hash` (u64), `user_id`, and `user` (u32), their place among the sorted ids."""
    wanted = rows.select("user").unique()
    ids = scanned.table("reviews").select("user", "user_id")
    found = ids.join(wanted.lazy(), on="user", how="semi").unique().collect(engine="streaming")
    if found.height != wanted.height:
        raise RuntimeError("two user ids share a 64-bit hash")
    return found.rename({"user": "user_hash"}).sort("user_id").with_row_index("user")

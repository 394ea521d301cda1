"""Removal of users from a store: every artifact that holds one of them, and everything made from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nextquill_core.ingest.privacy import WITHHELD
from nextquill_core.pipeline.run import Run
from storage import Artifact, InputRef
from storage.garbage import remove_with_dependents


def forget_users(run: Run) -> list[str]:
    """Remove every artifact that holds a user of `privacy.forget`, and everything made from it.

    New artifacts never hold such users, because their rows are left out where raw files are read. This removes what
    earlier runs left in the store, whatever their configuration, adapters trained on such reviews included.

    Returns:
        The removed artifacts, as `KIND/FINGERPRINT`.

    Raises:
        UserError: Another process is making one of them.
    """
    if not run.privacy.forget:
        return []
    removed = remove_with_dependents(run.store, _to_remove(run))
    run.look_again()
    return removed


def _to_remove(run: Run) -> Iterator[InputRef]:
    wanted = {step.fingerprint for step in run.plan.scans.values()}
    raw = {digest for step in run.plan.scans.values() for digest in _digests(step.settings)}
    for scan in run.store.own.newest_first("scan"):
        if scan.manifest.fingerprint not in wanted and (_holds_users(run, scan) or _may_quote(scan, raw)):
            yield scan.ref
    unnamed = [InputRef("scan", name, "") for name in run.store.orphans("scan")]  # a removal may have been interrupted
    yield from (ref for ref in [*run.store.unfinished("scan"), *unnamed] if ref.fingerprint not in wanted)


def _holds_users(run: Run, scan: Artifact) -> bool:
    """Return whether such a user is among the scan's users, or named in the text of a row that could not be read."""
    import polars as pl

    reviews = pl.scan_parquet(scan.files("reviews/"))
    users = reviews.select(pl.col("user_id").unique()).collect(engine="streaming")["user_id"]
    if run.privacy.forgotten(users).any():
        return True
    texts = _quarantined(scan)
    return bool(texts.select(pl.col("raw").str.contains_any(sorted(run.privacy.forget)).any()).collect().item())


def _may_quote(scan: Artifact, raw: set[str]) -> bool:
    """Return whether a scan holds unreadable rows of the same raw files, whose author is unknown."""
    import polars as pl

    if not raw & set(_digests(scan.manifest.identity)):
        return False
    return bool(_quarantined(scan).select((pl.col("raw") != WITHHELD).any()).collect().item())


def _quarantined(scan: Artifact) -> Any:
    import polars as pl

    files = [*scan.files("bad/"), *scan.files("suspect/")]
    return pl.scan_parquet(files) if files else pl.LazyFrame(schema={"raw": pl.String})


def _digests(identity: Any) -> Iterator[str]:
    for digests in identity["raw"].values():
        yield from digests

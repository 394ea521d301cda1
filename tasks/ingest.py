"""Ingest: raw files into user sequences, with the account of every row."""

from __future__ import annotations

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from nextquill_core.ingest.report import account_rows
from nextquill_core.stages import forget, prepare
from nextquill_core.stages.run import Outcome, Run
from tasks.progress import ShownProgress
from tasks.retries import RETRIED


@task(cache_policy=NO_CACHE, persist_result=False, **RETRIED)
def forget_users(run: Run) -> None:
    """Remove what earlier runs left of users who are to be forgotten."""
    for removed in forget.forget_users(run):
        get_run_logger().info(f"forget: removed {removed}")


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="scan-{category}", **RETRIED)
def scan_raw(run: Run, category: str, force: bool) -> Outcome:
    """A category's raw files as Parquet; the expensive part, independent of every threshold."""
    with ShownProgress("scan") as progress:
        return prepare.scan(run, category, progress, force=force)


@task(cache_policy=NO_CACHE, persist_result=False, **RETRIED)
def make_sequences(run: Run, force: bool) -> Outcome:
    """Sequences, items, examples and quarantine."""
    with ShownProgress("ingest") as progress:
        return prepare.ingest(run, progress, force=force)


@task(cache_policy=NO_CACHE, persist_result=False, **RETRIED)
def publish_account(outcome: Outcome) -> None:
    """Rows read = rows kept + rows dropped by reason, as a table in the UI."""
    create_table_artifact(
        key="ingest-account",
        table=account_rows(outcome.artifact.manifest.stats),
        description=f"What became of every row read ({outcome.artifact.manifest.fingerprint})",
    )

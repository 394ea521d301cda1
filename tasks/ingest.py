"""Ingest: raw files into user sequences, with the account of every row."""

from __future__ import annotations

from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger

from nextquill_core.ingest.report import account_rows
from nextquill_core.pipeline import ingest as prepare
from nextquill_core.pipeline.run import Outcome, Run
from nextquill_core.registry import forget_users as forget
from tasks.artifacts import data_key
from tasks.definition import our_task
from tasks.progress import ShownProgress


@our_task()
def forget_users(run: Run) -> None:
    """Remove what earlier runs left of users who are to be forgotten."""
    for removed in forget.forget_users(run):
        get_run_logger().info(f"forget: removed {removed}")


@our_task(task_run_name="scan-{category}")
def scan_raw(run: Run, category: str, force: bool) -> Outcome:
    """A category's raw files as Parquet; the expensive part, independent of every threshold."""
    with ShownProgress("scan") as progress:
        return prepare.scan(run, category, progress, force=force)


@our_task()
def make_sequences(run: Run, force: bool) -> Outcome:
    """Sequences, items, examples and quarantine."""
    with ShownProgress("ingest") as progress:
        return prepare.ingest(run, progress, force=force)


@our_task()
def publish_account(run: Run, outcome: Outcome) -> None:
    """Publish what became of every row as a table in the UI, and log what a user should know of the data."""
    logger, rows = get_run_logger(), account_rows(outcome.artifact.manifest.stats)
    for note in outcome.artifact.manifest.stats.get("notes", []):
        logger.warning(note)
    for row in rows if not outcome.reused else ():
        if row["example"] and row["share"] is not None:
            logger.info(f"{row['category']}: {row['rows']:,} {row['what']} {row['outcome']}, first {row['example']}")
    create_table_artifact(
        key=data_key("ingest-account", run.config),
        table=rows,
        description=f"What became of every row read ({outcome.artifact.manifest.fingerprint})",
    )

"""Scoring workers as Prefect tasks, so that a task runner can place them on other machines."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from nextquill_core.causal.job import ScoreJob
from storage.masked_output import errors_masked


@task(name="score-worker", cache_policy=NO_CACHE, persist_result=False, task_run_name="worker {number}")
@errors_masked()
def score_worker(job: str, number: int) -> None:
    """One worker's share of the shards, on the device that it sees.

    Args:
        job: Path of the job's file; nothing larger than a path travels between machines.
        number: Tells the workers apart.
    """
    from nextquill_core.causal.worker import work

    logging.getLogger("nextquill_core").setLevel(logging.INFO)
    work(ScoreJob.load(Path(job)), str(number))

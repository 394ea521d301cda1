"""Promote: the decision, and what it rests on, in the UI too."""

from __future__ import annotations

from dataclasses import asdict

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from nextquill_core.pipeline.run import Run
from nextquill_core.registry.promote import Verdict, decide
from tasks.artifacts import data_key
from tasks.retries import RETRIED


@task(cache_policy=NO_CACHE, persist_result=False, **RETRIED)
def decide_promotion(run: Run, method: str, name: str, metric: str) -> Verdict:
    """Compare the candidate with what is accepted, and move the pointer if it is better beyond noise."""
    verdict = decide(run, method, name, metric)
    rows = [{"what": key, "value": "" if value is None else str(value)} for key, value in asdict(verdict).items()]
    create_table_artifact(key=data_key(f"promote-{name}", run.config), table=rows, description=verdict.reason)
    return verdict

"""Promote: the decision, and what it rests on, in the UI too."""

from __future__ import annotations

from dataclasses import asdict

from prefect.artifacts import create_table_artifact

from nextquill_core.pipeline.run import Run
from nextquill_core.registry.promote import Verdict, decide
from tasks.artifacts import data_key
from tasks.definition import our_task


@our_task()
def decide_promotion(run: Run, method: str, name: str, metric: str) -> Verdict:
    """Compare the candidate with what is accepted, and move the pointer if it is better beyond noise."""
    verdict = decide(run, method, name, metric)
    rows = [{"what": key, "value": "" if value is None else str(value)} for key, value in asdict(verdict).items()]
    create_table_artifact(key=data_key(f"promote-{name}", run.config), table=rows, description=verdict.reason)
    return verdict

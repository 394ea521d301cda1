"""The evaluate stage: predictions, metrics, report."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.results import announce, finished, run_name
from flows.runs import open_run
from nextquill_core.config import Config
from tasks.evaluate import make_part, measure, publish_results


@flow(name="evaluate", persist_result=False, flow_run_name=run_name)
def evaluate(config: Config, force: bool = False) -> dict[str, Any]:
    """Let every method write the reviews of the split, measure them, and report; stored predictions are reused."""
    run = open_run(config)
    for step in run.plan.evaluation.steps:
        made = make_part(run, step, force)
        if not made.reused:
            announce(step.name, made)
    outcome = measure(run, force)
    publish_results(outcome)
    return finished("evaluate", outcome)

"""The evaluate stage: predictions, metrics, report."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.results import announce, finished, run_name
from flows.runs import open_run
from nextquill_core.config import Config
from tasks.evaluate import generate_predictions, measure, publish_results


@flow(name="evaluate", persist_result=False, flow_run_name=run_name)
def evaluate(config: Config, force: bool = False) -> dict[str, Any]:
    """Let every method write the reviews of the split, measure them, and report; stored predictions are reused."""
    run = open_run(config)
    for method, decoding in run.plan.predictions:
        predictions = generate_predictions(run, method, decoding, force)
        if not predictions.reused:
            announce(f"predictions {method} {decoding}", predictions)
    outcome = measure(run, force)
    publish_results(outcome)
    return finished("evaluate", outcome)

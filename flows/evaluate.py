"""The evaluate stage: predictions, metrics, report."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.results import announce, finished, run_name
from flows.runs import open_run
from flows.slurm import made_by_job
from flows.timeouts import timeout_s
from nextquill_core.config import Config
from nextquill_core.stages.run import Outcome, Run
from tasks.evaluate import make_part, measure, publish_results
from tasks.reasons import publish_reasons


@flow(name="evaluate", persist_result=False, flow_run_name=run_name, timeout_seconds=timeout_s("evaluate"))
def evaluate(config: Config, force: bool = False) -> dict[str, Any]:
    """Let every method write the reviews of the split, measure them, and report; stored predictions are reused.

    Args:
        config: The run's settings.
        force: Generate and measure anew, even where it is fresh.
    """
    run = open_run(config)
    publish_reasons(run, "evaluate", [run.plan.evaluate, *run.plan.evaluation.steps], force)
    by_job = made_by_job(run, "evaluate", [run.plan.evaluate], force=force)
    outcome = by_job[0] if by_job else _measured(run, force)
    publish_results(outcome)
    return finished("evaluate", outcome)


def _measured(run: Run, force: bool) -> Outcome:
    for step in run.plan.evaluation.steps:
        made = make_part(run, step, force)
        if not made.reused:
            announce(step.name, made)
    return measure(run, force)

"""The evaluate stage: predictions, metrics, report."""

from __future__ import annotations

from typing import Annotated, Any

from flows.forms import SETTINGS, Form
from flows.results import announce, finished
from flows.runs import open_run
from flows.slurm import made_by_job
from flows.stage import our_flow
from nextquill_core.config import Config
from nextquill_core.pipeline.run import Outcome, Run
from tasks.evaluate import make_part, measure, publish_results
from tasks.reasons import publish_reasons


@our_flow("evaluate")
def evaluate(config: Annotated[Config, Form("evaluate")] = SETTINGS, force: bool = False) -> dict[str, Any]:
    """Let every method write the reviews of the split, measure them, and report; stored predictions are reused.

    Args:
        config: The run's settings.
        force: Generate and measure anew, even where it is fresh.
    """
    run = open_run(config)
    publish_reasons(run, "evaluate", [run.plan.evaluate, *run.plan.evaluation.steps], force)
    by_job = made_by_job(run, "evaluate", [run.plan.evaluate], force=force)
    outcome = by_job[0] if by_job else _measured(run, force)
    publish_results(run, outcome)
    return finished("evaluate", outcome)


def _measured(run: Run, force: bool) -> Outcome:
    for step in run.plan.evaluation.steps:
        made = make_part(run, step, force)
        if not made.reused:
            announce(step.name, made)
    return measure(run, force)

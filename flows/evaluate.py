"""The evaluate stage: predictions, metrics, report."""

from __future__ import annotations

from typing import Annotated, Any

from flows.forms import SETTINGS, Form
from flows.results import finished
from flows.runs import open_run
from flows.stage import make_stage, nextquill_flow
from nextquill_core.config import Config
from tasks.ui import publish_results


@nextquill_flow("evaluate")
def evaluate(config: Annotated[Config, Form("evaluate")] = SETTINGS, force: bool = False) -> dict[str, Any]:
    """Let every method write the reviews of the split, measure them, and report; stored predictions are reused.

    Args:
        config: The run's settings.
        force: Generate and measure again, even where it is up to date.
    """
    run = open_run(config)
    plan = run.plan.evaluation
    pictured = [plan.clusters] if plan.clusters else []
    *_, outcome = make_stage(run, "evaluate", [*plan.steps, *pictured, run.plan.evaluate], force=force)
    publish_results(run, outcome)
    return finished("evaluate", outcome)

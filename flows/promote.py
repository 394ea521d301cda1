"""Promotion: a trained adapter is measured on val and accepted, or not."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from prefect import State
from prefect.logging import get_run_logger
from prefect.states import Completed

from flows.forms import SETTINGS, Form
from flows.results import announce, as_result
from flows.runs import open_run
from flows.stage import nextquill_flow
from nextquill_core.config import Config, MethodName
from nextquill_core.registry.promote import Metric, missing_steps, val_run
from tasks.steps import make_step
from tasks.ui import decide_promotion

ACCEPTED, REJECTED = "Accepted", "Rejected"


@nextquill_flow("promote")
def promote(
    config: Annotated[Config, Form("evaluate")] = SETTINGS,
    method: MethodName | None = None,
    metric: Metric = "log_likelihood",
    pointer: str | None = None,
) -> dict[str, Any]:
    """Accept a method's adapter if it beats the last accepted one on val beyond noise; the test split is not used.

    Args:
        config: The run's settings; the adapter has been trained with them.
        method: The method that trained the adapter; empty is `train.method`.
        metric: log_likelihood (of the true reviews), or rouge1, rougeL, rouge1_unicode, rougeL_unicode, meteor or bleu
            of the texts that the method generates.
        pointer: Name under which the adapter is accepted; empty is the method's.

    Raises:
        UserError: The two cannot be compared, or the adapter is missing or stale.
    """
    chosen = method or config.train.method
    run = val_run(config, chosen, open_run)
    for step in missing_steps(run, chosen, metric):
        outcome = make_step(run, step, False)
        if not outcome.reused:
            announce(run.plan.title(step), outcome)
    verdict = decide_promotion(run, chosen, pointer or chosen, metric)
    get_run_logger().info("promote: %s", verdict.reason)
    state: State[Any] = Completed(
        name=ACCEPTED if verdict.accepted else REJECTED, message=verdict.reason, data=asdict(verdict)
    )
    return as_result(state)

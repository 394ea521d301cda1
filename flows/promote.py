"""Promotion: measure a trained adapter on val and accept it, or not."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from prefect import State
from prefect.logging import get_run_logger
from prefect.states import Completed

from flows.forms import SETTINGS, Form
from flows.results import announce, as_result
from flows.runs import open_run
from flows.stage import our_flow
from nextquill_core.config import Config, MethodName
from nextquill_core.registry.promote import missing_steps, val_run
from tasks.evaluate import make_part
from tasks.promote import decide_promotion

ACCEPTED, REJECTED = "Accepted", "Rejected"
Metric = Literal["log_likelihood", "rouge1", "rougeL", "rouge1_unicode", "rougeL_unicode", "meteor", "bleu"]


@our_flow("promote")
def promote(
    config: Annotated[Config, Form("evaluate")] = SETTINGS,
    method: MethodName | None = None,
    metric: Metric = "log_likelihood",
    pointer: str | None = None,
) -> dict[str, Any]:
    """Accept a method's adapter if it beats the last accepted one on val beyond noise; test is not looked at.

    Args:
        config: The run's settings; its adapter is trained.
        method: Whose adapter; empty is `train.method`.
        metric: log_likelihood (of the true reviews), or rouge1, rougeL, rouge1_unicode, rougeL_unicode, meteor or bleu
            of what the method writes.
        pointer: Its name; empty is the method.

    Raises:
        UserError: The two cannot be compared, or the adapter is missing or stale.
    """
    chosen = method or config.train.method
    run = val_run(config, chosen, open_run)
    for step in missing_steps(run, chosen, metric):
        made = make_part(run, step, False)
        if not made.reused:
            announce(step.name, made)
    verdict = decide_promotion(run, chosen, pointer or chosen, metric)
    get_run_logger().info("promote: %s", verdict.reason)
    state: State[Any] = Completed(
        name=ACCEPTED if verdict.accepted else REJECTED, message=verdict.reason, data=asdict(verdict)
    )
    return as_result(state)

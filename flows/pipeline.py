"""The whole pipeline: each stage is a flow run of its own, and each can be run alone."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.model import model
from flows.results import run_name
from flows.score import score
from flows.timeouts import timeout_s
from flows.train import train
from nextquill_core.config import Config


@flow(name="nextquill", persist_result=False, flow_run_name=run_name, timeout_seconds=timeout_s("pipeline"))
def pipeline(config: Config, force: bool = False) -> list[dict[str, Any]]:
    """Ingest, score, train, evaluate; what is fresh is reused, what was interrupted goes on.

    Args:
        config: The run's settings.
        force: Make every stage anew, even where it is fresh.

    Returns:
        A reference to each stage's artifact, in order.
    """
    results: list[dict[str, Any]] = [stage(config, force=force) for stage in (ingest, model, score, train, evaluate)]
    return [reference for reference in results if reference]

"""The train stage: one adapter for each method that trains."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.results import finished, run_name
from flows.runs import open_run
from nextquill_core.config import Config, MethodName
from tasks.train import train_adapter


@flow(name="train", persist_result=False, flow_run_name=run_name)
def train(config: Config, method: MethodName | None = None, force: bool = False) -> dict[str, Any]:
    """Train adapters under DeepSpeed, each going on from its newest checkpoint.

    Args:
        config: The run's settings.
        method: Train this one only; empty trains `train.method` and whatever else `evaluate.methods` needs.
        force: Train anew even where the adapter is fresh.
    """
    run = open_run(config)
    names = [method] if method else [*run.plan.train, *run.plan.evaluation.tasks]
    outcomes = {name: train_adapter(run, name, force) for name in names}
    results = {name: finished(f"train {name}", outcome) for name, outcome in outcomes.items()}
    made = [name for name, outcome in outcomes.items() if not outcome.reused]
    return results[made[0] if made else next(iter(results))]

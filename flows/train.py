"""The train stage: one adapter for each method that trains."""

from __future__ import annotations

from typing import Annotated, Any

from flows.forms import SETTINGS, Form
from flows.results import finished
from flows.runs import open_run
from flows.server.events import watch_quality
from flows.slurm import made_by_job
from flows.stage import our_flow
from nextquill_core.config import Config, MethodName
from tasks.reasons import publish_reasons
from tasks.train import train_adapter


@our_flow("train")
def train(
    config: Annotated[Config, Form("train")] = SETTINGS, method: MethodName | None = None, force: bool = False
) -> dict[str, Any]:
    """Train adapters under DeepSpeed, each going on from its newest checkpoint.

    Args:
        config: The run's settings.
        method: Train this one only; empty trains `train.method` and whatever else `evaluate.methods` needs.
        force: Train anew even where the adapter is fresh.
    """
    run = open_run(config)
    everything = [*run.plan.train, *run.plan.evaluation.tasks]
    names = [method] if method else everything
    steps = [run.plan.adapters[name] for name in names]
    publish_reasons(run, "train", steps, force)
    by_job = made_by_job(run, "train", steps, force=force, method=method)
    made_here = (train_adapter(run, name, force) for name in names)
    outcomes = dict(zip(names, by_job or made_here, strict=True))
    results = {
        name: finished(f"train {name}", outcome, whole=names == everything and name == names[-1])
        for name, outcome in outcomes.items()
    }
    made = [name for name, outcome in outcomes.items() if not outcome.reused]
    for name in made:
        watch_quality(run, name)
    return results[made[0] if made else next(iter(results))]

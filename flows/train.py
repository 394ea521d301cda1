"""The train stage: one adapter for each method that trains."""

from __future__ import annotations

from typing import Annotated, Any

from flows.forms import SETTINGS, Form
from flows.results import finished
from flows.runs import open_run
from flows.server.events import watch_quality
from flows.stage import make_stage, nextquill_flow
from nextquill_core.config import Config, MethodName
from tasks.ui import publish_training


@nextquill_flow("train")
def train(
    config: Annotated[Config, Form("train")] = SETTINGS, method: MethodName | None = None, force: bool = False
) -> dict[str, Any]:
    """Train adapters under DeepSpeed; each resumes from its newest checkpoint.

    Args:
        config: The run's settings.
        method: Train this one only; empty trains `train.method` and whatever else `evaluate.methods` needs.
        force: Train again even where the adapter is up to date.
    """
    run = open_run(config)
    everything = [*run.plan.train, *run.plan.evaluation.tasks]
    names = [method] if method else everything
    steps = [run.plan.adapter(name) for name in names]
    outcomes = make_stage(run, "train", steps, force=force, results=steps, method=method)
    publish_training(run, dict(zip(names, outcomes, strict=True)))
    states = [
        finished(run.plan.title(step), outcome, whole=names == everything and step is steps[-1])
        for step, outcome in zip(steps, outcomes, strict=True)
    ]
    made = [index for index, outcome in enumerate(outcomes) if not outcome.reused]
    for index in made:
        watch_quality(run, names[index])
    return states[made[0] if made else 0]

"""The whole pipeline: each stage is a flow run of its own, and each can be run alone."""

from __future__ import annotations

from typing import Annotated, Any

from flows.evaluate import evaluate
from flows.forms import SETTINGS, Form
from flows.ingest import ingest
from flows.model import model
from flows.runs import open_run
from flows.score import score
from flows.stage import our_flow
from flows.train import train
from nextquill_core.config import Config
from nextquill_core.pipeline.train import check_layers
from tasks.evaluate import publish_pipeline

PipelineSettings = Annotated[Config, Form(brief=("ingest", "train", "evaluate"))]


@our_flow("pipeline", name="nextquill")
def pipeline(config: PipelineSettings = SETTINGS, force: bool = False) -> list[dict[str, Any]]:
    """Ingest, score, train, evaluate; what is fresh is reused, what was interrupted goes on.

    Args:
        config: The run's settings.
        force: Make every stage anew, even where it is fresh.

    Returns:
        A reference to each stage's artifact, in order.
    """
    results: list[dict[str, Any]] = [stage(config, force=force) for stage in (ingest, model)]
    check_layers(open_run(config))  # what training would refuse only after scoring
    results += [stage(config, force=force) for stage in (score, train, evaluate)]
    made = [reference for reference in results if reference]
    publish_pipeline(open_run(config, fetch=False), made)
    return made

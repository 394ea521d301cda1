"""The whole pipeline: each stage is a subflow, which can also be run alone."""

from __future__ import annotations

from typing import Annotated, Any

from flows.evaluate import evaluate
from flows.forms import SETTINGS, Form
from flows.ingest import ingest
from flows.model import model
from flows.runs import open_run
from flows.score import score
from flows.stage import nextquill_flow
from flows.train import train
from nextquill_core.config import Config
from nextquill_core.pipeline.train import check_layers
from tasks.numbering import numbered
from tasks.ui import publish_pipeline

PipelineSettings = Annotated[Config, Form(brief=("ingest", "train", "evaluate"))]


@nextquill_flow("pipeline", name="nextquill")
def pipeline(config: PipelineSettings = SETTINGS, force: bool = False) -> list[dict[str, Any]]:
    """Ingest, score, train, evaluate; what is up to date is reused, and what was interrupted resumes.

    Args:
        config: The run's settings.
        force: Make every stage again, even where it is up to date.

    Returns:
        A reference to each stage's artifact, in order.
    """
    with numbered(lambda: open_run(config).plan.stages):
        results: list[dict[str, Any]] = [stage(config, force=force) for stage in (ingest, model)]
        check_layers(open_run(config))  # training would refuse them, but only after hours of scoring
        results += [stage(config, force=force) for stage in (score, train, evaluate)]
    references = [reference for reference in results if reference]
    publish_pipeline(open_run(config), references)
    return references

"""The stages up to the weights, for real and without Prefect, on twenty users and a model of two layers."""

from __future__ import annotations

from pathlib import Path

from nextquill_core.pipeline import Step
from nextquill_core.pipeline.run import Run
from tests.world import small_config


def open_stages(world: Path, store: Path) -> Run:
    """A run of the small configuration with a base model that is trained for two steps."""
    config = small_config(world, store)
    tiny = config.model.tiny.model_copy(update={"steps": 2})
    return Run(config.model_copy(update={"model": config.model.model_copy(update={"tiny": tiny})}))


def steps_of(run: Run) -> list[Step]:
    """The steps that `run_stages` makes, in order."""
    model = [run.plan.model] if run.plan.model else []
    return [*run.plan.scans.values(), run.plan.ingest, *model, run.plan.effects, run.plan.score]


def run_stages(world: Path, store: Path) -> None:
    """Ingest, train the base model, score, derive weights; what is up to date is reused."""
    import torch

    from nextquill_core.pipeline import ingest as prepare
    from nextquill_core.pipeline import score
    from nextquill_core.progress import silent

    torch.set_num_threads(1)
    run = open_stages(world, store)
    for category in run.plan.scans:
        prepare.scan(run, category, silent)
    prepare.ingest(run, silent)
    prepare.base_model(run, silent)
    score.effects(run, silent)
    score.weights(run)

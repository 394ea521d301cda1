"""The real stages up to the weights, without Prefect, on twenty users and a model of two layers."""

from __future__ import annotations

from pathlib import Path

from nextquill_core.pipeline import Step, lineage
from nextquill_core.pipeline.run import Run
from tests.stages import make
from tests.world import small_config


def open_stages(world: Path, store: Path) -> Run:
    """Open a run of the small configuration with a base model that is trained for two steps."""
    config = small_config(world, store)
    tiny = config.model.tiny.model_copy(update={"steps": 2})
    return Run(config.model_copy(update={"model": config.model.model_copy(update={"tiny": tiny})}))


def steps_of(run: Run) -> list[Step]:
    """Return the steps that `run_stages` makes, in order."""
    return lineage(run.plan.score)


def run_stages(world: Path, store: Path) -> None:
    """Ingest, train the base model, score and derive weights; artifacts that are up to date are reused."""
    import torch

    torch.set_num_threads(1)
    run = open_stages(world, store)
    make(run, run.plan.score)

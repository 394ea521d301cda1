"""The offline base model's stage; does nothing where the model comes from outside."""

from __future__ import annotations

from typing import Annotated, Any

from flows.forms import SETTINGS, Form
from flows.results import finished, nothing_to_make
from flows.runs import open_run
from flows.slurm import made_by_job
from flows.stage import our_flow
from nextquill_core.config import Config
from tasks.model import train_base_model
from tasks.reasons import publish_reasons


@our_flow("model")
def model(config: Annotated[Config, Form("model")] = SETTINGS, force: bool = False) -> dict[str, Any]:
    """Train the offline base model that `model.name_or_path: tiny` asks for.

    Args:
        config: The run's settings.
        force: Train it anew, even where it is fresh.
    """
    run = open_run(config)
    if run.plan.model:
        publish_reasons(run, "model", [run.plan.model], force)
    made = made_by_job(run, "model", [run.plan.model], force=force) if run.plan.model else None
    outcome = made[0] if made else train_base_model(run, force)
    if outcome is None:
        return nothing_to_make("model", f"{config.model.name_or_path} comes from outside")
    return finished("model", outcome)

"""The stage of the offline base model, which does nothing where the configuration names another model."""

from __future__ import annotations

from typing import Annotated, Any

from flows.forms import SETTINGS, Form
from flows.results import finished, nothing_to_make
from flows.runs import open_run
from flows.stage import make_stage, nextquill_flow
from nextquill_core.config import Config


@nextquill_flow("model")
def model(config: Annotated[Config, Form("model")] = SETTINGS, force: bool = False) -> dict[str, Any]:
    """Train the offline base model that `model.name_or_path: tiny` asks for.

    Args:
        config: The run's settings.
        force: Train it again, even where it is up to date.
    """
    run = open_run(config)
    if run.plan.model is None:
        return nothing_to_make("model", f"{config.model.name_or_path} comes from outside")
    (outcome,) = make_stage(run, "model", [run.plan.model], force=force)
    return finished("model", outcome)

"""The stage of a base model that is trained or converted here; it does nothing for one that is used as it is."""

from __future__ import annotations

from typing import Annotated, Any

from flows.forms import SETTINGS, Form
from flows.results import finished, nothing_to_make
from flows.runs import open_run
from flows.stage import make_stage, nextquill_flow
from nextquill_core.config import Config
from tasks.ui import publish_model


@nextquill_flow("model")
def model(config: Annotated[Config, Form("model")] = SETTINGS, force: bool = False) -> dict[str, Any]:
    """Make the base model: train the offline one (`model.name_or_path: tiny`), or convert one from GGUF.

    Args:
        config: The run's settings.
        force: Make it again, even where it is up to date.
    """
    run = open_run(config)
    if run.plan.model is None:
        return nothing_to_make("model", f"{config.model.name_or_path} is used as it is")
    (outcome,) = make_stage(run, "model", [run.plan.model], force=force)
    publish_model(run, outcome)
    return finished("model", outcome)

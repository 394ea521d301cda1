"""The offline base model's stage; does nothing where the model comes from outside."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.states import Completed

from flows.results import as_result, finished, run_name
from flows.runs import open_run
from nextquill_core.config import Config
from tasks.model import train_base_model


@flow(name="model", persist_result=False, flow_run_name=run_name)
def model(config: Config, force: bool = False) -> dict[str, Any]:
    """Train the offline base model that `model.name_or_path: tiny` asks for."""
    outcome = train_base_model(open_run(config), force)
    if outcome is None:
        return as_result(Completed(message=f"model: {config.model.name_or_path} comes from outside", data={}))
    return finished("model", outcome)

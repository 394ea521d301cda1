"""The ingest stage: raw reviews into user sequences."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.results import finished, run_name
from nextquill_core.config import Config
from nextquill_core.stages.run import Run
from tasks.ingest import make_sequences, publish_account


@flow(name="ingest", persist_result=False, flow_run_name=run_name)
def ingest(config: Config, force: bool = False) -> dict[str, Any]:
    """Read raw reviews and items, apply the protocol, write sequences, items, examples and quarantine."""
    outcome = make_sequences(Run(config), force)
    publish_account(outcome)
    return finished("ingest", outcome)

"""The ingest stage: raw reviews into user sequences."""

from __future__ import annotations

from typing import Annotated, Any

from flows.forms import SETTINGS, Form
from flows.results import finished
from flows.runs import open_run
from flows.stage import make_stage, nextquill_flow
from nextquill_core.config import Config
from tasks.steps import forget_users
from tasks.ui import publish_account


@nextquill_flow("ingest")
def ingest(config: Annotated[Config, Form("ingest", "privacy")] = SETTINGS, force: bool = False) -> dict[str, Any]:
    """Scan raw reviews and items, apply the protocol, write sequences, items, examples and quarantine.

    Args:
        config: The run's settings.
        force: Read and write everything again, even where it is up to date.
    """
    run = open_run(config)
    steps = [*run.plan.scans.values(), run.plan.ingest]  # in turn: each scan uses every core and most of the memory
    *_, outcome = make_stage(run, "ingest", steps, force=force, prepare=forget_users)
    publish_account(run, outcome)
    return finished("ingest", outcome)

"""The ingest stage: raw reviews into user sequences."""

from __future__ import annotations

from typing import Annotated, Any

from flows.forms import SETTINGS, Form
from flows.results import announce, finished
from flows.runs import open_run
from flows.slurm import made_by_job
from flows.stage import our_flow
from nextquill_core.config import Config
from nextquill_core.pipeline.run import Outcome, Run
from tasks.ingest import forget_users, make_sequences, publish_account, scan_raw
from tasks.reasons import publish_reasons


@our_flow("ingest")
def ingest(config: Annotated[Config, Form("ingest", "privacy")] = SETTINGS, force: bool = False) -> dict[str, Any]:
    """Scan raw reviews and items, apply the protocol, write sequences, items, examples and quarantine.

    Args:
        config: The run's settings.
        force: Read and write everything anew, even where it is fresh.
    """
    run = open_run(config)
    publish_reasons(run, "ingest", [run.plan.ingest, *run.plan.scans.values()], force)
    made = made_by_job(run, "ingest", [run.plan.ingest], force=force)
    outcome = made[0] if made else _sequences(run, force)
    publish_account(run, outcome)
    return finished("ingest", outcome)


def _sequences(run: Run, force: bool) -> Outcome:
    if run.config.privacy.forget:
        forget_users(run)
    for category in run.plan.scans:  # one after the other: each uses every core and as much memory as there should be
        scanned = scan_raw(run, category, force)
        if not scanned.reused:
            announce(f"scan of {category}", scanned)
    return make_sequences(run, force)

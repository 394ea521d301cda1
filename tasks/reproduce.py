"""Reproduce: our numbers and the published ones, in the UI too."""

from __future__ import annotations

from prefect.artifacts import create_markdown_artifact

from nextquill_core.pipeline.run import Outcome, Run
from nextquill_core.studies import reproduce
from tasks.definition import our_task


@our_task()
def collect_numbers(runs: list[Run], force: bool) -> Outcome:
    """The tables of all categories."""
    outcome = reproduce.collect(runs, force=force)
    create_markdown_artifact(
        key="reproduction",
        markdown=(outcome.artifact.folder / reproduce.TABLES).read_text(encoding="utf-8"),
        description=f"Our numbers / the published ones ({outcome.artifact.manifest.fingerprint})",
    )
    return outcome

"""Reproduce: our numbers and the published ones, in the UI too."""

from __future__ import annotations

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from nextquill_core.pipeline.run import Outcome, Run
from nextquill_core.studies import reproduce
from tasks.retries import RETRIED


@task(cache_policy=NO_CACHE, persist_result=False, **RETRIED)
def collect_numbers(runs: list[Run], force: bool) -> Outcome:
    """The tables of all categories."""
    outcome = reproduce.collect(runs, force=force)
    create_markdown_artifact(
        key="reproduction",
        markdown=(outcome.artifact.folder / reproduce.TABLES).read_text(encoding="utf-8"),
        description=f"Our numbers / the published ones ({outcome.artifact.manifest.fingerprint})",
    )
    return outcome

"""A flow that does with stages what the pipeline does, and trains nothing."""

from __future__ import annotations

from prefect import flow

from flows.ingest import ingest
from flows.runs import open_run
from flows.server.events import watch_quality
from nextquill_core.config import Config


@flow(name="outer", persist_result=False)
def outer(config: Config) -> None:
    """A stage inside another flow's run, and a look at an adapter that is there."""
    ingest(config)
    watch_quality(open_run(config), config.train.method)

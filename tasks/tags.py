"""Tags of flow runs in Prefect, by which the UI filters them."""

from __future__ import annotations

import logging

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext


def tag_run(*tags: str) -> None:
    """Add tags to the current flow run; if the server refuses, the run continues without them."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    run = context.flow_run
    run.tags = list(dict.fromkeys([*run.tags, *tags]))
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(run.id, tags=run.tags)
    except Exception as error:
        logging.getLogger(__name__).warning("flow run %s was not tagged: %s", run.name, error)

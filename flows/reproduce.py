"""The paper's table, from raw files to our numbers beside the published ones."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.pipeline import pipeline
from flows.results import finished
from flows.runs import open_run
from flows.timeouts import timeout_s
from nextquill_core.config import Config
from nextquill_core.stages.reproduce import whole_table
from tasks.reproduce import collect_numbers


@flow(name="reproduce", persist_result=False, timeout_seconds=timeout_s("reproduce"))
def reproduce(configs: list[Config], force: bool = False) -> dict[str, Any]:
    """Run the pipeline on each configuration with every method of the paper's table, and set the numbers side by side.

    Args:
        configs: One for each category, as the paper trains them, all in one store.
        force: Make everything anew.
    """
    whole = [whole_table(config) for config in configs]
    for config in whole:
        pipeline(config, force=force)
    return finished("reproduce", collect_numbers([open_run(config) for config in whole], force))

"""The paper's table, from raw files to our numbers beside the published ones."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from flows.forms import SETTINGS
from flows.pipeline import PipelineSettings, pipeline
from flows.results import finished
from flows.runs import open_run
from flows.stage import nextquill_flow
from nextquill_core.studies.reproduce import whole_table
from tasks.ui import collect_numbers


@nextquill_flow("reproduce")
def reproduce(
    configs: Annotated[list[PipelineSettings], Field(min_length=1)] = SETTINGS, force: bool = False
) -> dict[str, Any]:
    """Run the pipeline on each configuration with every method of the paper's table, and set the numbers side by side.

    Args:
        configs: One for each category, as the paper trains them, all in one store.
        force: Make everything again.
    """
    tables = [whole_table(config) for config in configs]
    for config in tables:
        pipeline(config, force=force)
    return finished("reproduce", collect_numbers([open_run(config) for config in tables], force))

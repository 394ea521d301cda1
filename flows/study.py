"""Studies: the cells on val, what they choose, the cells on test, and one page of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from prefect.logging import get_run_logger
from pydantic import Field

from flows.forms import SETTINGS
from flows.ingest import ingest
from flows.model import model
from flows.pipeline import pipeline
from flows.results import finished
from flows.runs import open_run
from flows.score import score
from flows.stage import nextquill_flow
from flows.sweep import raise_failures, run_in_turn
from nextquill_core.config import Config
from nextquill_core.studies.study.cells import QUESTIONS, Cell, Study, is_measured, require_one_store
from nextquill_core.studies.study.collect import choices_of
from nextquill_core.studies.study.spec import StudyConfig
from tasks.sweep import collect_study


@nextquill_flow("study")
def study(
    studies: Annotated[list[StudyConfig], Field(min_length=1)] = SETTINGS,
    questions: list[Annotated[int, Field(ge=1, le=5)]] | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Run every cell that is not up to date, choose on val, and write the page.

    Args:
        studies: The studies, all in one store.
        questions: Numbers of the questions to answer; empty answers all.
        force: Write the page again; cells that are up to date are not run again.

    Raises:
        UserError: A study does not fit, or a cell failed; what the others made stays.
    """
    found = [Study(spec, open_run, questions or QUESTIONS) for spec in studies]
    require_one_store(found)
    _run([cell for one in found for cell in one.effect_cells()], scored)
    _run([cell for one in found for cell in one.val_cells()])
    chosen = [(one, choices_of(one)) for one in found]
    for one, choices in chosen:
        for name, by_method in choices.items():
            for method, choice in by_method.items():
                get_run_logger().info("%s: val chose %s for %s (%s)", one.spec.name, choice.candidate, method, name)
    _run([cell for one, choices in chosen for cell in one.test_cells(choices)])
    return finished("study", collect_study(found, force))


def scored(config: Config) -> None:
    """Make the effects of a configuration, and what they need."""
    for stage in (ingest, model, score):
        stage(config)


def _run(cells: Sequence[Cell], flow: Callable[[Config], Any] = pipeline) -> None:
    """Run the cells that are not up to date, in turn.

    Args:
        cells: The cells.
        flow: Makes everything of a cell from its configuration.

    Raises:
        UserError: Some failed, after all others have run.
    """
    waiting = [number for number, cell in enumerate(cells) if not is_measured(cell)]
    for number in sorted(set(range(len(cells))) - set(waiting)):
        get_run_logger().info("%s: reused", cells[number].label)
    if failed := run_in_turn(cells, waiting, "study", flow):
        raise_failures(cells, failed, "study")

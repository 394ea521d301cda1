"""A sweep: the pipeline at every point of a grid of settings, and one table of what they reach on val."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NoReturn

from prefect import tags
from prefect.client.orchestration import get_client
from prefect.logging import get_run_logger
from pydantic import Field

from flows.forms import REQUIRED, SETTINGS
from flows.pipeline import PipelineSettings, pipeline
from flows.results import Interrupted, finished
from flows.runs import open_run
from flows.server import outage
from flows.stage import nextquill_flow
from nextquill_core.config import Config
from nextquill_core.errors import UserError
from nextquill_core.pipeline.sweep_points import open_points, sweep_step
from nextquill_core.studies.sweep import LabelledRun, missing
from tasks.gpu_lock import gpu_lock
from tasks.sweep import collect_points, run_processes, shared_missing, slots

POINT_COMMAND = (sys.executable, "-m", "flows.sweep_point")


@nextquill_flow("sweep")
def sweep(
    config: PipelineSettings = SETTINGS,
    grid: Annotated[dict[str, list[Any]], Field(min_length=1)] = REQUIRED,
    parallel: Annotated[int | None, Field(ge=1)] = None,
    force: bool = False,
) -> dict[str, Any]:
    """Run the pipeline at every point, reusing what points share and what is fresh, and collect one table.

    Args:
        config: The settings that all points share; `evaluate.split` becomes val.
        grid: Values by dotted key; the points are all their combinations.
        parallel: Points at a time, as processes that share the cores and accelerators; empty is one for each group of
            accelerators that one training uses, and one on a CPU. One at a time runs in this process.
        force: Make the table again; points that are up to date are not.

    Raises:
        UserError: The grid does not fit, or a point failed; what the others made stays.
    """
    points = open_points(config, grid, open_run)
    logger = get_run_logger()
    waiting = [number for number, point in enumerate(points) if missing(point.run)]
    for number in sorted(set(range(len(points))) - set(waiting)):
        logger.info("%s: reused", points[number].label)
    at_a_time = min(parallel or slots(config.train.launcher), max(1, len(waiting)))
    if at_a_time == 1:
        failed = run_in_turn(points, waiting, "sweep")
    else:
        step = sweep_step(points)
        folder = points[0].run.store.root / step.kind / f".points-{step.fingerprint}"
        with gpu_lock("sweep", needed=config.train.launcher.kind != "slurm") as held:
            failed = run_processes(
                points,
                waiting,
                command=POINT_COMMAND,
                parallel=at_a_time,
                folder=folder,
                may_start=lambda: not outage.away(),  # without a server, each would end only after the same wait
                environment={**held, "PREFECT_API_URL": _api_url()},
            )
        points[0].run.look_again()
        if not failed:
            shutil.rmtree(folder, ignore_errors=True)
    if failed:
        raise_failures(points, failed, "sweep")
    return finished("sweep", collect_points(points, force))


def raise_failures(points: Sequence[LabelledRun], failed: Mapping[int, Exception], what: str) -> NoReturn:
    """Log every failure, and raise the first that is no user error, or else one user error for all of them.

    Args:
        points: All points.
        failed: The errors, by number of the point.
        what: The command, for the message.
    """
    for number, error in failed.items():
        get_run_logger().error("%s: failed: %s", points[number].label, error)
    for error in failed.values():
        if not isinstance(error, UserError):
            raise error
    number, error = next(iter(failed.items()))
    raise UserError(
        f"{len(failed)} of {len(points)} points failed, the first with: {error}",
        f"{what} {points[number].label}",
        "fix its values or leave them out; the same command keeps what the others made",
    ) from error


def run_in_turn(
    points: Sequence[LabelledRun], numbers: Sequence[int], tag: str, flow: Callable[[Config], Any] = pipeline
) -> dict[int, Exception]:
    """Run points as subflows, in turn; after a failure the others still run, unless they need what failed.

    Args:
        points: All points.
        numbers: Numbers of the points to run.
        tag: Tag of their flow runs.
        flow: Makes everything of a point from its configuration.

    Returns:
        The errors, by number of the point.
    """
    failed: dict[int, Exception] = {}
    for number in numbers:
        point = points[number]
        get_run_logger().info("%s: started", point.label)
        try:
            with tags(tag):
                flow(point.run.config)
        except Interrupted:
            raise
        except Exception as error:
            failed[number] = error
            if shared_missing(points) or outage.away():
                break
    return failed


def _api_url() -> str:
    """Return the URL of this flow run's Prefect server, which may be temporary, for the processes of the points."""
    with get_client(sync_client=True) as client:
        return str(client.api_url)

"""The points of a sweep as processes of this machine, several at a time, each with its own accelerators.

What sweeps and studies made of their points is collected here too.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger

from nextquill_core.config import LauncherConfig
from nextquill_core.pipeline.run import Outcome
from nextquill_core.pipeline.sweep_points import SPLIT, Point
from nextquill_core.studies.study import collect as study
from nextquill_core.studies.study.cells import Study
from nextquill_core.studies.sweep import LabelledRun, collect, missing, sweep_cells
from tasks.definition import our_task
from tasks.ranks.logs import limit_size
from tasks.ranks.processes import (
    cuda_devices,
    end_group,
    end_groups,
    process_count,
    process_error,
    shared_environment,
    start,
)
from tasks.ui import data_key

LOOK_EVERY_S = 1.0


class PointFailed(RuntimeError):  # noqa: N818 - says what happened
    """A point's process ended with an error; the message ends with the last lines of its log."""


@dataclass(frozen=True)
class _Running:
    process: subprocess.Popen[bytes]
    slot: int
    log: Path


def slots(launcher: LauncherConfig) -> int:
    """Return the points that run at a time: one for each group of accelerators that one training uses; one on a CPU."""
    import torch

    if launcher.kind != "local":
        return 1
    return max(1, torch.accelerator.device_count() // process_count(launcher.processes))


def run_processes(
    points: Sequence[Point],
    numbers: Sequence[int],
    *,
    command: Sequence[str],
    parallel: int,
    folder: Path,
    may_start: Callable[[], bool],
    environment: Mapping[str, str],
) -> dict[int, Exception]:
    """Run points as processes, no two of which make the same artifact at the same time.

    A point waits while another one makes an artifact that it needs too, and then finds it made.

    Args:
        points: All points of the sweep.
        numbers: Numbers of the points to run.
        command: Command line of a process; the path of its order follows.
        parallel: Number of processes at a time.
        folder: Receives orders and logs.
        may_start: Says after each failure whether it is useful to start more points.
        environment: Environment variables of all processes, besides those of this process; they name the Prefect
            server that all report to.

    Returns:
        The errors, by number of the point. The other points have run to their ends, unless all need what failed
        or no more may start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environments = [slot_environment(slot, parallel) | dict(environment) for slot in range(parallel)]
    free, waiting = list(range(parallel)), list(numbers)
    running: dict[int, _Running] = {}
    failed: dict[int, Exception] = {}
    try:
        while running or waiting:
            for number in startable(points, waiting, list(running))[: len(free)]:
                running[number] = _start(command, points[number], number, free.pop(0), environments, folder)
                waiting.remove(number)
                get_run_logger().info("%s: started, log %s", points[number].label, running[number].log)
            time.sleep(LOOK_EVERY_S)
            for number, run in list(running.items()):
                limit_size(run.log)
                if (code := run.process.poll()) is None:
                    continue
                end_group(running.pop(number).process)
                free.append(run.slot)
                get_run_logger().info("%s: %s", points[number].label, "failed" if code else "done")
                if code:
                    failed[number] = process_error(PointFailed, points[number].label, code, run.log)
                    if shared_missing(points) or not may_start():
                        waiting.clear()
    finally:
        end_groups([run.process for run in running.values()])
    return failed


def shared_missing(points: Sequence[LabelledRun]) -> bool:
    """Return whether an artifact that all points need is missing."""
    return bool(set.intersection(*(missing(point.run) for point in points)))


def slot_environment(slot: int, parallel: int) -> dict[str, str]:
    """Return the environment of the points in one slot: a share of the cores and, where there are any, CUDA devices."""
    environment = shared_environment(parallel)
    if devices := cuda_devices():
        share = max(1, len(devices) // parallel)
        first = slot * share % len(devices)
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices[first : first + share])
    return environment


@our_task()
def collect_points(points: Sequence[Point], force: bool) -> Outcome:
    """Make the table of all points, and show it in the UI."""
    outcome = collect(points, force=force)
    fingerprint = outcome.artifact.manifest.fingerprint
    create_table_artifact(
        key=data_key("sweep", points[0].run.config),
        table=sweep_cells(outcome.artifact),
        description=f"Points by metrics on {SPLIT}, 95 % bootstrap intervals over users ({fingerprint})",
    )
    return outcome


@our_task()
def collect_study(studies: Sequence[Study], force: bool) -> Outcome:
    """Make the page of studies, and show it in the UI."""
    outcome = study.collect(studies, force=force)
    names = ", ".join(one.spec.name for one in studies)
    create_markdown_artifact(
        key="study",
        markdown=(outcome.artifact.folder / study.PAGE).read_text(encoding="utf-8"),
        description=f"Results of {names} ({outcome.artifact.manifest.fingerprint})",
    )
    return outcome


def startable(points: Sequence[Point], waiting: Sequence[int], running: Sequence[int]) -> list[int]:
    """Return the waiting points that can start together: none makes what another one or a running one makes.

    Args:
        points: All points of the sweep.
        waiting: Numbers of the points that have not started.
        running: Numbers of the points that run.
    """
    busy = set[tuple[str, str]]().union(*(missing(points[number].run) for number in running))
    found = []
    for number in waiting:
        needs = missing(points[number].run)
        if not needs & busy:
            busy |= needs
            found.append(number)
    return found


def _start(
    command: Sequence[str],
    point: Point,
    number: int,
    slot: int,
    environments: Sequence[Mapping[str, str]],
    folder: Path,
) -> _Running:
    order, log = folder / f"point-{number:03d}.yaml", folder / f"point-{number:03d}.log"
    config = point.run.config.model_dump(mode="json")
    settings = {"label": point.label, "keys": list(point.values), "config": config}
    order.write_text(yaml.safe_dump(settings), encoding="utf-8")
    log.unlink(missing_ok=True)
    return _Running(start([*command, str(order)], log, environments[slot]), slot, log)

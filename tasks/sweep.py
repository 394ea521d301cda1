"""The points of a sweep as processes of this machine, several at a time, each with accelerators of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from prefect.artifacts import create_table_artifact

from nextquill_core.config import LauncherConfig
from nextquill_core.pipeline.run import Outcome
from nextquill_core.studies.sweep import SPLIT, Point, collect, missing, sweep_cells
from tasks.artifacts import data_key
from tasks.definition import our_task
from tasks.ranks.logs import bounded
from tasks.ranks.processes import cuda_devices, end_group, end_groups, failure, process_count, shared_environment, start

WORKER = "flows.sweep_point"
LOOK_EVERY_S = 1.0


class PointFailed(RuntimeError):  # noqa: N818 - says what happened
    """A point's process ended with an error; the message ends with the last lines of its log."""


@dataclass(frozen=True)
class _Running:
    process: subprocess.Popen[bytes]
    slot: int
    log: Path


def slots(launcher: LauncherConfig) -> int:
    """Points that this machine takes at a time: one a group of accelerators that one training uses; one on a CPU."""
    import torch

    if launcher.kind != "local":
        return 1
    return max(1, torch.accelerator.device_count() // process_count(launcher.processes))


def run_processes(
    points: Sequence[Point],
    numbers: Sequence[int],
    *,
    parallel: int,
    api: str,
    folder: Path,
    say: Callable[[str], None],
    may_start: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
) -> dict[int, Exception]:
    """Run points, each a flow run in a process of its own, no two of which make the same artifact.

    A point waits while another one makes something that it needs too; then it finds that made.

    Args:
        points: All of the sweep.
        numbers: Which of them to run.
        parallel: How many at a time.
        api: URL of the Prefect server that all report to.
        folder: Gets their configurations and logs.
        say: Told in one line what starts and ends.
        may_start: Asked after each failure: whether it is of use to start more points.
        environment: Variables that all of them get besides this process's own.

    Returns:
        What went wrong, by number. The others have been run to their ends, unless what failed is needed by all or no
        more may start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    common = {**(environment or {}), "PREFECT_API_URL": api}
    environments = [slot_environment(slot, parallel) | common for slot in range(parallel)]
    free, waiting = list(range(parallel)), list(numbers)
    running: dict[int, _Running] = {}
    failed: dict[int, Exception] = {}
    try:
        while running or waiting:
            for number in startable(points, waiting, list(running))[: len(free)]:
                running[number] = _start(points[number], number, free.pop(0), environments, folder)
                waiting.remove(number)
                say(f"{points[number].label}: started, log {running[number].log}")
            time.sleep(LOOK_EVERY_S)
            for number, run in list(running.items()):
                bounded(run.log)
                if (code := run.process.poll()) is None:
                    continue
                end_group(running.pop(number).process)
                free.append(run.slot)
                say(f"{points[number].label}: {'failed' if code else 'done'}")
                if code:
                    failed[number] = failure(PointFailed, points[number].label, code, run.log)
                    if shared_missing(points) or not may_start():
                        waiting.clear()
    finally:
        end_groups([run.process for run in running.values()])
    return failed


def shared_missing(points: Sequence[Point]) -> bool:
    """Whether something that all points need is not there."""
    return bool(set.intersection(*(missing(point.run) for point in points)))


def slot_environment(slot: int, parallel: int) -> dict[str, str]:
    """The environment of the points in one slot: a share of the cores, and of the CUDA devices where there are any."""
    environment = shared_environment(parallel)
    if devices := cuda_devices():
        share = max(1, len(devices) // parallel)
        first = slot * share % len(devices)
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices[first : first + share])
    return environment


@our_task()
def collect_points(points: Sequence[Point], force: bool) -> Outcome:
    """The table of all points, in the store and in the UI."""
    outcome = collect(points, force=force)
    fingerprint = outcome.artifact.manifest.fingerprint
    create_table_artifact(
        key=data_key("sweep", points[0].run.config),
        table=sweep_cells(outcome.artifact),
        description=f"Points by metrics on {SPLIT}, 95 % bootstrap intervals over users ({fingerprint})",
    )
    return outcome


def startable(points: Sequence[Point], waiting: Sequence[int], running: Sequence[int]) -> list[int]:
    """Those of the waiting points that could all start now: none makes what another or a running one is to make."""
    busy = set[tuple[str, str]]().union(*(missing(points[number].run) for number in running))
    found = []
    for number in waiting:
        needs = missing(points[number].run)
        if not needs & busy:
            busy |= needs
            found.append(number)
    return found


def _start(point: Point, number: int, slot: int, environments: Sequence[Mapping[str, str]], folder: Path) -> _Running:
    order, log = folder / f"point-{number:03d}.yaml", folder / f"point-{number:03d}.log"
    config = point.run.config.model_dump(mode="json")
    settings = {"label": point.label, "keys": list(point.values), "config": config}
    order.write_text(yaml.safe_dump(settings), encoding="utf-8")
    log.unlink(missing_ok=True)
    return _Running(start([sys.executable, "-m", WORKER, str(order)], log, environments[slot]), slot, log)

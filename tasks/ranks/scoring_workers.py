"""Scoring workers as processes of this machine, one an accelerator; they share the shards among themselves."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path

from nextquill_core.causal.job import ScoreJob
from nextquill_core.causal.shard_queue import Board
from nextquill_core.causal.tally import Tally
from nextquill_core.progress import Progress
from storage.masked_output import mask_files
from tasks.ranks.logs import bounded
from tasks.ranks.processes import end_group, end_groups, failure, shared_environment, start

WORKER = "nextquill_core.causal.worker"
LOOK_EVERY_S = 0.25
logger = logging.getLogger(__name__)


class WorkersFailed(RuntimeError):  # noqa: N818 - says what happened
    """A worker could not go on, or none was left; the message ends with the last lines of its log."""


def run_workers(job: Path, progress: Progress, *, workers: int) -> None:
    """Work on a job until every shard is settled; the caller looks at what failed (`Board.check`).

    One worker is this process itself. Of several, one that is killed, or whose device is lost, leaves its shards to the
    others; one that ends with an error of its own ends them all, because the others would run into it as well.

    Args:
        job: The job's file (`ScoreJob`); the workers' logs appear beside it.
        progress: Told the examples that are done, by all workers together.
        workers: How many.

    Raises:
        UserError: A worker refused its input.
        WorkersFailed: A worker failed otherwise, or all were killed before the work was done.
    """
    from nextquill_core.causal.worker import DEVICE_LOST, work_alone

    if workers == 1:
        work_alone(job, progress)
        return
    board = Board.of(ScoreJob.load(job))
    tally = Tally(board, progress)
    logs = {number: job.parent / f"worker-{number}.log" for number in range(workers)}
    environment = shared_environment(workers)
    running: dict[int, subprocess.Popen[bytes]] = {}
    lost: dict[int, int] = {}
    try:
        for number, log in logs.items():
            log.unlink(missing_ok=True)
            running[number] = start(worker_command(job, number), log, environment)
        while running:
            time.sleep(LOOK_EVERY_S)
            tally.show(board.reports())
            for log in logs.values():
                bounded(log)
            for number, code in [(number, process.poll()) for number, process in running.items()]:
                if code is None:
                    continue
                end_group(running.pop(number))
                if code < 0 or code == DEVICE_LOST:
                    lost[number] = code
                    logger.warning("worker %d ended with exit code %d; %d go on", number, code, len(running))
                elif code:
                    raise failure(WorkersFailed, f"worker {number}", code, logs[number])
    finally:
        end_groups(list(running.values()))
        mask_files(logs.values())
    tally.show(board.reports())
    if lost and not all(board.settled(number) for number in board.shards):
        number, code = next(iter(lost.items()))
        raise failure(WorkersFailed, f"all workers were lost: worker {number}", code, logs[number])


def worker_command(job: Path, number: int) -> list[str]:
    """The command line of one worker, on a device of its own as far as there are enough."""
    return [sys.executable, "-m", WORKER, str(job), "--name", str(number), "--device", device_of(number)]


def device_of(number: int) -> str:
    """The device of a worker by its number: the accelerators in turn, or the CPU."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return f"{accelerator.type}:{number % torch.accelerator.device_count()}" if accelerator else "cpu"

"""Scoring workers as processes of this machine, one per accelerator, which share the shards of one job."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path

from nextquill_core.causal.shard_queue import ScoringProgress, ShardQueue
from nextquill_core.orders import ScoreOrder
from nextquill_core.progress import Progress
from storage.masked_output import mask_files
from tasks.ranks.logs import limit_size
from tasks.ranks.processes import end_group, end_groups, process_error, shared_environment, start

WORKER = "nextquill_core.causal.worker"
POLL_S = 0.25
logger = logging.getLogger(__name__)


class WorkersFailed(RuntimeError):  # noqa: N818 - says what happened
    """Raised when a worker fails or all were killed; the message ends with the last lines of a log."""


def run_workers(job: Path, progress: Progress, *, workers: int) -> None:
    """Work on a job until every shard is settled; the caller looks at what failed (`ShardQueue.check`).

    A single worker runs in this process. If one of several is killed or loses its device, the others take over its
    shards. If one fails with an error, all are ended, because the others would run into the same error.

    Args:
        job: The job's file (`ScoreOrder`); the workers' logs appear beside it.
        progress: Called with the number of examples that all workers together have done.
        workers: Number of workers.

    Raises:
        UserError: A worker found invalid input.
        WorkersFailed: A worker failed for another reason, or all were killed before the work was done.
    """
    from nextquill_core.causal.worker import DEVICE_LOST, work_alone

    if workers == 1:
        work_alone(job, progress)
        return
    queue = ShardQueue.of(ScoreOrder.load(job))
    shown = ScoringProgress(queue, progress)
    logs = {number: job.parent / f"worker-{number}.log" for number in range(workers)}
    environment = shared_environment(workers)
    running: dict[int, subprocess.Popen[bytes]] = {}
    lost: dict[int, int] = {}
    try:
        for number, log in logs.items():
            log.unlink(missing_ok=True)
            running[number] = start(worker_command(job, number), log, environment)
        while running:
            time.sleep(POLL_S)
            shown.show(queue.reports())
            for log in logs.values():
                limit_size(log)
            for number, code in [(number, process.poll()) for number, process in running.items()]:
                if code is None:
                    continue
                end_group(running.pop(number))
                if code < 0 or code == DEVICE_LOST:
                    lost[number] = code
                    logger.warning("worker %d ended with exit code %d; %d continue", number, code, len(running))
                elif code:
                    raise process_error(WorkersFailed, f"worker {number}", code, logs[number])
    finally:
        end_groups(list(running.values()))
        mask_files(logs.values())
    shown.show(queue.reports())
    if lost and not queue.all_settled():
        number, code = next(iter(lost.items()))
        raise process_error(WorkersFailed, f"all workers were lost: worker {number}", code, logs[number])


def worker_command(job: Path, number: int) -> list[str]:
    """Return the command line of one worker; workers share devices if there are too few."""
    return [sys.executable, "-m", WORKER, str(job), "--name", str(number), "--device", device_of(number)]


def device_of(number: int) -> str:
    """Return the device of a worker by its number: the accelerators in turn, or the CPU."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return f"{accelerator.type}:{number % torch.accelerator.device_count()}" if accelerator else "cpu"

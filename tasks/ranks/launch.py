"""Starting the ranks of a training run with the DeepSpeed launcher, and leaving none behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from nextquill_core.errors import UserError
from nextquill_core.progress import PhaseFile, Progress, silent
from nextquill_core.training.engine import deepspeed_installed
from nextquill_core.training.failures import first_failed, logs_by_rank, rank_logs
from nextquill_core.training.spec import PHASE, TrainSpec
from storage.masked_output import mask_files
from tasks.ranks.logs import bounded
from tasks.ranks.node import WORKER, launcher_command, rank_environment
from tasks.ranks.placement import Placement, Starter, free_port
from tasks.ranks.processes import end_group, failure, start
from tasks.ranks.tail import Follower, RankLogs

METRICS = "metrics.jsonl"
LET_GO_S = 15.0
HERE = "127.0.0.1"
"""Where ranks meet that are all on this machine."""


class RanksFailed(RuntimeError):  # noqa: N818 - says what happened
    """A launcher ended with an error; the message ends with the last lines of the rank that failed first."""


def run_ranks(
    order: Path,
    log: Path,
    *,
    ranks: Placement,
    on_step: Callable[[dict[str, float]], None],
    on_phase: Progress = silent,
) -> None:
    """Run a training order to its end.

    On this machine, the launcher gets a process group of its own and is told by the kernel when this process dies; each
    rank watches the launcher. On other machines, a process before the launcher does the same, and watches the pipe from
    here. So however this process ends, no rank outlives it.

    Args:
        order: The worker's order (`TrainSpec`); metrics appear in the folder it names, each rank's output beside it.
        log: Gets all output of launchers and ranks.
        ranks: Number of processes on this machine, or which other machines run them.
        on_step: Called with the metrics of each optimizer step soon after it is done.
        on_phase: Called while the ranks do something other than steps, such as validating, several times a second; once
            without a phase when that has ended.

    Raises:
        UserError: DeepSpeed is needed and not installed, or a rank refused its input.
        RanksFailed: A rank failed otherwise.
    """
    output_folder = Path(TrainSpec.load(order).output)
    metrics, phase = Follower(output_folder / METRICS), PhaseFile(output_folder / PHASE)
    phase.clear()
    starters = _starters(order, ranks)
    shutil.rmtree(rank_logs(order), ignore_errors=True)
    rank_logs(order).mkdir()
    output = RankLogs(order, log)
    elsewhere = not isinstance(ranks, int)
    environment = rank_environment(ranks, HERE) if isinstance(ranks, int) else dict(os.environ)
    running: list[subprocess.Popen[bytes]] = []
    try:
        for starter in starters:
            process = start(starter.command, log, environment, orphan_signal=starter.orphan_signal, held=elsewhere)
            running.append(process)  # one by one, so that all that have started are ended
            if starter.secrets and process.stdin:
                with suppress(BrokenPipeError):  # a remote shell that has ended is seen below
                    process.stdin.write(json.dumps(dict(starter.secrets)).encode() + b"\n")
                    process.stdin.flush()
        while (codes := [process.poll() for process in running]).count(None) and not any(codes):
            time.sleep(0.25)
            metrics.follow(on_step)
            phase.show(on_phase)
            output.follow()
            bounded(log)
        metrics.follow(on_step)
    finally:
        _end(running)
        output.follow(ended=True)
        bounded(log)
        mask_files([log, *logs_by_rank(order).values()])
    if any(codes):
        raise _failed(order, log, next(code for code in codes if code))


def _starters(order: Path, ranks: Placement) -> list[Starter]:
    if not isinstance(ranks, int):
        return ranks.starters(order)
    if not deepspeed_installed():
        _refuse_more_than_one_process(TrainSpec.load(order), ranks)
        return [Starter([sys.executable, "-u", "-m", WORKER, str(order)])]
    return [Starter(launcher_command(order, {"localhost": ranks}, 0, HERE, free_port()))]


def _refuse_more_than_one_process(spec: TrainSpec, ranks: int) -> None:
    """ZeRO 1 and 2 shard nothing where there is one rank; the rest is beyond one process of plain torch."""
    asked = {
        "several ranks": ranks != 1,
        "ZeRO 3": spec.zero_stage == 3,
        "offloading": spec.offload != "none",
        "train.deepspeed.config": spec.deepspeed is not None,
    }
    if needs := [name for name, wanted in asked.items() if wanted]:
        raise UserError(
            f"{' and '.join(needs)} need DeepSpeed, which is not installed",
            "train",
            "pip install 'nextquill[deepspeed]' (Linux), or leave train.launcher and train.deepspeed as they are",
        )


def _end(running: list[subprocess.Popen[bytes]]) -> None:
    """End launchers and ranks; those elsewhere end by themselves when their pipe is closed, and are waited for."""
    for process in running:
        if process.stdin:
            process.stdin.close()
    deadline = time.monotonic() + LET_GO_S
    for process in running:
        while process.stdin and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        end_group(process)


def _failed(order: Path, log: Path, code: int) -> Exception:
    rank = first_failed(order)
    own_log = logs_by_rank(order).get(rank) if rank is not None else None
    what = "training" if own_log is None else f"training failed first on rank {rank} and"
    return failure(RanksFailed, what, code, log, part=own_log)

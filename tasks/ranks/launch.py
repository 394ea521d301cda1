"""Run a training order: start its ranks, follow their metrics and logs, and leave no rank behind."""

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
from nextquill_core.orders import TrainOrder
from nextquill_core.progress import PhaseFile, Progress, silent
from nextquill_core.training.curves import METRICS
from nextquill_core.training.engines import deepspeed_installed
from nextquill_core.training.ranks import PHASE, first_failed, logs_by_rank, rank_logs
from storage.masked_output import mask_files
from tasks.ranks.logs import LineReader, RankLogs, limit_size
from tasks.ranks.node import WORKER, launcher_command, lone_rank_environment, rank_environment
from tasks.ranks.placement import Placement, Starter, free_port
from tasks.ranks.processes import end_group, process_error, start
from tasks.waiting import wait_until

CLOSING_S = 15.0
"""Seconds that launchers on other machines have to end after their pipe is closed."""
POLL_S = 0.25
HERE = "127.0.0.1"
"""Address at which ranks meet that are all on this machine."""


class RanksFailed(RuntimeError):  # noqa: N818 - says what happened
    """Raised when a launcher ends with an error; the message ends with the last lines of the rank that failed first."""


def run_ranks(
    order: Path,
    log: Path,
    *,
    ranks: Placement,
    on_step: Callable[[dict[str, float]], None],
    on_phase: Progress = silent,
) -> None:
    """Run a training order to its end.

    No rank outlives this process, however it ends. On this machine the launcher has its own session, the kernel ends
    it when this process dies, and each rank watches the launcher; a lone rank needs no launcher. On another machine a
    process of ours starts the launcher, and ends it when the pipe from this process is closed.

    Args:
        order: The worker's order (`TrainOrder`); metrics appear in the folder it names, each rank's output beside it.
        log: File to which all output of launchers and ranks is appended.
        ranks: Number of processes on this machine, or the other machines that run them.
        on_step: Called with the metrics of each optimizer step soon after the step.
        on_phase: Called several times a second while the ranks do anything but steps, such as validating; called once
            without a phase when that has ended.

    Raises:
        UserError: DeepSpeed is needed and not installed, or a rank found invalid input.
        RanksFailed: A rank failed for another reason.
    """
    output_folder = TrainOrder.load(order).output
    metrics, phase = LineReader(output_folder / METRICS), PhaseFile(output_folder / PHASE)
    phase.clear()
    starters = _starters(order, ranks)
    shutil.rmtree(rank_logs(order), ignore_errors=True)
    rank_logs(order).mkdir()
    output = RankLogs(order, log)
    elsewhere = not isinstance(ranks, int)
    running: list[subprocess.Popen[bytes]] = []
    try:
        for starter in starters:
            environment = dict(starter.environment or os.environ)
            process = start(
                starter.command, log, environment, orphan_signal=starter.orphan_signal, stdin_pipe=elsewhere
            )
            running.append(process)  # at once, so that each one that has started is ended
            if starter.secrets and process.stdin:
                with suppress(BrokenPipeError):  # the loop below reports a remote shell that has ended
                    process.stdin.write(json.dumps(dict(starter.secrets)).encode() + b"\n")
                    process.stdin.flush()
        while (codes := [process.poll() for process in running]).count(None) and not any(codes):
            time.sleep(POLL_S)
            _report_steps(metrics, on_step)
            phase.show(on_phase)
            output.merge()
            limit_size(log)
        _report_steps(metrics, on_step)
    finally:
        _end(running)
        output.merge(ended=True)
        limit_size(log)
        mask_files([log, *logs_by_rank(order).values()])
    if any(codes):
        raise _failed(order, log, next(code for code in codes if code), elsewhere=elsewhere)


def _starters(order: Path, ranks: Placement) -> list[Starter]:
    if not isinstance(ranks, int):
        return ranks.starters(order)
    if not deepspeed_installed():
        _refuse_more_than_one_process(TrainOrder.load(order), ranks)
    environment = rank_environment(ranks, HERE)
    if ranks == 1:  # needs no launcher, which would import torch and DeepSpeed for seconds to start it
        alone = [sys.executable, "-u", "-m", WORKER, str(order)]
        return [Starter(alone, environment=environment | lone_rank_environment(HERE, free_port()))]
    launcher = launcher_command(order, {"localhost": ranks}, 0, HERE, free_port())
    return [Starter(launcher, environment=environment)]


def _report_steps(metrics: LineReader, on_step: Callable[[dict[str, float]], None]) -> None:
    for line in metrics.read():
        on_step(json.loads(line))


def _refuse_more_than_one_process(order: TrainOrder, ranks: int) -> None:
    """Refuse what needs DeepSpeed; with one rank, ZeRO 1 and 2 shard nothing and need none."""
    asked = {
        "several ranks": ranks != 1,
        "ZeRO 3": order.train.deepspeed.zero_stage == 3,
        "offloading": order.train.deepspeed.offload != "none",
        "train.deepspeed.config": order.deepspeed_json is not None,
    }
    if needs := [name for name, wanted in asked.items() if wanted]:
        raise UserError(
            f"{' and '.join(needs)} need DeepSpeed, which is not installed",
            "train",
            "pip install 'nextquill[deepspeed]' (Linux), or leave train.launcher and train.deepspeed as they are",
        )


def _end(running: list[subprocess.Popen[bytes]]) -> None:
    """End launchers and ranks; those on other machines end when their pipe is closed, and are waited for."""
    for process in running:
        if process.stdin:
            process.stdin.close()
    elsewhere = [process for process in running if process.stdin]
    wait_until(lambda: all(process.poll() is not None for process in elsewhere), CLOSING_S, poll_s=0.1)
    for process in running:
        end_group(process)


def _failed(order: Path, log: Path, code: int, *, elsewhere: bool) -> Exception:
    rank = first_failed(order)
    own_log = logs_by_rank(order).get(rank) if rank is not None else None
    what = "training" if own_log is None else f"training failed first on rank {rank} and"
    return process_error(RanksFailed, what, code, log, part=own_log or (log if elsewhere else None))

"""Child processes: start them so that none outlives this process, end them, and report why they failed."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import psutil

from nextquill_core.errors import UserError
from storage.redaction import redact
from tasks.ranks.logs import last_lines
from tasks.waiting import wait_until

INVALID_INPUT = 2
"""Exit code of a process that found invalid input."""
TAIL_LINES = 40
"""Lines of a log that an error message ends with."""
KILLED_WITHIN_S = 5.0
"""Seconds that the kernel has to end processes after SIGKILL."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def start(
    command: Sequence[str],
    log: Path | None,
    environment: Mapping[str, str],
    *,
    orphan_signal: signal.Signals = signal.SIGKILL,
    stdin_pipe: bool = False,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process in a new session, which the kernel ends when this process dies.

    Args:
        command: Program and arguments.
        log: File to which the output is appended; None lets the process write to this process's output.
        environment: All environment variables of the process.
        orphan_signal: Signal that the kernel (Linux) sends to the process when this one has died.
        stdin_pipe: Whether the standard input is a pipe from this process, which is closed when this process ends.
        pass_fds: File descriptors that the process inherits.
    """

    with log.open("ab") if log else nullcontext() as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE if stdin_pipe else None,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            pass_fds=pass_fds,
            preexec_fn=partial(set_orphan_signal, orphan_signal) if sys.platform == "linux" else None,
        )


def set_orphan_signal(orphan_signal: signal.Signals) -> None:
    """Let the kernel (Linux) send this signal to the calling process when the thread that started it has ended."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, orphan_signal)


def shared_environment(processes: int) -> dict[str, str]:
    """Return this process's environment for each of several processes that share the cores evenly."""
    environment = dict(os.environ)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment["OMP_NUM_THREADS"] = str(max(1, cores // processes))
    environment["TOKENIZERS_PARALLELISM"] = "false"
    return environment


def process_count(setting: int | str) -> int:
    """Return the number of processes that a setting means; `auto` is one per accelerator, or one on a CPU."""
    if setting != "auto":
        return int(setting)
    import torch

    return max(1, torch.accelerator.device_count())


def cuda_devices() -> list[str]:
    """Return the CUDA devices of this process, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return named[:count] if named else [str(number) for number in range(count)]


def process_error(kind: type[Exception], what: str, code: int, log: Path, part: Path | None = None) -> Exception:
    """Return the error for a process that failed.

    A process that found invalid input ends with exit code 2 and a line that begins with `nextquill: `, which becomes
    the error. Such a line before another exit code, as an interruption prints it, does not. Any other failure is
    reported with the last lines of its log.

    Args:
        kind: Class of the error if the process printed no such line.
        what: Name of the process for the message.
        code: Its exit code.
        log: File with all output, which the message names.
        part: File with the output of the process that failed first, whose exit code a launcher may have replaced; None
            if it is not known.
    """
    tail = last_lines(part or log, TAIL_LINES)
    lines = [line.removeprefix("nextquill: ").strip() for line in tail if line.startswith("nextquill: ")]
    if lines and (code == INVALID_INPUT or part):
        return UserError(lines[-1])  # an earlier one may come from an earlier attempt
    return kind(f"{what} ended with exit code {code}; the log is {log}, its last lines:\n{redact(''.join(tail))}")


def end_group(leader: subprocess.Popen[bytes], *, patience_s: float = 10.0) -> None:
    """End a process and all that it has started in its session; return when none is left."""
    end_groups([leader], patience_s=patience_s)


def end_groups(leaders: Sequence[subprocess.Popen[bytes]], *, patience_s: float = 10.0) -> None:
    """End several processes at the same time, each with all that it has started in its session.

    Args:
        leaders: Processes that lead sessions, as `start` makes them.
        patience_s: Seconds that all of them together have after SIGTERM, before they get SIGKILL.
    """
    for signum, seconds in ((signal.SIGTERM, patience_s), (signal.SIGKILL, KILLED_WITHIN_S)):
        for leader in filter(_group_alive, leaders):
            with suppress(ProcessLookupError):
                os.killpg(leader.pid, signum)
        if wait_until(lambda: not any(map(_group_alive, leaders)), seconds, poll_s=0.1):
            break
    for leader in leaders:
        leader.wait()


def end_descendants(within_s: float = 1.0) -> None:
    """Kill every process that this one has started, directly or not, in whatever session it is.

    On Linux this process adopts processes that lose their parent meanwhile, so none escapes while the tree falls.

    Args:
        within_s: Seconds after which the function returns even if a process is left.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    deadline = time.monotonic() + within_s
    while (left := _descendants()) and time.monotonic() < deadline:
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.02)


def _descendants() -> list[psutil.Process]:
    with suppress(psutil.Error):
        return [process for process in psutil.Process().children(recursive=True) if is_running(process)]
    return []


def is_running(process: psutil.Process) -> bool:
    """Return whether a process still runs; a zombie, which its parent has not reaped yet, does not."""
    with suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _group_alive(leader: subprocess.Popen[bytes]) -> bool:
    leader.poll()  # reaps the leader, which would otherwise count as alive
    try:
        os.killpg(leader.pid, 0)
    except ProcessLookupError:
        return False
    return True

"""Processes of our own on this machine: started so that none outlives us, and their failures told in full."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from nextquill_core.errors import UserError
from storage.redaction import redact

TAIL_LINES = 40
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def start(
    command: Sequence[str],
    log: Path | None,
    environment: Mapping[str, str],
    *,
    orphan_signal: signal.Signals = signal.SIGKILL,
    held: bool = False,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, which the kernel ends when this process dies.

    Args:
        command: Program and arguments.
        log: Gets its output at the end; None lets it write where this process does.
        environment: Its environment.
        orphan_signal: What it gets from the kernel (Linux) when this process has died.
        held: Its standard input is a pipe from this process, which ends when this process does.
        pass_fds: Descriptors of this process that it gets too.
    """

    with log.open("ab") if log else nullcontext() as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE if held else None,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            pass_fds=pass_fds,
            preexec_fn=partial(ask_for_signal, orphan_signal) if sys.platform == "linux" else None,
        )


def ask_for_signal(orphan_signal: signal.Signals) -> None:
    """Let the kernel (Linux) send this signal to the calling process when the thread that started it has ended."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, orphan_signal)


def shared_environment(processes: int) -> dict[str, str]:
    """This process's environment for each of several: the cores shared out evenly."""
    environment = dict(os.environ)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment["OMP_NUM_THREADS"] = str(max(1, cores // processes))
    environment["TOKENIZERS_PARALLELISM"] = "false"
    return environment


def process_count(setting: int | str) -> int:
    """`auto` is a process an accelerator, or one on a CPU."""
    if setting != "auto":
        return int(setting)
    import torch

    return max(1, torch.accelerator.device_count())


def cuda_devices() -> list[str]:
    """The CUDA devices of this process, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return named[:count] if named else [str(number) for number in range(count)]


def failure(kind: type[Exception], what: str, code: int, log: Path, part: Path | None = None) -> Exception:
    """The error for a process that ended with `code`: what it told the user, or the last lines of its log.

    Args:
        kind: Which error, where the process told the user nothing.
        what: What ended.
        code: Its exit code.
        log: Where all output is.
        part: The part of it that says why, in a file of its own; None is the log itself.
    """
    with (part or log).open(encoding="utf-8", errors="replace") as file:
        tail = deque(file, maxlen=TAIL_LINES)
    for line in tail:
        if line.startswith("nextquill: "):
            return UserError(line.removeprefix("nextquill: ").strip())
    return kind(f"{what} ended with exit code {code}; the log is {log}, its last lines:\n{redact(''.join(tail))}")


def end_group(leader: subprocess.Popen[bytes], *, patience_s: float = 10.0) -> None:
    """End a process and all it has started in its session; returns when none is left."""
    end_groups([leader], patience_s=patience_s)


def end_groups(leaders: Sequence[subprocess.Popen[bytes]], *, patience_s: float = 10.0) -> None:
    """End several processes at the same time, each with all it has started in its session.

    Args:
        leaders: Processes that lead sessions, as `start` makes them.
        patience_s: Seconds that they have after SIGTERM, all together; then they get SIGKILL.
    """
    left = list(leaders)
    for signum, seconds in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 5.0)):
        for leader in left:
            with suppress(ProcessLookupError):
                os.killpg(leader.pid, signum)
        deadline = time.monotonic() + seconds
        while (left := list(filter(_group_alive, left))) and time.monotonic() < deadline:
            time.sleep(0.1)
    for leader in leaders:
        leader.wait()


def end_descendants(within_s: float = 1.0) -> None:
    """Kill everything that this process has started, and what that has started, whatever session it is in.

    On Linux this process adopts what loses its parent meanwhile, so nothing escapes while the tree falls.

    Args:
        within_s: Seconds after which it returns even if something is left.
    """
    import psutil

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        left = []
        with suppress(psutil.Error):
            left = [one for one in psutil.Process().children(recursive=True) if _running(one)]
        if not left:
            return
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.02)


def _running(process: Any) -> bool:
    """Whether a process has not ended yet; one that waits for its parent to notice has."""
    import psutil

    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _group_alive(leader: subprocess.Popen[bytes]) -> bool:
    leader.poll()  # reaps the leader, which would otherwise count as alive
    try:
        os.killpg(leader.pid, 0)
    except ProcessLookupError:
        return False
    return True

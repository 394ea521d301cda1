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
from contextlib import nullcontext
from pathlib import Path

from nextquill_core.errors import UserError

TAIL_LINES = 40
PR_SET_PDEATHSIG = 1


def start(
    command: Sequence[str],
    log: Path | None,
    environment: Mapping[str, str],
    *,
    orphan_signal: signal.Signals = signal.SIGKILL,
    held: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, which the kernel ends when this process dies.

    Args:
        command: Program and arguments.
        log: Gets its output at the end; None lets it write where this process does.
        environment: Its environment.
        orphan_signal: What it gets from the kernel (Linux) when this process has died.
        held: Its standard input is a pipe from this process, which ends when this process does.
    """

    def ask_for_signal() -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, orphan_signal)

    with log.open("ab") if log else nullcontext() as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE if held else None,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=ask_for_signal if sys.platform == "linux" else None,
        )


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
    return kind(f"{what} ended with exit code {code}; the log is {log}, its last lines:\n{''.join(tail)}")


def end_group(leader: subprocess.Popen[bytes]) -> None:
    """End a process and all it has started in its session; returns when none is left."""
    for signum, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(leader.pid, signum)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and _group_alive(leader):
            time.sleep(0.1)
    leader.wait()


def _group_alive(leader: subprocess.Popen[bytes]) -> bool:
    leader.poll()  # reaps the leader, which would otherwise count as alive
    try:
        os.killpg(leader.pid, 0)
    except ProcessLookupError:
        return False
    return True

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
from pathlib import Path

from nextquill_core.errors import UserError

TAIL_LINES = 40
PR_SET_PDEATHSIG = 1


def start(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, which the kernel ends when this process dies; output goes to `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
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


def failure(kind: type[Exception], what: str, code: int, log: Path) -> Exception:
    """The error for a process that ended with `code`: what it told the user, or the last lines of its log."""
    with log.open(encoding="utf-8", errors="replace") as file:
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


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

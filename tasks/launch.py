"""Starting the ranks of a training run with the DeepSpeed launcher, and leaving none behind."""

from __future__ import annotations

import base64
import ctypes
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from nextquill_core.errors import UserError

WORKER = "nextquill_core.training.worker"
METRICS = "metrics.jsonl"
TAIL_LINES = 40
PR_SET_PDEATHSIG = 1


class RanksFailed(RuntimeError):  # noqa: N818 - says what happened
    """The launcher ended with an error; the message ends with the last lines of the log."""


def run_ranks(order: Path, log: Path, *, ranks: int, on_step: Callable[[dict[str, float]], None]) -> None:
    """Run a training order to its end on this machine.

    The launcher gets a process group of its own and is told by the kernel when this process dies; each rank watches
    the launcher. So however this process ends, no rank outlives it by more than a second.

    Args:
        order: The worker's order (`TrainSpec`); metrics appear in the folder it names.
        log: Gets all output of launcher and ranks.
        ranks: Number of processes.
        on_step: Told the metrics of each optimizer step soon after it is done.

    Raises:
        UserError: DeepSpeed is not installed, or a rank refused its input.
        RanksFailed: A rank failed otherwise.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError("DeepSpeed is not installed", "train", "pip install deepspeed (Linux)")
    metrics = Follower(Path(json.loads(order.read_text(encoding="utf-8"))["output"]) / METRICS)
    with log.open("ab") as output:
        launcher = subprocess.Popen(
            launch_command(order, ranks),
            stdout=output,
            stderr=subprocess.STDOUT,
            env=rank_environment(ranks),
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
    try:
        while launcher.poll() is None:
            time.sleep(0.25)
            metrics.follow(on_step)
        metrics.follow(on_step)
    finally:
        _end_group(launcher)
    if launcher.returncode != 0:
        raise _failure(launcher.returncode, log)


def launch_command(order: Path, ranks: int) -> list[str]:
    """The launcher's command line for `ranks` processes on this machine."""
    world = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(ranks))}).encode()).decode()
    launcher = [sys.executable, "-m", "deepspeed.launcher.launch", f"--world_info={world}"]
    meeting_point = ["--master_addr=127.0.0.1", f"--master_port={_free_port()}"]
    return [*launcher, *meeting_point, "--no_local_rank", "--module", WORKER, str(order)]


def rank_environment(ranks: int) -> dict[str, str]:
    """The ranks' environment: the cores shared out evenly, and DeepSpeed told where there is no accelerator."""
    import torch

    environment = dict(os.environ)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment["OMP_NUM_THREADS"] = str(max(1, cores // ranks))
    environment["TOKENIZERS_PARALLELISM"] = "false"
    if not torch.accelerator.is_available():
        environment["DS_ACCELERATOR"] = "cpu"
    return environment


def rank_count(setting: int | str) -> int:
    """`auto` is a rank an accelerator, or one on a CPU."""
    if setting != "auto":
        return int(setting)
    import torch

    return max(1, torch.accelerator.device_count())


class Follower:
    """Reads the lines that another process appends to a JSON-lines file.

    A resumed run first cuts the file back; what is left of it counts as not seen yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def follow(self, on_line: Callable[[dict[str, float]], None]) -> None:
        """Hand over the complete lines that came since the last call."""
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._position:
                    self._position = 0
                file.seek(self._position)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._position += len(line)
                    on_line(json.loads(line))
        except FileNotFoundError:
            return


def _failure(code: int, log: Path) -> Exception:
    with log.open(encoding="utf-8", errors="replace") as file:
        tail = deque(file, maxlen=TAIL_LINES)
    for line in tail:
        if line.startswith("nextquill: "):
            return UserError(line.removeprefix("nextquill: ").strip())
    return RanksFailed(f"training ended with exit code {code}; the log is {log}, its last lines:\n{''.join(tail)}")


def _end_group(launcher: subprocess.Popen[bytes]) -> None:
    for signum, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(launcher.pid, signum)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and _group_alive(launcher):
            time.sleep(0.1)
    launcher.wait()


def _group_alive(launcher: subprocess.Popen[bytes]) -> bool:
    launcher.poll()  # reaps the launcher, which would otherwise count as alive
    try:
        os.killpg(launcher.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

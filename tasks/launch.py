"""Starting the ranks of a training run with the DeepSpeed launcher, and leaving none behind."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nextquill_core.errors import UserError
from tasks.processes import end_group, failure, shared_environment, start

WORKER = "nextquill_core.training.worker"
METRICS = "metrics.jsonl"


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
    launcher = start(launch_command(order, ranks), log, rank_environment(ranks))
    try:
        while launcher.poll() is None:
            time.sleep(0.25)
            metrics.follow(on_step)
        metrics.follow(on_step)
    finally:
        end_group(launcher)
    if launcher.returncode != 0:
        raise failure(RanksFailed, "training", launcher.returncode, log)


def launch_command(order: Path, ranks: int) -> list[str]:
    """The launcher's command line for `ranks` processes on this machine."""
    world = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(ranks))}).encode()).decode()
    launcher = [sys.executable, "-m", "deepspeed.launcher.launch", f"--world_info={world}"]
    meeting_point = ["--master_addr=127.0.0.1", f"--master_port={_free_port()}"]
    return [*launcher, *meeting_point, "--no_local_rank", "--module", WORKER, str(order)]


def rank_environment(ranks: int) -> dict[str, str]:
    """The ranks' environment: the cores shared out evenly, and DeepSpeed told where there is no accelerator."""
    import torch

    environment = shared_environment(ranks)
    if not torch.accelerator.is_available():
        environment["DS_ACCELERATOR"] = "cpu"
    return environment


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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

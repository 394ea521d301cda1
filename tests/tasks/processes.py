"""Processes that score or train, and a training run in a separate process, to be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from nextquill_core.config import Config
from tasks.waiting import wait_until


def _train(settings: str, method: str) -> None:
    from nextquill_core.pipeline.run import Run
    from tests.stages import ranks

    run = Run(Config.model_validate_json(settings))
    run.make(run.plan.adapters[method], launch=ranks(2))


def processes_of(module: str, folder: Path) -> dict[int, list[str]]:
    """Return the processes of this machine whose command line names a module and something below a folder, by ID."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if module in words and any(str(folder) in word for word in words):
                found[int(process.name)] = words
    return found


def workers_of(order_folder: Path) -> list[int]:
    """Return the processes of ranks and launchers whose command line names an order below the folder."""
    return list(processes_of("nextquill_core.training.worker", order_folder))


def kill_in_the_middle(config: Config, method: str, until: Callable[[], bool], timeout: float = 120) -> None:
    """Start a training, SIGKILL the process that started it once `until` holds, and wait for its ranks to end.

    Raises:
        AssertionError: It never came so far, or a rank was still alive ten seconds later.
    """
    process = multiprocessing.get_context("spawn").Process(target=_train, args=(config.model_dump_json(), method))
    process.start()
    wait_until(lambda: until() or not process.is_alive(), timeout, poll_s=0.05)
    assert until(), "the training never came so far"
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert wait_until(lambda: not workers_of(Path(config.store)), 10), "ranks outlived the process that started them"

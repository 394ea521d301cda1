"""A training run in a separate process, to be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from nextquill_core.config import Config


def _train(settings: str, method: str) -> None:
    from nextquill_core.pipeline.run import Run
    from tests.stages import ranks

    run = Run(Config.model_validate_json(settings))
    run.make(run.plan.adapters[method], launch=ranks(2))


def workers_of(order_folder: Path) -> list[int]:
    """Processes of this machine whose command line names an order below the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(order_folder) in command and "nextquill_core.training.worker" in command:
            found.append(int(process.name))
    return found


def kill_in_the_middle(config: Config, method: str, until: Callable[[], bool], timeout: float = 120) -> None:
    """Start a training, SIGKILL the process that started it once `until` holds, and wait for its ranks to end.

    Raises:
        AssertionError: It never came so far, or a rank was still alive ten seconds later.
    """
    process = multiprocessing.get_context("spawn").Process(target=_train, args=(config.model_dump_json(), method))
    process.start()
    deadline = time.monotonic() + timeout
    while not until() and time.monotonic() < deadline and process.is_alive():
        time.sleep(0.05)
    assert until(), "the training never came so far"
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    store = Path(config.store)
    deadline = time.monotonic() + 10
    while workers_of(store) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not workers_of(store), "ranks outlived the process that started them"

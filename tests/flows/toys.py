"""Small flows that do what the real ones do with places, time limits and retries: `python -m tests.flows.toys WHAT`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.stage import timeout_s
from nextquill_core.errors import UserError
from tasks.gpu_lock import gpu_lock
from tasks.ranks.processes import end_group, start
from tasks.retries import RETRIED

HANG_S = 600.0


def say(*words: object) -> None:
    print(*words, flush=True)


@task(cache_policy=NO_CACHE, persist_result=False)
def occupy(seconds: float) -> None:
    """Hold the place for training."""
    with gpu_lock("toy") as held:
        say("held", time.time(), *held.values())
        time.sleep(seconds)
    say("left", time.time())


@flow(name="hold", persist_result=False)
def hold(seconds: float) -> None:
    """A training."""
    occupy(seconds)


@task(cache_policy=NO_CACHE, persist_result=False)
def wait_for_a_child(note: str = "") -> None:
    """What `run_ranks` does while ranks train."""
    child = start(["sleep", str(HANG_S)], None, dict(os.environ))
    try:
        if note:
            Path(note).write_text(str(child.pid))
        say("child", child.pid)
        while child.poll() is None:
            time.sleep(0.25)
    finally:
        end_group(child)


@flow(name="hang", persist_result=False, timeout_seconds=timeout_s("train"))
def hang(note: str = "") -> None:
    """A stage that hangs."""
    wait_for_a_child(note)


@flow(name="hang-inside", persist_result=False, timeout_seconds=timeout_s("pipeline"))
def hang_inside() -> None:
    """A pipeline with a stage that hangs."""
    hang()


ATTEMPTS: list[int] = []


@task(cache_policy=NO_CACHE, persist_result=False, **RETRIED)
def fail(error: str, force: bool) -> None:
    """Fail on the first two attempts."""
    ATTEMPTS.append(len(ATTEMPTS))
    if len(ATTEMPTS) < 3:
        raise {"network": ConnectionResetError("the peer is gone"), "input": UserError("nan")}[error]


@flow(name="retry", persist_result=False)
def retry() -> None:
    """Tasks that fail for a reason each, without the pauses."""
    for error, force in (("network", False), ("input", False), ("network", True)):
        ATTEMPTS.clear()
        state = fail.with_options(retry_delay_seconds=0)(error, force, return_state=True)
        say("tried", error, *["by force"] * force, len(ATTEMPTS), f"times: {state.name}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["hold", seconds]:
            hold(float(seconds))
        case ["hang"]:
            hang()
        case ["hang-inside"]:
            hang_inside()
        case ["retry"]:
            retry()

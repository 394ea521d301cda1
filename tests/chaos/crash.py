"""Processes that die before one of their file operations."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.chaos.operations import Operation, watched

PRELOADED = [
    "deepspeed", "matplotlib.pyplot", "nextquill_core.analysis.figures", "nextquill_core.causal.worker", "pandas",
    "peft", "polars", "pyarrow.dataset", "pyarrow.parquet", "s3fs", "tests.chaos.object_store", "tests.chaos.pipeline",
    "transformers.models.qwen2.modeling_qwen2", "transformers.trainer",
]  # fmt: skip
"""Libraries that the work in new processes uses, imported once; importing them starts no thread."""


def killed_before(number: int, root: Path, work: Callable[[], object]) -> bool:
    """Do `work` in a forked process that receives SIGKILL before its operation of this number on `root`.

    Args:
        number: Number of the operation that does not happen.
        root: The folder whose operations count.
        work: The work.

    Returns:
        Whether it was killed; False if it ended before.
    """
    child = os.fork()
    if child == 0:
        try:
            until(number, root, work)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError("the work failed before it could be killed")
    return False


def killed_in_new_process(number: int, root: Path, work: Callable[..., object], *arguments: object) -> bool:
    """Kill work as `killed_before` does, in a process that is forked from one that has only imported libraries.

    This is for work that uses threads.

    Args:
        number: Number of the operation that does not happen.
        root: The folder whose operations count.
        work: A function of a module.
        arguments: Arguments of the function.
    """
    child = started(until, number, root, work, *arguments)
    child.join()
    if child.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the work ended with {child.exitcode} before it could be killed")
    return child.exitcode != 0


def started(work: Callable[..., object], *arguments: object) -> ForkServerProcess:
    """Start a function of a module in a process that is forked from one that has only imported libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    child = context.Process(target=work, args=arguments)
    child.start()
    return child


def until(number: int, root: Path, work: Callable[..., object], *arguments: object) -> None:
    """Do the work in this process, and kill the process before an operation.

    Args:
        number: Number of the operation that does not happen.
        root: The folder whose operations count.
        work: The work.
        arguments: Arguments of the work.
    """

    def before(operation: Operation) -> None:
        if operation.number == number:
            os.kill(os.getpid(), signal.SIGKILL)

    with watched(root, before):
        work(*arguments)


def operations_of(root: Path, work: Callable[[], object]) -> list[Operation]:
    """Do `work` in this process and return its operations on `root`."""
    seen: list[Operation] = []
    with watched(root, seen.append):
        work()
    return seen

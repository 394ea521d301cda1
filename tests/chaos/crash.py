"""Processes that die before one of their file operations."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.chaos.operations import Operation, watched


def killed_before(number: int, root: Path, work: Callable[[], object]) -> bool:
    """Do `work` in a forked process that receives SIGKILL before its operation of this number on `root`.

    Returns:
        Whether it was killed; False if it ended before.
    """

    def before(operation: Operation) -> None:
        if operation.number == number:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            with watched(root, before):
                work()
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
    """As `killed_before`, for work that uses threads: its process is forked from one that has only imported libraries.

    Args:
        number: Of the operation that no longer happens.
        root: Where operations count.
        work: A function of a module.
        arguments: Of the function.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.chaos.pipeline", "torch", "transformers", "polars", "pyarrow.parquet"])
    child = context.Process(target=_until, args=(number, root, work, arguments))
    child.start()
    child.join()
    if child.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the work ended with {child.exitcode} before it could be killed")
    return child.exitcode != 0


def _until(number: int, root: Path, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    def before(operation: Operation) -> None:
        if operation.number == number:
            os.kill(os.getpid(), signal.SIGKILL)

    with watched(root, before):
        work(*arguments)


def operations_of(root: Path, work: Callable[[], object]) -> list[Operation]:
    """Do `work` here and return its operations on `root`."""
    seen: list[Operation] = []
    with watched(root, seen.append):
        work()
    return seen

"""What the ranks of a training run and the process that launched them tell each other: phases, failures, death, budget.

That goes through files beside the order or in the run's folder. Rank 0 alone writes to the run's folder; all ranks
continue, or all stop with the same message. torch is imported only in a rank.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from safetensors import SafetensorError

from nextquill_core.config.base import Section
from nextquill_core.errors import UserError
from storage.errors import system_error
from storage.files import make_folder, sync, sync_tree, write_text

if TYPE_CHECKING:
    import torch

STARTED_BY = "NEXTQUILL_STARTED_BY"
"""Environment variable of the ranks: id of the process on their machine that started the launcher."""
PHASE = "scratch/phase.json"
"""File in the run's folder in which rank 0 says what it does besides steps (`progress.PhaseFile`)."""
BUDGET = "scratch/micro-batches.json"
"""File in the run's folder with the size of micro-batches, for the log and for a resumed run (`Budget`)."""
LOGS = "rank-logs"
FIRST_FAILURE = "first-to-fail"


class Budget(Section):
    """What the memory allows in a run; `training.budget` decides it.

    Attributes:
        tokens: Maximum number of tokens in a micro-batch, both branches counted; one example may have more.
        gradient_checkpointing: Whether layers are computed again in the backward pass.
        account: What was decided and why, in one line for the log.
    """

    tokens: int
    gradient_checkpointing: bool
    account: str


def stored_budget(output: Path) -> Budget | None:
    """Return the budget that a run has stored in its folder, or None if there is none that can be read."""
    try:
        return Budget.model_validate_json((output / BUDGET).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def store_budget(output: Path, budget: Budget) -> None:
    """Store the budget in the folder of a run."""
    make_folder((output / BUDGET).parent)
    write_text(output / BUDGET, budget.model_dump_json(indent=2) + "\n")


def rank_logs(order: Path) -> Path:
    """Return the folder beside an order that gets each rank's output, one file per rank."""
    return order.parent / LOGS


def logs_by_rank(order: Path) -> dict[int, Path]:
    """Return the log file of each rank, as DeepSpeed's launcher names them."""
    found = {path: re.search(r"_rank(\d+)\.log$", path.name) for path in sorted(rank_logs(order).glob("*.log"))}
    return {int(match[1]): path for path, match in found.items() if match}


def mark_failed(order: Path) -> None:
    """Record that this rank failed first, unless another rank did; other ranks fail as a consequence.

    The file system decides which rank is first, on whatever machine the ranks run.
    """
    try:
        with (rank_logs(order) / FIRST_FAILURE).open("x", encoding="utf-8") as file:
            file.write(os.environ.get("RANK", "0"))
    except OSError:
        return  # another rank was first, or the order was started by hand and has no such folder


def first_failed(order: Path) -> int | None:
    """Return the rank that failed first, or None if no rank could record it."""
    try:
        return int((rank_logs(order) / FIRST_FAILURE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def end_with_parent() -> None:
    """End this process soon after its launcher, or the launcher's parent, has ended in any way, SIGKILL included.

    The launcher may have ended while this process imported its libraries, so its parent is watched too.
    """
    launcher, run = os.getppid(), int(os.environ.get(STARTED_BY, "0"))

    def watch() -> None:
        while os.getppid() == launcher and (not run or _exists(run)):
            time.sleep(0.5)
        os._exit(143)

    threading.Thread(target=watch, name="watch-launcher", daemon=True).start()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):  # there is none, or it is another user's
        return False
    return True


RESERVE_BYTES = 256 * 1024
UNFINISHED = ".unfinished"


class Writer:
    """Runs write actions on rank 0 and tells every rank whether they succeeded.

    A full disk would also swallow the message that reports it. Some space is therefore reserved, and freed on failure.

    Args:
        output: The run's folder.
        device: Device on which ranks exchange tensors.

    Attributes:
        resumes_at: Step of the newest checkpoint, which error messages name.
    """

    def __init__(self, output: Path, device: torch.device | str) -> None:
        import torch

        self.output = output
        self.resumes_at = 0
        self._device = device
        self._reserve = output / "scratch" / "reserve"
        self._writes = torch.distributed.get_rank() == 0

    def __call__(self, action: Callable[[], object], what: str, size: int = 0) -> bool:
        """Run `action` on rank 0; all ranks have to call this.

        Args:
            action: Writes something.
            what: Name of what is written, for the error message.
            size: Size of what is written in bytes, for the error message; 0 leaves it out.

        Returns:
            On all ranks, whether the action returned a true value.

        Raises:
            UserError: The disk is full or cannot be written.
        """
        import torch

        code = 0
        if self._writes:
            try:
                code = int(bool(action()))
            except (OSError, SafetensorError) as error:
                code = -(system_error(error) or errno.EIO)
                self._reserve.unlink(missing_ok=True)
        shared = torch.tensor([code], device=self._device)
        if torch.distributed.get_world_size() > 1:
            torch.distributed.broadcast(shared, src=0)
        code = int(shared)
        if code < 0:
            bytes_needed = f", which needs {size / 1e6:,.1f} MB" if size else ""
            raise UserError(
                f"cannot write {what}{bytes_needed}: {os.strerror(-code)}",
                str(self.output),
                f"free space there and run the same command again; training resumes after step {self.resumes_at}",
            )
        return bool(code)

    def reserve(self) -> None:
        """Reserve the space that is freed on failure; called on rank 0."""
        self._reserve.parent.mkdir(parents=True, exist_ok=True)
        self._reserve.write_bytes(os.urandom(RESERVE_BYTES))  # a file system may store zeros without using space


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary sibling to fill, which replaces `folder` only if the block ends without an error.

    All files and names are synced to the disk when the block has ended.
    """
    make_folder(folder.parent)
    unfinished = folder.with_name(f".{folder.name}{UNFINISHED}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir()
        yield unfinished
        sync_tree(unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed run left half written directly below `folder`."""
    for leftover in folder.glob(f".*{UNFINISHED}"):
        shutil.rmtree(leftover, ignore_errors=True)

"""Writing by rank 0 while the others wait: all ranks go on, or all stop with the same line."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from nextquill_core.errors import UserError
from storage.errors import system_error
from storage.files import make_folder, sync, sync_tree

RESERVE_BYTES = 256 * 1024
UNFINISHED = ".unfinished"


class Writer:
    """Lets rank 0 write into the folder of a run, and every rank know whether that went well.

    A full disk would also swallow the line that says so. A few blocks are therefore reserved and given back first.

    Args:
        output: The run's folder.
        device: Where ranks exchange tensors.
    """

    def __init__(self, output: Path, device: torch.device | str) -> None:
        self.output = output
        self.resumes_at = 0
        self._device = device
        self._reserve = output / "scratch" / "reserve"
        self._writes = torch.distributed.get_rank() == 0

    def __call__(self, action: Callable[[], object], what: str, size: int = 0) -> bool:
        """Do `action` on rank 0; a call for all ranks.

        Args:
            action: Writes something.
            what: The thing that is written, for the error.
            size: Its bytes, where they matter.

        Returns:
            On all ranks, whether the action returned something true.

        Raises:
            UserError: The disk is full, or would not take it for another reason.
        """
        code = 0
        if self._writes:
            try:
                code = int(bool(action()))
            except (OSError, SafetensorError) as error:
                code = -(system_error(error) or errno.EIO)
                self._reserve.unlink(missing_ok=True)
        told = torch.tensor([code], device=self._device)
        if torch.distributed.get_world_size() > 1:
            torch.distributed.broadcast(told, src=0)
        code = int(told)
        if code < 0:
            bytes_needed = f", which needs {size / 1e6:,.1f} MB" if size else ""
            raise UserError(
                f"cannot write {what}{bytes_needed}: {os.strerror(-code)}",
                str(self.output),
                f"make room there and run the same command again, it goes on after step {self.resumes_at}",
            )
        return bool(code)

    def reserve(self) -> None:
        """Take the reserve, on rank 0."""
        self._reserve.parent.mkdir(parents=True, exist_ok=True)
        self._reserve.write_bytes(os.urandom(RESERVE_BYTES))  # a file system may keep zeros for nothing


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling to fill; it takes the name `folder` only if the block ends without an error.

    Files and names are on the disk, not only in the system's memory, when the block has ended.
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


def sweep(folder: Path) -> None:
    """Remove what a killed run left half written directly below `folder`."""
    for leftover in folder.glob(f".*{UNFINISHED}"):
        shutil.rmtree(leftover, ignore_errors=True)

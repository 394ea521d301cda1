"""A loss of power at any moment: everything that a manifest or pointer names is complete, and one rerun ends in the
same bytes."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

import storage.files
from storage import Store
from storage.pointers import is_unchanged, read_pointer
from tests.chaos.crash import operations_of
from tests.chaos.disk import Disk
from tests.chaos.operations import Operation, watched
from tests.chaos.test_crashes import uninterrupted
from tests.chaos.trials import SEED, chosen, hold
from tests.chaos.work import POINTER, Work, contents, faults, leftovers


class Outages:
    """The disks after a loss of power before chosen operations of the work.

    Attributes:
        whole: The work without an outage.
        faults: What was damaged before the work began.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.whole = uninterrupted(folder)
        self.faults = faults(self.whole.start)

    def disks(self, numbers: list[int], *, lenient: bool) -> dict[int, Path]:
        """Do the work once, and return the disk after each outage.

        Args:
            numbers: Of the operations that no longer happen; one more than there are is an outage after the work.
            lenient: Some of the changes that were not synced have survived, chosen by the seed; otherwise none.
        """
        kind = "lenient" if lenient else "strict"
        root = Path(shutil.copytree(self.whole.start, self._folder / kind))
        disk = Disk(root)
        found = {number: self._folder / f"{kind}-{number}" for number in numbers}

        def lose_power(number: int) -> None:
            if number in found:
                choice = random.Random(f"{SEED} {number}") if lenient else None
                disk.lose_power(found[number], choice)

        def before(operation: Operation) -> None:
            disk.before(operation)
            lose_power(operation.number)

        with watched(root, before):
            Work(root, self._folder / "journal").do()
        lose_power(len(self.whole.operations) + 1)
        disk.close()
        return found


def check(disk: Path, outages: Outages) -> None:
    """Check a disk after an outage, do the work again, and compare."""
    store = Store(disk)
    assert faults(disk).items() <= outages.faults.items()
    pointer = read_pointer(store, POINTER)
    assert pointer is None or all(is_unchanged(store, ref) for ref in pointer.target.refs)
    operations_of(disk, Work(disk, disk.with_name("rerun")).do)
    assert contents(disk) == outages.whole.contents
    assert leftovers(disk) == []
    shutil.rmtree(disk)


@pytest.mark.parametrize("lenient", [False, True], ids=["what was synced", "and some of what was not"])
def test_an_outage_before_any_operation(tmp_path: Path, lenient: bool) -> None:
    outages = Outages(tmp_path)
    numbers = chosen(range(1, len(outages.whole.operations) + 2), few=16)
    disks = outages.disks(numbers, lenient=lenient)
    kind = "synced changes survive" if not lenient else "also some others survive"
    hold(f"loss of power before a file operation, {kind}", numbers, lambda number: check(disks[number], outages))


def test_what_was_reported_as_done_survives(tmp_path: Path) -> None:
    """After an outage right after the work, all artifacts and the pointer are there."""
    outages = Outages(tmp_path)
    last = len(outages.whole.operations) + 1
    disk = outages.disks([last], lenient=False)[last]
    assert outages.whole.contents.items() <= contents(disk).items()
    assert {path.name for path in disk.glob("*/[!.]*") if path.is_dir()} == {
        path.name for path in (tmp_path / "whole").glob("*/[!.]*") if path.is_dir()
    }


@pytest.mark.parametrize("forgotten", ["sync", "sync_folders", "make_folder"])
def test_the_simulation_sees_a_sync_that_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    def no_sync(path: Path) -> None:
        if forgotten == "make_folder":
            path.mkdir(parents=True, exist_ok=True)

    for module in ("files", "staging", "store", "locks", "pointers"):
        if hasattr(getattr(storage, module), forgotten):
            monkeypatch.setattr(f"storage.{module}.{forgotten}", no_sync)
    outages = Outages(tmp_path)
    last = len(outages.whole.operations) + 1
    numbers = [*range(1, last + 1, 3), last]
    lost = 0
    for lenient in (False, True):
        disks = outages.disks(numbers, lenient=lenient)
        lost += not outages.whole.contents.items() <= contents(disks[last]).items()
        lost += sum(not faults(disk).items() <= outages.faults.items() for disk in disks.values())
    assert lost

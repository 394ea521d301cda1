"""A disk that fills up at any moment: one line, nothing half-written, and a rerun completes once there is space."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import UserError
from tests.chaos.crash import operations_of
from tests.chaos.operations import Operation, watched
from tests.chaos.pipeline import run_stages
from tests.chaos.test_crashes import uninterrupted
from tests.chaos.trials import chosen, hold
from tests.chaos.work import Work, contents, faults, leftovers

TAKES_SPACE = ("open", "write", "write the rest", "mkdir", "link")


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EDQUOT, errno.EROFS], ids=["full", "quota", "read-only"])
def test_a_disk_that_is_full_from_any_operation_on(tmp_path: Path, fault: int) -> None:
    whole = uninterrupted(tmp_path)

    def trial(number: int) -> None:
        root = Path(shutil.copytree(whole.start, tmp_path / f"store-{number}"))

        def full(operation: Operation) -> None:
            if operation.number >= number and (operation.name in TAKES_SPACE or fault == errno.EROFS):
                raise OSError(fault, os.strerror(fault), operation.path)

        with pytest.raises(UserError, match="free some space"), watched(root, full):
            Work(root, tmp_path / "journal").do()
        assert faults(root).keys() <= faults(whole.start).keys()
        operations_of(root, Work(root, tmp_path / "journal").do)
        assert contents(root) == whole.contents
        assert leftovers(root) == []
        shutil.rmtree(root)

    needed = [one.number for one in whole.operations if one.name in TAKES_SPACE and ".verified" not in one.path]
    hold(f"disk full ({os.strerror(fault)})", chosen(needed, few=8), trial)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.pipeline
def test_the_real_stages_on_a_full_disk(small_world: Path, small_disk: Path) -> None:
    """The disk grows in steps; each run ends in one line or gets further than the one before."""
    store = small_disk / "store"
    sizes, lines = [300, 450, 700, 1_100, 20_000], []
    for size in sizes:
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(small_disk)], check=True)
        try:
            run_stages(small_world, store)
        except UserError as error:
            lines.append(str(error))
            assert not faults(store)
    assert len(lines) >= 2
    assert len(lines) < len(sizes)
    assert all("No space left on device" in line and "\n" not in line for line in lines)
    assert leftovers(store) == []

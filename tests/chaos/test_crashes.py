"""Work that is killed before any file operation: one rerun ends in the same bytes, repeats nothing that was finished,
and leaves nothing behind."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

import storage.files
from tests.chaos.crash import killed_before, operations_of
from tests.chaos.operations import Operation
from tests.chaos.trials import chosen, hold
from tests.chaos.work import NUMBERS, SQUARES, SUM, Work, contents, damage, leftovers


@dataclass(frozen=True)
class Uninterrupted:
    """The work done without interruption, from the same start.

    Attributes:
        start: The store before the work.
        operations: The file operations of the work.
        contents: The contents of the store after it.
    """

    start: Path
    operations: list[Operation]
    contents: dict[str, str]

    def last(self, path: str) -> int:
        """Return the number of the last operation that gives a file this name (within the store)."""
        return max(one.number for one in self.operations if one.name == "replace" and one.path.endswith(path))


@pytest.fixture(params=["names exchanged", "names not exchanged"])
def whole(  # with and without a file system that can exchange two names
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Uninterrupted:
    if request.param == "names not exchanged":
        monkeypatch.setattr(storage.files, "_renameat2", lambda: None)
    return uninterrupted(tmp_path)


def uninterrupted(folder: Path) -> Uninterrupted:
    """Do the work without interruption in a store below a folder."""
    start = started(folder / "start")
    root = shutil.copytree(start, folder / "whole")
    operations = operations_of(root, Work(root, folder / "journal").do)
    assert leftovers(root) == []
    return Uninterrupted(start, operations, contents(root))


def started(root: Path) -> Path:
    """Make a store with a damaged artifact, which will be replaced, and artifacts that will be removed."""
    Work(root, root.with_name("prepared")).prepare()
    damage(root / NUMBERS.kind / NUMBERS.fingerprint / "numbers" / "1.parquet")
    return root


def interrupted(whole: Uninterrupted, folder: Path, number: int) -> Counter[str]:
    """Kill the work before an operation, run it again and compare; return how often each part was made.

    Args:
        whole: The uninterrupted work.
        folder: Folder for the store and the journal.
        number: Number of the operation.
    """
    root, journal = folder / f"store-{number}", folder / f"journal-{number}"
    shutil.copytree(whole.start, root)
    assert killed_before(number, root, lambda: Work(root, journal).do())
    operations_of(root, Work(root, journal).do)
    assert contents(root) == whole.contents
    assert leftovers(root) == []
    shutil.rmtree(root)
    return Counter(journal.read_text().splitlines())


def test_a_kill_before_any_operation_costs_what_was_unfinished_and_nothing_else(
    whole: Uninterrupted, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    finished = {f"build {step.name}": whole.last(f".staging-{step.fingerprint}/manifest.json") for step in
                (NUMBERS, SQUARES, SUM)}  # fmt: skip
    finished |= {f"shard {shard}": whole.last(f".shards/numbers/{shard}.parquet.json") for shard in range(1)}

    def trial(number: int) -> None:
        made = interrupted(whole, tmp_path, number)
        repeated = {part for part, count in made.items() if count > 1 and number > finished.get(part, number)}
        assert not repeated, f"{repeated} made again after {whole.operations[number - 1]}"

    cases = chosen([one.number for one in whole.operations], few=12)
    hold(f"killed before a file operation, {request.node.callspec.id}", cases, trial)


def test_no_step_after_the_seal_can_lose_the_work(whole: Uninterrupted, tmp_path: Path) -> None:
    """Kill the work before every operation between the manifest and the end of the commit, one by one."""
    sealed = whole.last(f".staging-{NUMBERS.fingerprint}/manifest.json")
    done = whole.last(f".staging-{SQUARES.fingerprint}/.shards/basis.json")
    names = [one.name for one in whole.operations[sealed:done]]
    assert {"rmdir", "fsync"} <= set(names)
    assert ("exchange" in names) or names.count("rename") >= 2
    for number in range(sealed + 1, done):
        made = interrupted(whole, tmp_path, number)
        assert made["build numbers"] == made["shard 0"] == made["shard 1"] == 1, whole.operations[number - 1]


def test_the_harness_sees_work_that_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that removes the old artifact before the new one has its name is caught."""

    def careless(new: Path, old: Path) -> bool:
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(new / "numbers", ignore_errors=True)
        (new / "manifest.json").unlink()
        raise OSError("lost")

    whole = uninterrupted(tmp_path)
    monkeypatch.setattr("storage.store.replace_folder", careless)
    with pytest.raises((AssertionError, OSError, RuntimeError)):
        interrupted(whole, tmp_path, whole.operations[-1].number)

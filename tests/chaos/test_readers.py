"""Readers beside a writer: they do not disturb it, get correct answers, and write nothing."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import pytest

import storage.files
from nextquill_core.pipeline import Step, freshness
from nextquill_core.pipeline.run import Run
from storage import Basis, Store
from storage.garbage import CachedStore, inventory
from tests.chaos.crash import operations_of
from tests.chaos.trials import TRIALS, hold
from tests.chaos.work import NUMBERS, SQUARES, SUM, Work
from tests.nextquill_core.pipeline.test_plan import make_all
from tests.world import small_config

READERS = 4
COMMITS = 200 if TRIALS else 50
STEP = Step("effects", "of changing size", {})


def commit(store: Store, number: int) -> None:
    """Make the artifact of `STEP` again, each time with other files."""
    with store.write(STEP.kind, STEP.fingerprint, Basis(), restart=True) as staging:
        for part in range(3):
            staging.path(f"part/{part}.txt").write_text("x" * (number * 7 % 50 + part))
        staging.seal(
            kind=STEP.kind, fingerprint=STEP.fingerprint, identity=STEP.identity, config={}, inputs=[], stats={},
            provenance={"number": number},
        )  # fmt: skip
        store.commit(STEP.kind, STEP.fingerprint)


def read_on(root: Path, moment: Synchronized[int], answers: Any) -> None:
    """Query the artifact's freshness until the writer has finished (`moment` < 0), and count the answers.

    An answer counts as "idle" or "writing" if that did not change during the query, and as "between" otherwise.

    Args:
        root: The store.
        moment: Counter of the writer; it is even while nothing is being written.
        answers: Queue for the counts.
    """
    found: Counter[tuple[str, str]] = Counter()
    while (before := moment.value) >= 0:
        store = Store(root)
        answer = freshness(CachedStore(store) if before % 3 else store, STEP)
        same = moment.value == before
        phase = "between" if not same else "writing" if before % 2 else "idle"
        found[phase, f"{answer.state} {answer.why}".strip()] += 1
    answers.put(found)


def watch_commits(root: Path) -> Counter[tuple[str, str]]:
    """Commit an artifact many times beside readers; return the readers' answers by phase."""
    context = multiprocessing.get_context("fork")
    moment: Synchronized[int] = context.Value("l", 0)  # type: ignore[assignment]
    answers = context.Queue()
    store = Store(root)
    commit(store, 0)
    readers = [context.Process(target=read_on, args=(root, moment, answers)) for _ in range(READERS)]
    for reader in readers:
        reader.start()
    try:
        for number in range(1, COMMITS + 1):
            moment.value += 1
            commit(store, number)  # `Busy` if a reader held the lock
            moment.value += 1
            if number % 5 == 0:
                time.sleep(0.02)
    finally:
        moment.value = -1
    found: Counter[tuple[str, str]] = sum((answers.get(timeout=60) for _ in readers), Counter())
    for reader in readers:
        reader.join(60)
    return found


@pytest.mark.process
@pytest.mark.parametrize("exchange", [True, False], ids=["names exchanged", "names not exchanged"])
def test_no_reader_disturbs_a_writer_or_is_misled_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(storage.files, "_renameat2", lambda: None)
    found: Counter[tuple[str, str]] = Counter()

    def trial(_: int) -> None:
        found.update(watch_commits(tmp_path))
        expected = {
            ("idle", "fresh"), ("writing", "running"), ("writing", "fresh"), ("between", "fresh"),
            ("between", "running"),
        }  # fmt: skip
        assert set(found) <= expected, found

    way = "names exchanged" if exchange else "names not exchanged"
    hold(f"{READERS} readers beside {COMMITS} commits, {way}", [0], trial)
    assert found["idle", "fresh"] > 10
    assert found["writing", "running"] > 10


LOOKS: dict[str, Callable[[Path], object]] = {
    "freshness": lambda root: [freshness(Store(root), step) for step in (NUMBERS, SQUARES, SUM)],
    "progress": lambda root: Store(root).progress(NUMBERS.kind, NUMBERS.fingerprint),
    "inventory": lambda root: inventory(Store(root)),
    "files": lambda root: [artifact.folder for artifact in Store(root).newest_first(NUMBERS.kind)],
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS.keys())
@pytest.mark.parametrize("remembered", [True, False], ids=["verified", "never verified"])
def test_looking_is_no_operation_on_a_store(tmp_path: Path, look: Callable[[Path], object], remembered: bool) -> None:
    root = tmp_path / "store"
    Work(root, tmp_path / "journal").do()
    if not remembered:
        for memory in (root / ".verified").iterdir():
            memory.unlink()
    before = listing(root)
    assert operations_of(root, lambda: look(root)) == []
    assert listing(root) == before


def test_status_is_no_operation_on_a_store(small_world: Path, tmp_path: Path) -> None:
    from flows.cli.status import status_rows

    config = small_config(small_world, tmp_path / "store")
    make_all(Run(config))
    before = listing(tmp_path / "store")
    states: list[str] = []
    operations = operations_of(tmp_path / "store", lambda: states.extend(row["state"] for row in status_rows(config)))
    assert operations == []
    assert set(states) == {"fresh"}
    assert listing(tmp_path / "store") == before


def listing(root: Path) -> list[tuple[str, int, int, int]]:
    """Return every path of a store with its inode, size and time of change."""
    found = []
    for path in sorted(root.rglob("*")):
        status = os.lstat(path)
        found.append((str(path), status.st_ino, status.st_size, status.st_mtime_ns))
    return found

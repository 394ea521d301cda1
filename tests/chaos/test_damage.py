"""Every file of a store, damaged in every way: the damage is reported, the file is never read, and a rerun makes the
same bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nextquill_core.pipeline import Step, freshness
from storage import Store, UserError
from storage.errors import Damaged
from storage.garbage import dependents, inventory
from storage.integrity import VERIFIED, stamp_of
from storage.pointers import move_pointer, pointer_lock, read_pointer
from tests.chaos.crash import operations_of
from tests.chaos.pipeline import open_stages, run_stages, steps_of
from tests.chaos.trials import chosen, hold
from tests.chaos.work import NUMBERS, POINTER, SQUARES, SUM, Work, contents, damage, faults, leftovers


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped bit": damage,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": Path.unlink,
    "a pipe": lambda path: _replace(path, os.mkfifo),
    "a folder": lambda path: _replace(path, Path.mkdir),
    "a link to itself": lambda path: _replace(path, lambda path: path.symlink_to(path.name)),
    "huge": _huge,
}
WAYS = list(DAMAGE)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    work = Work(tmp_path / "store", tmp_path / "journal")
    work.do()
    return tmp_path / "store"


def data_files(root: Path) -> list[Path]:
    found = (path for path in sorted(root.glob("*/*/**/*")) if path.is_file())
    return [path for path in found if path.name != "manifest.json" and path.relative_to(root).parts[0] != VERIFIED]


def owners(root: Path, path: Path) -> set[tuple[str, str]]:
    """Return the artifacts that hold this file; adopted shards are one file under two names."""
    inode = path.stat().st_ino
    return {other.relative_to(root).parts[:2] for other in data_files(root) if other.stat().st_ino == inode}  # type: ignore[misc]


def check_damage(root: Path, path: Path, way: str, steps: list[Step], rerun: Callable[[], object]) -> None:
    """Damage a file, check what the store reports, run again, and compare with the store before.

    Args:
        root: The store.
        path: The file.
        way: How to damage it, one of `WAYS`.
        steps: The steps whose freshness is checked.
        rerun: Runs the work again.
    """
    before = contents(root)
    holding = owners(root, path) if way in ("flipped bit", "truncated", "emptied", "huge") else {
        path.relative_to(root).parts[:2]}  # fmt: skip
    DAMAGE[way](path)
    store = Store(root)
    assert faults(root).keys() == holding
    downstream = dependents(inventory(store), holding) | holding
    for step in steps:
        found = freshness(store, step)
        affected = (step.kind, step.fingerprint) in downstream
        assert found.state == ("stale" if affected else "fresh"), (step.name, found)
        assert not affected or "file " in found.why
        artifact = store.find(step.kind, step.fingerprint)
        assert artifact is not None
        if (step.kind, step.fingerprint) in holding:
            with pytest.raises(Damaged, match="run its stage again"):
                artifact.files("")
    rerun()
    assert contents(root) == before
    assert leftovers(root) == []
    assert not faults(root)


def test_every_data_file_damaged_in_every_way(root: Path) -> None:
    files = [path.relative_to(root) for path in data_files(root)]

    def trial(case: int) -> None:
        path = root / files[case // len(WAYS)]
        again = Work(root, root.with_name("again")).do
        check_damage(root, path, WAYS[case % len(WAYS)], [NUMBERS, SQUARES, SUM], lambda: operations_of(root, again))

    hold("a data file of a store damaged", chosen(range(len(files) * len(WAYS)), few=16), trial)


@pytest.mark.pipeline
def test_files_of_the_real_stages_damaged(small_world: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    run_stages(small_world, root)
    steps = steps_of(open_stages(small_world, root))
    files = [path.relative_to(root) for path in data_files(root)]

    def trial(case: int) -> None:
        path = root / files[case // len(WAYS)]
        check_damage(root, path, WAYS[case % len(WAYS)], steps, lambda: run_stages(small_world, root))

    hold("a data file of the real stages damaged", chosen(range(len(files) * len(WAYS)), few=2), trial)


def test_every_manifest_damaged_in_every_way(root: Path) -> None:
    before = contents(root)
    manifests = [path.relative_to(root) for path in sorted(root.glob("[!.]*/[!.]*/manifest.json"))]

    def trial(case: int) -> None:
        place, way = manifests[case // len(WAYS)], WAYS[case % len(WAYS)]
        if way == "flipped bit":
            DAMAGE["truncated"](root / place)  # a flipped bit may leave an equal manifest
        else:
            DAMAGE[way](root / place)
        store = Store(root)
        kind, fingerprint = place.parts[:2]
        step = next(step for step in (NUMBERS, SQUARES, SUM) if step.kind == kind)
        found = freshness(store, step)
        expected = "missing" if way == "deleted" else "stale"
        assert found.state == expected, found
        assert (kind, fingerprint) in faults(root) or way == "deleted"
        inventory(store)
        operations_of(root, Work(root, root.with_name("again")).do)
        assert contents(root) == before
        assert leftovers(root) == []

    hold("a manifest damaged", chosen(range(len(manifests) * len(WAYS)), few=8), trial)


@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_pointer_is_one_line_or_gone(root: Path, way: str) -> None:
    path = root / "accepted" / f"{POINTER}.json"
    target = read_pointer(Store(root), POINTER)
    assert target is not None
    if way == "flipped bit":
        path.write_bytes(path.read_bytes().replace(b"}", b"]", 1))
    else:
        DAMAGE[way](path)
    store = Store(root)
    if way == "deleted":
        assert read_pointer(store, POINTER) is None
    else:
        with pytest.raises(UserError, match="fix or delete it"):
            read_pointer(store, POINTER)
        path.rmdir() if path.is_dir() else path.unlink()
    with pointer_lock(store, POINTER):
        move_pointer(store, POINTER, target.target)
    assert read_pointer(store, POINTER) == target


def test_bits_that_a_disk_loses_are_found_by_verify(root: Path) -> None:
    """The times of the file do not change, so it looks like the file that was verified."""
    path = root / NUMBERS.kind / NUMBERS.fingerprint / "note.txt"
    damage(path)
    memory = root / VERIFIED / f"{NUMBERS.kind}-{NUMBERS.fingerprint}.json"
    known = json.loads(memory.read_text())
    known["files"]["note.txt"] = stamp_of(path)
    memory.write_text(json.dumps(known))
    assert freshness(Store(root), NUMBERS).state == "fresh"
    assert "note.txt is damaged" in faults(root)[NUMBERS.address]
    assert "note.txt is damaged" in freshness(Store(root), NUMBERS).why
    before = contents(root)
    Work(root, root.with_name("again")).do()
    assert contents(root) != before
    assert not faults(root)

"""What is needed stays, what is not goes, and a removal that is killed leaves nothing that looks whole."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from storage import Artifact, Basis, InputRef, Store, UserError
from storage.garbage import (
    DAY_S,
    CachedStore,
    StoredItem,
    inventory,
    needed,
    removable,
    remove,
    remove_with_dependents,
    total_bytes,
)
from storage.remote import open_store
from tests.storage.helpers import existing, seal


def make(store: Store, kind: str, name: str, *inputs: Artifact, days: float = 0.0) -> Artifact:
    end = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() - days * DAY_S))
    refs = tuple(origin.ref for origin in inputs)
    with store.write(kind, name, Basis(refs)) as staging:
        staging.write_table("0.parquet", pa.table({"x": [1]}))
        seal(staging, name, kind, refs, end=end)
        return store.commit(kind, name)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two chains: a0 → b0 → c0, and a0 → b1 → c1; alone stands d0."""
    store = Store(tmp_path / "store")
    root = make(store, "a", "a0", days=9)
    for number in "01":
        middle = make(store, "b", f"b{number}", root, days=5)
        make(store, "c", f"c{number}", middle, days=1)
    make(store, "d", "d0", days=3)
    return store


def names(found: list[StoredItem]) -> list[str]:
    return [held.fingerprint for held in found]


def test_inputs_stay_with_what_is_wanted_and_the_rest_goes_last_made_first(store: Store) -> None:
    found = inventory(store)
    assert sorted(names(found)) == ["a0", "b0", "b1", "c0", "c1", "d0"]
    assert total_bytes(found) == sum(path.stat().st_size for path in store.root.glob("*/*/*.parquet"))
    kept = needed(found, [("c", "c0")])
    assert kept == {("c", "c0"), ("b", "b0"), ("a", "a0")}
    assert names(removable(found, kept)) == ["c1", "b1", "d0"], "nothing goes before what is made from it"
    # All that are younger than 4 days: c0, c1 and d0; older ones of which these are made stay too.
    assert needed(found, [], younger_than_s=4 * DAY_S) == {held.name for held in found}
    # Below 0.5 days none is.
    assert needed(found, [], younger_than_s=DAY_S / 2) == set()


def test_only_what_was_listed_goes(store: Store) -> None:
    found = inventory(store)
    done = list(remove(store, removable(found, needed(found, [("c", "c0")]))))
    assert all(gone for _, gone in done)
    assert sorted(names(inventory(store))) == ["a0", "b0", "c0"]
    assert not list(store.root.glob("*/.aside-*"))


def test_a_killed_removal_leaves_nothing_that_looks_whole_and_the_next_one_finishes_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = inventory(store)
    kept = needed(found, [("c", "c0")])
    real = shutil.rmtree

    def killed(path: Path, **options: Any) -> None:
        if path.exists():
            (path / "0.parquet").unlink()
            raise KeyboardInterrupt
        real(path, **options)

    monkeypatch.setattr("storage.garbage.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        list(remove(store, removable(found, kept)))
    monkeypatch.undo()
    assert store.find("c", "c1") is None
    assert sorted(names([held for held in inventory(store) if held.state == "complete"])) == [
        "a0", "b0", "b1", "c0", "d0",
    ]  # fmt: skip
    again = inventory(store)
    left = removable(again, needed(again, [("c", "c0")]))
    assert {(held.fingerprint, held.state) for held in left} >= {("c1", "removed"), ("b1", "complete")}
    list(remove(store, left))
    assert sorted(names(inventory(store))) == ["a0", "b0", "c0"]
    assert not list(store.root.glob("*/.aside-*"))


def abandon(store: Store, name: str, *inputs: InputRef, days: float) -> Path:
    with pytest.raises(ZeroDivisionError), store.write("e", name, Basis(tuple(inputs))) as staging:
        staging.write_table("0.parquet", pa.table({"x": [1]}))
        _ = 1 / 0
    folder = store.root / "e" / f".staging-{name}"
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (time.time() - days * DAY_S,) * 2)
    return folder


def test_unfinished_work_is_removed_after_a_day_unless_it_is_wanted(store: Store) -> None:
    origin = existing(store, "d0", "d")
    young, old, asked = (
        abandon(store, name, origin.ref, days=days) for name, days in (("young", 0.5), ("old", 2), ("asked", 2))
    )
    found = inventory(store)
    kept = needed(found, [("e", "asked")])
    assert ("d", "d0") in kept, "young work resumes from what it was begun with"
    list(remove(store, removable(found, kept)))
    assert (young.exists(), old.exists(), asked.exists()) == (True, False, True)
    assert store.find("d", "d0") is not None


def test_what_is_being_made_stays_with_its_inputs(store: Store) -> None:
    origin = existing(store, "d0", "d")
    folder = abandon(store, "now", origin.ref, days=3)
    with store.writer_lock("e", "now", patience=0):
        found = inventory(store)
        assert {("e", "now"), ("d", "d0")} <= needed(found, [])
        stale = [StoredItem("e", "now", "failed", 0, 0.0)]  # began after the look
        assert [gone for _, gone in remove(store, stale)] == [False]
    assert folder.exists()


def test_an_abandoned_remake_goes_without_its_artifact(store: Store) -> None:
    make(store, "e", "both")
    folder = abandon(store, "both", days=2)
    held = next(held for held in inventory(store) if held.name == ("e", "both") and held.state == "failed")
    list(remove(store, [held]))
    assert not folder.exists()
    assert store.find("e", "both") is not None


def test_links_are_not_followed(store: Store, tmp_path: Path) -> None:
    outside = Store(tmp_path / "outside")
    kept = make(outside, "far", "f0")
    (store.root / "far").symlink_to(outside.root / "far")
    moved = tmp_path / "moved"
    store.folder("c", "c1").rename(moved)
    store.folder("c", "c1").symlink_to(moved)
    found = inventory(store)
    doomed = removable(found, needed(found, []))
    assert not {"f0", "c1", "b1", "a0"} & set(names(doomed)), "what a linked artifact is made from stays as well"
    list(remove(store, doomed))
    assert kept.home.is_dir()
    assert (moved / "manifest.json").is_file()


def test_a_cached_store_reads_a_manifest_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[str, str]] = []
    find = Store.find

    def counted(self: Store, kind: str, fingerprint: str) -> Artifact | None:
        if type(self) is Store:
            reads.append((kind, fingerprint))
        return find(self, kind, fingerprint)

    monkeypatch.setattr(Store, "find", counted)
    cached = CachedStore(store)
    both = zip(cached.newest_first("b"), cached.newest_first("b"), strict=True)
    assert [(one.manifest.fingerprint, other.manifest.fingerprint) for one, other in both] == [
        ("b1", "b1"), ("b0", "b0"),
    ]  # fmt: skip
    assert cached.find("b", "b0") is not None
    assert cached.find("b", "no") is None
    assert cached.find("b", "no") is None
    assert sorted(reads) == [("b", "b0"), ("b", "b1"), ("b", "no")]


def chain(store: Store, *kinds: str) -> None:
    """Artifacts of one kind each, every one made from the one before."""
    inputs: list[Artifact] = []
    for kind in kinds:
        inputs = [make(store, kind, "x", *inputs)]


def test_removing_takes_all_that_was_made_from_it_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    chain(store, "a", "b", "c")
    chain(store, "other")
    ref = InputRef("b", "x", "")
    with pytest.raises(ZeroDivisionError), store.write("d", "x", Basis((ref,))) as staging:
        staging.path("note.txt").write_text(str(1 / 0))
    (tmp_path / "c" / ".aside-y").mkdir()  # of a process that was killed while it removed
    assert sorted(remove_with_dependents(store, [ref])) == ["b/x", "c/x", "d/x"]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.name == "x") == ["x", "x"]
    assert store.find("a", "x")
    assert store.find("other", "x")
    assert [path.name for path in tmp_path.rglob(".*") if path.is_dir()] == [".verified"]
    assert remove_with_dependents(store, [ref]) == ["b/x"]


def test_an_artifact_that_is_being_made_is_not_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    chain(store, "a", "b")
    with store.write("b", "x", Basis(), restart=True), pytest.raises(UserError, match="b/x must be removed, but is"):
        remove_with_dependents(store, [InputRef("a", "x", "")])
    assert store.find("a", "x") is None
    assert store.find("b", "x")


def test_a_cached_store_reads_notes_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTQUILL_CACHE", str(tmp_path / "cache"))
    remote = open_store("memory://notes/prefix")
    remote.write_note("accepted", "p.json", "{}")
    cached = CachedStore(remote)
    assert cached.note_names("accepted") == ["p.json"]
    assert cached.note_location("accepted", "p.json") == "memory://notes/prefix/.accepted/p.json"
    assert (cached.read_note("accepted", "p.json"), cached.read_note("accepted", "q.json")) == ("{}", None)

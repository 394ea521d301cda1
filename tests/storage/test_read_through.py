"""A store that reads another one: what it finds, what counts first, and that the other one is never written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from storage import Basis, Store, UserError
from storage.garbage import inventory, remove, remove_with_dependents, verify_artifacts
from storage.pointers import Target, move_pointer, pointer_lock, read_pointer
from storage.read_through import open_stores
from storage.remote import open_store
from tests.s3 import opened
from tests.storage.helpers import existing, fill


def state_of(folder: Path) -> dict[str, Any]:
    """All that a write could change of a folder: names, bytes, times and numbers of links."""
    found: dict[str, Any] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        data = path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = (data, status.st_mtime_ns, status.st_ctime_ns, status.st_nlink)
    return found


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path, Store]:
    """A store of production with two artifacts, the folder of another one, and the store that reads both."""
    production = Store(tmp_path / "prod")
    fill(production)
    fill(production, "b", rows=5)
    return tmp_path / "prod", tmp_path / "mine", open_stores(str(tmp_path / "mine"), str(tmp_path / "prod"))


def test_both_are_read_and_one_is_written(places: tuple[Path, Path, Store]) -> None:
    there, here, _ = places
    before = state_of(there)
    store = open_stores(str(here), str(there))
    found = existing(store)
    assert found.folder == there / "kind" / "a"
    assert store.location("kind", "a") == str(there / "kind" / "a")
    assert store.fault(found) == ""
    assert store.manifest_fault("kind", "a") == ""
    made = fill(store, "c")
    assert made.folder == here / "kind" / "c"
    assert [one.manifest.fingerprint for one in store.newest_first("kind")] == ["c", "b", "a"]
    assert Store(here).find("kind", "a") is None
    assert store.location("kind", "new") == str(here / "kind" / "new")
    store.write_note("accepted", "n.json", "ours")
    store.verification.remember(found.manifest)
    assert state_of(there) == before


def test_what_was_made_again_hides_the_artifact_of_the_other_store(places: tuple[Path, Path, Store]) -> None:
    there, _, store = places
    theirs = existing(store)
    assert store.successor(theirs) is None
    made = fill(store, "a", rows=9)
    found = store.find("kind", "a")
    assert found == made
    assert store.successor(theirs) == made
    assert [one.home for one in store.newest_first("kind")] == [made.home, there / "kind" / "b"]


def test_a_damaged_manifest_of_the_other_store_says_nothing_about_ours(places: tuple[Path, Path, Store]) -> None:
    there, here, store = places
    fill(store)
    other = fill(store, "c")
    (there / "kind" / "a" / "manifest.json").write_text("{")
    assert store.manifest_fault("kind", "a") == ""
    assert store.unreadable("kind") == {}
    assert remove_with_dependents(store, [other.ref]) == ["kind/c"]
    assert Store(here).find("kind", "a")


def test_a_damaged_file_of_the_other_store_is_seen(places: tuple[Path, Path, Store]) -> None:
    there, _, store = places
    (there / "kind" / "a" / "part" / "0.parquet").write_bytes(b"x")
    found = existing(store)
    assert "part/0.parquet is damaged" in store.fault(found)


def test_files_of_the_other_store_are_copied_and_own_ones_linked(places: tuple[Path, Path, Store]) -> None:
    there, _, store = places
    own = fill(store, "c")
    before = state_of(there)
    for name, origin, linked in (("d", existing(store), False), ("e", own, True)):
        with store.write("kind", name, Basis()) as staging:
            staging.adopt(origin.folder, origin.shards("part/"))
            copy = staging.path("part/0.parquet")
            assert copy.samefile(origin.home / "part/0.parquet") == linked
            assert copy.read_bytes() == (origin.home / "part/0.parquet").read_bytes()
    assert state_of(there) == before


def test_what_is_removed_or_listed_is_of_the_own_store_alone(places: tuple[Path, Path, Store]) -> None:
    there, _, store = places
    fill(store, "c")
    before = state_of(there)
    found = inventory(store)
    assert [held.fingerprint for held in found] == ["c"]
    assert [name for name, _ in verify_artifacts(store)] == [("kind", "c")]
    assert [held.fingerprint for held, gone in remove(store, found) if gone] == ["c"]
    assert store.find("kind", "a") is not None
    assert state_of(there) == before


def test_pointers_are_read_from_both_and_moved_here(places: tuple[Path, Path, Store]) -> None:
    there, here, store = places
    production = Store(there)
    artifact = existing(production)
    move_pointer(production, "best", Target(artifact.ref, artifact.ref))
    before = state_of(there)
    assert store.note_names("accepted") == ["best.json", "best.jsonl"]
    assert store.note_location("accepted", "best.json") == str(there / "accepted" / "best.json")
    other = fill(store, "c")
    with pointer_lock(store, "best"):
        move_pointer(store, "best", Target(other.ref, other.ref))
    pointer = read_pointer(store, "best")
    assert pointer is not None
    assert [target.ref.fingerprint for target in (pointer.target, *pointer.before)] == ["c", "a"]
    assert store.note_location("accepted", "best.json") == str(here / "accepted" / "best.json")
    assert state_of(there) == before


@pytest.mark.parametrize(("write", "read"), [("a", "a"), ("a/b", "a"), ("a", "a/b")])
def test_the_places_must_be_separate(tmp_path: Path, write: str, read: str) -> None:
    with pytest.raises(UserError, match="set store and read_store to separate places"):
        open_stores(str(tmp_path / write), str(tmp_path / read))
    assert open_stores(str(tmp_path / "ab"), str(tmp_path / "a")).own.root == tmp_path / "ab"


@pytest.mark.process
def test_an_object_store_is_read_and_never_written(s3: str, server: str, tmp_path: Path) -> None:
    made = fill(opened(s3), rows=7)
    keys = {key: opened(s3).objects.get(key) for key in opened(s3).objects.keys("")}
    store = open_stores(str(tmp_path / "mine"), s3)
    found = existing(store)
    assert found.manifest == made.manifest
    assert (found.folder / "part" / "0.parquet").is_file()
    assert store.location("kind", "a") == f"{s3}/kind/a"
    assert store.fault(found) == ""
    assert store.name == f"{tmp_path / 'mine'} (reads {s3} too)"
    fill(store, "b")
    assert {key: opened(s3).objects.get(key) for key in opened(s3).objects.keys("")} == keys


@pytest.mark.process
def test_an_object_store_may_be_the_one_that_is_written(s3: str, server: str, tmp_path: Path) -> None:
    fill(Store(tmp_path / "prod"))
    before = state_of(tmp_path / "prod")
    store = open_stores(s3, str(tmp_path / "prod"))
    assert store.find("kind", "a") is not None
    fill(store, "b")
    assert [one.manifest.fingerprint for one in store.newest_first("kind")] == ["b", "a"]
    assert [one.manifest.fingerprint for one in open_store(s3).newest_first("kind")] == ["b"]
    assert state_of(tmp_path / "prod") == before

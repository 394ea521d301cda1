"""An artifact is there whole or not at all, has one writer, and is explained when it is not reused."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pyarrow as pa
import pytest

from storage import Basis, Store, UserError, differences, fingerprint
from storage.manifest import InputRef, Manifest

BASIS = Basis(tools="b")


def fill(store: Store, name: str = "a", rows: int = 3, basis: str = "b", **options: bool) -> Manifest:
    with store.write("kind", name, Basis(tools=basis), **options) as staging:
        staging.write_table("part/0.parquet", pa.table({"x": list(range(rows))}))
        (staging.scratch / "half.txt").write_text("not kept")
        staging.path("note.txt").write_text("kept")
        staging.seal(
            kind="kind", fingerprint=name, identity={"a": 1}, config={}, inputs=[], stats={"rows": rows}, provenance={}
        )
        return store.commit("kind", name).manifest


def test_commit_gives_the_folder_its_name_and_lists_every_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    manifest = fill(store)
    folder = store.folder("kind", "a")
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [
        "0.parquet",
        "manifest.json",
        "note.txt",
    ]
    assert [(shard.path, shard.rows) for shard in manifest.shards] == [("note.txt", None), ("part/0.parquet", 3)]
    found = store.find("kind", "a")
    assert found is not None
    assert found.manifest == manifest
    assert found.manifest.rows == 3


def test_no_manifest_no_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store)
    (store.folder("kind", "a") / "manifest.json").unlink()
    assert store.find("kind", "a") is None


def test_equal_content_has_equal_digest_and_logs_do_not_count(tmp_path: Path) -> None:
    digests = []
    for number in range(2):
        store = Store(tmp_path / str(number))
        with store.write("kind", "a", BASIS) as staging:
            staging.write_table("0.parquet", pa.table({"x": [1]}))
            staging.path("log.txt").write_text(f"run {number}")
            staging.finish("log.txt", log=True)
            manifest = staging.seal(
                kind="kind", fingerprint="a", identity={}, config={}, inputs=[], stats={}, provenance={}
            )
        digests.append(manifest.content)
    assert digests[0] == digests[1]


def test_an_error_leaves_finished_shards_and_a_note(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ZeroDivisionError), store.write("kind", "a", BASIS) as staging:
        staging.write_table("0.parquet", pa.table({"x": [1]}))
        _ = 1 / 0
    assert store.find("kind", "a") is None
    assert store.progress("kind", "a") == ("failed", "division by zero")
    with store.write("kind", "a", BASIS) as staging:
        assert staging.has("0.parquet")


def test_an_interruption_is_no_failure(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt), store.write("kind", "a", BASIS) as staging:
        staging.write_table("0.parquet", pa.table({"x": [1]}))
        raise KeyboardInterrupt
    assert store.progress("kind", "a") == ("interrupted", "")
    with store.write("kind", "a", BASIS) as staging:
        assert staging.has("0.parquet")


def test_a_full_disk_is_the_user_s_to_fix_and_keeps_what_is_done(tmp_path: Path) -> None:
    store = Store(tmp_path)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "1.parquet")
    with pytest.raises(UserError) as caught, store.write("kind", "a", BASIS) as staging:
        staging.write_table("0.parquet", pa.table({"x": [1]}))
        raise full
    assert str(caught.value) == (
        f"{tmp_path}: cannot be written (No space left on device: 1.parquet); make room, or name another store; "
        "the same command resumes"
    )
    with store.write("kind", "a", BASIS) as staging:
        assert staging.has("0.parquet")


@pytest.mark.parametrize("place", ["file", "file/store", "x" * 300, "a\0b"])
def test_a_store_that_cannot_be_one_is_refused_when_it_is_opened(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="name a folder that you can write to, with --store or `store`"):
        Store.open(str(tmp_path / place))


def test_a_store_that_does_not_exist_yet_is_made_by_the_first_write_alone(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "deep" / "store"))
    assert not store.root.exists()
    store.require_writable()
    assert list(store.root.iterdir()) == []


def test_work_on_other_inputs_is_not_taken_up(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for basis, restart, expected in (("b", False, False), ("b", False, True), ("c", False, False), ("c", True, False)):
        with store.write("kind", "a", Basis(tools=basis), restart=restart) as staging:
            assert staging.has("0.parquet") is expected
            staging.write_table("0.parquet", pa.table({"x": [1]}))


def test_replacing_an_artifact_keeps_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store)
    fill(store, rows=5)
    found = store.find("kind", "a")
    assert found is not None
    assert found.manifest.rows == 5
    assert [path.name for path in (tmp_path / "kind").iterdir() if path.is_dir()] == ["a"]


def _hold(root: Path) -> None:
    with Store(root).write("kind", "a", BASIS) as staging:
        staging.write_table("0.parquet", pa.table({"x": [1]}))
        time.sleep(60)


def test_one_writer_at_a_time_and_a_killed_one_frees_the_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)
    writer = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path,))
    writer.start()
    deadline = time.monotonic() + 30
    while store.progress("kind", "a")[0] != "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(UserError, match="another process is making kind a"), store.write("kind", "a", BASIS):
        pass
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert store.progress("kind", "a") == ("interrupted", "")
    fill(store)
    assert store.progress("kind", "a") == ("absent", "")


def test_a_run_killed_between_manifest_and_rename_only_renames(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.write("kind", "a", BASIS) as staging:
        staging.write_table("0.parquet", pa.table({"x": [1]}))
        staging.seal(kind="kind", fingerprint="a", identity={}, config={}, inputs=[], stats={}, provenance={})
    with store.write("kind", "a", BASIS) as staging:
        assert staging.sealed
        artifact = store.commit("kind", "a")
    assert [shard.path for shard in artifact.manifest.shards] == ["0.parquet"]


def test_adopted_shards_outlive_their_source(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store)
    source = store.find("kind", "a")
    assert source is not None
    with store.write("other", "o", BASIS) as staging:
        staging.adopt(source.folder, source.shards("part/"))
        staging.seal(kind="other", fingerprint="o", identity={}, config={}, inputs=[], stats={}, provenance={})
        adopted = store.commit("other", "o")
    (source.folder / "part" / "0.parquet").unlink()
    assert pa.parquet.read_table(adopted.folder / "part" / "0.parquet").num_rows == 3


def test_damaged_or_newer_manifests_are_said_in_one_line(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store)
    path = store.folder("kind", "a") / "manifest.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"schema_version": 99}))
    with pytest.raises(UserError, match="manifest schema 99"):
        store.find("kind", "a")
    assert "manifest schema 99" in store.manifest_fault("kind", "a")
    assert list(store.newest_first("kind")) == []
    path.write_text("{")
    assert store.find("kind", "a") is None
    assert store.manifest_fault("kind", "a") == "the manifest is damaged"
    assert store.unreadable("kind") == {"a": "the manifest is damaged"}


def test_fingerprints_ignore_order_and_see_values() -> None:
    assert fingerprint({"a": 1, "b": [2.0, None]}) == fingerprint({"b": [2.0, None], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_differences_name_the_field() -> None:
    old, new = {"train": {"alpha": 0.05, "r": 1}, "x": 1}, {"train": {"alpha": 0.1, "r": 1}, "y": 2}
    assert list(differences(old, new)) == ["train.alpha 0.05 → 0.1", "x 1 → (absent)", "y (absent) → 2"]


def chain(store: Store, *names: str) -> None:
    """Artifacts of one kind each, every one made from the one before."""
    inputs: list[InputRef] = []
    for name in names:
        with store.write(name, "x", Basis(tuple(inputs))) as staging:
            staging.path("note.txt").write_text(name)
            staging.seal(kind=name, fingerprint="x", identity={}, config={}, inputs=inputs, stats={}, provenance={})
            inputs = [store.commit(name, "x").ref]


def test_removing_takes_all_that_was_made_from_it_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    chain(store, "a", "b", "c")
    chain(store, "other")
    ref = InputRef("b", "x", "")
    with pytest.raises(ZeroDivisionError), store.write("d", "x", Basis((ref,))) as staging:
        staging.path("note.txt").write_text(str(1 / 0))
    (tmp_path / "c" / ".aside-y").mkdir()  # of a process that was killed while it removed
    assert sorted(store.remove_with_descendants([ref])) == ["b/x", "c/x", "d/x"]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.name == "x") == ["x", "x"]
    assert store.find("a", "x")
    assert store.find("other", "x")
    assert [path.name for path in tmp_path.rglob(".*") if path.is_dir()] == [".verified"]
    assert store.remove_with_descendants([ref]) == ["b/x"]


def test_what_is_being_made_is_not_taken_from_under_its_maker(tmp_path: Path) -> None:
    store = Store(tmp_path)
    chain(store, "a", "b")
    with store.write("b", "x", Basis(), restart=True), pytest.raises(UserError, match="b/x must be removed, but is"):
        store.remove_with_descendants([InputRef("a", "x", "")])
    assert store.find("a", "x") is None
    assert store.find("b", "x")

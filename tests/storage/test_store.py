"""An artifact is in the store whole or not at all, and has one writer at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pyarrow as pa
import pytest

from storage import Store, UserError
from storage.remote import open_store
from tests.storage.helpers import BASIS, existing, files_under, fill, finish


def test_commit_gives_the_folder_its_name_and_lists_every_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.write("kind", "a", BASIS) as staging:
        (staging.scratch / "half.txt").write_text("not kept")
        manifest = finish(store, staging, files=1).manifest
    assert files_under(store.folder("kind", "a")) == ["empty.txt", "manifest.json", "part/0.parquet"]
    assert [(shard.path, shard.rows) for shard in manifest.shards] == [("empty.txt", None), ("part/0.parquet", 3)]
    found = existing(store)
    assert found.manifest == manifest
    assert found.manifest.rows == 3


def test_no_manifest_no_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store)
    (store.folder("kind", "a") / "manifest.json").unlink()
    assert store.find("kind", "a") is None


@pytest.mark.parametrize("place", ["file", "file/store", "x" * 300, "a\0b"])
def test_a_store_that_cannot_be_one_is_refused_when_it_is_opened(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="name a folder that you can write to, with --store or `store`"):
        open_store(str(tmp_path / place))


def test_a_store_that_does_not_exist_yet_is_made_by_the_first_write_alone(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "deep" / "store"))
    assert not store.root.exists()
    store.require_writable()
    assert list(store.root.iterdir()) == []


def test_replacing_an_artifact_keeps_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store, files=1)
    fill(store, rows=5, files=1)
    assert existing(store).manifest.rows == 5
    assert [path.name for path in (tmp_path / "kind").iterdir() if path.is_dir()] == ["a"]


def _hold(root: Path) -> None:
    with Store(root).write("kind", "a", BASIS) as staging:
        staging.write_table("0.parquet", pa.table({"x": [1]}))
        time.sleep(60)


@pytest.mark.process
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

"""Unfinished work: what an interrupted run leaves, and what the next one keeps of it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pyarrow as pa
import pytest

from storage import Basis, Store, UserError
from tests.storage.helpers import BASIS, fill, seal


def test_an_error_leaves_finished_shards_and_a_note(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ZeroDivisionError), store.write("kind", "a", BASIS) as staging:
        staging.write_table("0.parquet", pa.table({"x": [1]}))
        _ = 1 / 0
    assert store.find("kind", "a") is None
    assert store.progress("kind", "a") == ("failed", "division by zero")
    with store.write("kind", "a", BASIS) as staging:
        assert staging.has("0.parquet")


def test_the_note_of_an_error_holds_no_secret_and_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "not-to-be-stored")
    store = Store(tmp_path)
    with pytest.raises(RuntimeError), store.write("kind", "a", BASIS):
        raise RuntimeError("wrong key not-to-be-stored in r\udcff.txt")
    assert store.progress("kind", "a") == ("failed", "wrong key *** in r?.txt")


def test_finishing_a_file_never_changes_the_process_s_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that other threads create at that moment would be writable by everybody."""
    store = Store(tmp_path)
    with store.write("kind", "a", BASIS) as staging:
        staging.path("a.txt").write_text("x")
        staging.path("a.txt").chmod(0o600)
        monkeypatch.setattr(os, "umask", lambda _: pytest.fail("the umask is set"))
        staging.finish("a.txt")
        assert staging.path("a.txt").stat().st_mode & 0o700 == 0o600


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
        f"{tmp_path}: cannot be written (No space left on device: 1.parquet); free some space, or name another store; "
        "the same command resumes"
    )
    with store.write("kind", "a", BASIS) as staging:
        assert staging.has("0.parquet")


def test_work_on_other_inputs_is_not_taken_up(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for basis, restart, expected in (("b", False, False), ("b", False, True), ("c", False, False), ("c", True, False)):
        with store.write("kind", "a", Basis(tools=basis), restart=restart) as staging:
            assert staging.has("0.parquet") is expected
            staging.write_table("0.parquet", pa.table({"x": [1]}))


def test_a_run_killed_between_manifest_and_rename_only_renames(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.write("kind", "a", BASIS) as staging:
        staging.write_table("0.parquet", pa.table({"x": [1]}))
        seal(staging)
    with store.write("kind", "a", BASIS) as staging:
        assert staging.sealed
        artifact = store.commit("kind", "a")
    assert [shard.path for shard in artifact.manifest.shards] == ["0.parquet"]


def test_adopted_shards_outlive_their_source(tmp_path: Path) -> None:
    store = Store(tmp_path)
    source = fill(store)
    with store.write("other", "o", BASIS) as staging:
        staging.adopt(source.folder, source.shards("part/"))
        seal(staging, "o", "other")
        adopted = store.commit("other", "o")
    (source.folder / "part" / "0.parquet").unlink()
    assert pa.parquet.read_table(adopted.folder / "part" / "0.parquet").num_rows == 3

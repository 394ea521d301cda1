"""Damage to an artifact's files is noticed before they are read, and files are hashed once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

import storage.integrity
from storage import Artifact, Basis, Store
from storage.errors import Damaged
from storage.manifest import Shard
from tests.storage.helpers import existing, fill, seal


def committed(root: Path) -> tuple[Store, Artifact]:
    store = Store(root)
    return store, fill(store, rows=100, files=1)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flip_and_set_the_clock_back(path: Path) -> None:
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "flipped, times kept": flip_and_set_the_clock_back,
    "truncated": lambda path: os.truncate(path, 5),
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": Path.unlink,
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_named_and_never_handed_out(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    store, artifact = committed(tmp_path)
    assert store.fault(artifact) == ""
    damage(artifact.home / "part/0.parquet")
    for looked in (store, Store(tmp_path)):  # the process that made it, and another one
        found = existing(looked)
        assert looked.fault(found).startswith("file part/0.parquet is ")
        with pytest.raises(Damaged, match=r"part/0\.parquet"):
            _ = found.folder
        with pytest.raises(Damaged, match=r"part/0\.parquet"):
            found.files("part/")
        assert [path.read_text() for path in found.files("empty")] == [""]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were hashed, in order."""
    files: list[Path] = []
    real = storage.integrity.sha256_of

    def recorded(path: Path) -> str:
        files.append(path)
        return real(path)

    monkeypatch.setattr(storage.integrity, "sha256_of", recorded)
    return files


def test_what_a_writer_has_hashed_is_not_hashed_again(tmp_path: Path, hashed: list[Path]) -> None:
    store, artifact = committed(tmp_path)
    _ = artifact.folder
    found = existing(Store(tmp_path))
    _ = found.folder
    assert store.fault(found) == ""
    assert hashed == []


def test_a_copied_store_is_hashed_when_it_is_read_and_not_when_it_is_looked_at(
    tmp_path: Path, hashed: list[Path]
) -> None:
    committed(tmp_path / "there")
    shutil.copytree(tmp_path / "there", tmp_path / "here")
    shutil.rmtree(tmp_path / "here" / ".verified")
    store = Store(tmp_path / "here")
    found = existing(store)
    assert store.fault(found) == ""
    assert hashed == []
    _ = found.folder, found.folder
    assert len(hashed) == 2
    assert store.verify(found) == ""
    assert len(hashed) == 4, "whatever is remembered"
    again = existing(Store(tmp_path / "here"))
    _ = again.folder
    assert len(hashed) == 4


def test_looking_and_reading_write_nothing(tmp_path: Path) -> None:
    committed(tmp_path)
    shutil.rmtree(tmp_path / ".verified")
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    store = Store(tmp_path)
    found = existing(store)
    assert (store.fault(found), store.progress("kind", "a"), store.progress("kind", "b")) == (
        "",
        ("absent", ""),
        ("absent", ""),
    )
    _ = found.folder
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_a_damaged_shard_of_unfinished_work_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ZeroDivisionError), store.write("kind", "a", Basis()) as staging:
        staging.write_table("0.parquet", pa.table({"x": [1]}))
        staging.write_table("1.parquet", pa.table({"x": [2]}))
        raise ZeroDivisionError
    flip(tmp_path / "kind" / ".staging-a" / "0.parquet")
    with store.write("kind", "a", Basis()) as staging:
        assert not staging.has("0.parquet")
        assert staging.has("1.parquet")
        assert [shard.path for shard in staging.finished()] == ["1.parquet"]


def test_sealed_work_is_taken_up_without_its_records_unless_it_is_damaged(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for damaged in (False, True):
        with store.write("kind", "a", Basis(), restart=True) as staging:
            staging.write_table("0.parquet", pa.table({"x": [1]}))
            seal(staging)
        shutil.rmtree(tmp_path / "kind" / ".staging-a" / ".shards")  # killed within `commit`
        if damaged:
            flip(tmp_path / "kind" / ".staging-a" / "0.parquet")
        with store.write("kind", "a", Basis()) as staging:
            assert staging.sealed is not damaged


def test_files_of_an_artifact_follow_the_umask(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.write("kind", "a", Basis()) as staging:
        path = staging.path("model.safetensors")
        path.write_bytes(b"x")
        path.chmod(0o600)  # as libraries that write by way of a temporary file leave it
        shard: Shard = staging.finish("model.safetensors")
    mask = os.umask(0)
    os.umask(mask)
    assert shard.bytes == 1
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask

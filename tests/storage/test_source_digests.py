"""A raw file is read once at most, and any change that its directory entry shows is seen."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from storage import DigestCache
from storage import source_digests as digests

SIZE = 20_000_000  # more than the pieces that are sampled
MIDDLE = 150_000  # between the first piece and the second


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "raw.jsonl"
    path.write_bytes(os.urandom(1000) * (SIZE // 1000))
    return path


@pytest.fixture
def whole_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that were read as a whole."""
    reads: list[str] = []
    original = digests._whole
    monkeypatch.setattr(digests, "_whole", lambda path: reads.append(path.name) or original(path))
    return reads


def cache(file: Path) -> DigestCache:
    """What the next process finds."""
    return DigestCache(file.parent / ".digests.json")


def edit(file: Path, place: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(place)
        byte = opened.read(1)
        opened.seek(place)
        opened.write(bytes([byte[0] ^ 1]))
    later(file)


def later(file: Path) -> None:
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))


def test_a_new_file_is_sampled_and_a_known_one_not_opened(file: Path, whole_reads: list[str]) -> None:
    first = cache(file)(file)
    file.chmod(0)
    assert cache(file)(file) == first
    assert whole_reads == []


@pytest.mark.parametrize("confirmed", [True, False])
def test_an_edit_between_the_pieces_is_seen_and_a_touch_is_none(
    file: Path, whole_reads: list[str], confirmed: bool
) -> None:
    first = cache(file)(file)
    if confirmed:
        cache(file).confirm(file, digests._whole(file))
        later(file)
        assert cache(file)(file) == first
    edit(file, MIDDLE)
    second = cache(file)(file)
    assert second != first
    edit(file, MIDDLE)  # and back again
    assert (cache(file)(file) == first) is confirmed, "bytes that were never read cannot be recognised"
    assert whole_reads


def test_a_file_that_grows_or_changes_in_a_piece_is_another(file: Path, whole_reads: list[str]) -> None:
    first = cache(file)(file)
    edit(file, SIZE - 1)
    second = cache(file)(file)
    with file.open("ab") as opened:
        opened.write(b"x")
    assert len({first, second, cache(file)(file)}) == 3
    assert whole_reads == []


def test_a_copy_is_the_same_file(file: Path) -> None:
    first = cache(file)(file)
    copy = file.with_name("copy.jsonl")
    shutil.copyfile(file, copy)
    assert cache(file)(copy) == first
    edit(copy, MIDDLE)
    assert cache(file)(copy) != first


def test_the_digest_of_all_bytes_is_read_once(file: Path, whole_reads: list[str]) -> None:
    whole = cache(file).whole(file)
    assert cache(file).whole(file) == whole
    assert whole_reads == ["raw.jsonl"]
    edit(file, MIDDLE)
    assert cache(file).whole(file) != whole


def test_small_and_damaged_caches(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_bytes(b"x")
    first = DigestCache(tmp_path / "other.json")(small)
    stat = small.stat()
    key = f"{small.resolve()}|{stat.st_size}|{stat.st_ino}|{stat.st_mtime_ns}"
    infinite = f'{{"{key}": {{"digest": Infinity, "sample": null}}}}'
    for damaged in ('{"a": "an older form"}', "{", "[]", infinite, infinite.replace("Infinity", "null")):
        (tmp_path / ".digests.json").write_text(damaged)
        assert cache(small)(small) == first


def test_two_processes_keep_each_others_digests(file: Path) -> None:
    other = file.with_name("other.jsonl")
    other.write_text("x")
    leftover = file.parent / "..digests.json.0123abcd.tmp"  # of a process that was killed
    leftover.write_text("{")
    first, second = cache(file), cache(file)
    first(file)
    second(other)
    assert len(json.loads((file.parent / ".digests.json").read_text())) == 2
    assert not leftover.exists()

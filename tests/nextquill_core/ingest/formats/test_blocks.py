from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from nextquill_core.errors import DataError
from nextquill_core.ingest.formats.blocks import read_blocks
from tests.nextquill_core.ingest.world import World, lines, plain_category

TEXT = b"one\n\ntwo\r\n" + b"x" * 50 + b"\nlast"


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 7, 64, 1000])
@pytest.mark.parametrize("name", ["f.txt", "f.gz"])
def test_blocks_are_whole_lines_and_together_the_file(tmp_path: Path, block_bytes: int, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(TEXT) if name.endswith("gz") else TEXT)
    found = list(read_blocks(path, block_bytes=block_bytes))
    assert b"".join(block.data for block in found) == TEXT
    assert all(bytes(block.data).endswith(b"\n") for block in found[:-1])
    line, end = 1, 0
    for block in found:
        end += len(block.data)
        assert (block.first_line, block.end) == (line, end)
        line += bytes(block.data).count(b"\n")
    for block in found:  # from the end of any block on, the rest is the same
        rest = list(read_blocks(path, block_bytes=block_bytes, start=block.end, first_line=9))
        assert b"".join(part.data for part in rest) == TEXT[block.end :]


def test_gzip_members_and_padding_are_one_text(tmp_path: Path) -> None:
    path = tmp_path / "f.gz"
    path.write_bytes(gzip.compress(b"a\nb") + gzip.compress(b"") + gzip.compress(b"c\n") + b"\0" * 512)
    assert b"".join(block.data for block in read_blocks(path)) == b"a\nbc\n"
    assert not any(block.fault for block in read_blocks(path))


def test_a_file_that_is_not_read_to_its_end_leaves_no_thread_behind(tmp_path: Path) -> None:
    import threading

    path = tmp_path / "f.txt"
    path.write_bytes(b"line\n" * 1000)
    stream = read_blocks(path, block_bytes=10)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "ingest-reader"]


@pytest.mark.parametrize("keep", [0.3, 0.9, -1, -9])
def test_a_truncated_gzip_file_gives_its_whole_lines_and_one_bad_row(tmp_path: Path, keep: float) -> None:
    reviews, items = plain_category()
    chance = random.Random(1)
    padded = [row | {"title": "".join(chance.choices("abcdefgh", k=200))} for row in reviews for _ in range(20)]
    data = gzip.compress(lines(padded), mtime=0)
    world = World(tmp_path)
    path = tmp_path / "r.jsonl.gz"
    path.write_bytes(data[: int(keep) if keep < 0 else int(len(data) * keep)])
    stats = world.run(world.config(path, world.write("i.jsonl", items)), batch_bytes=1 << 12)
    (bad,) = world.table("quarantine")
    assert bad["reason"] == "truncated-gzip"
    assert bad["line"] == stats["reviews"]["read"]
    assert bad["raw"] == (json.dumps(padded[bad["line"] - 1])[: len(bad["raw"])] if bad["line"] <= 480 else "")
    again = world.run(world.config(path, tmp_path / "i.jsonl"), batch_bytes=1 << 12)  # taken up, not counted twice
    assert again == stats


def test_a_corrupt_gzip_file_ends_in_a_bad_row(tmp_path: Path) -> None:
    reviews, items = plain_category()
    chance = random.Random(1)
    padded = [row | {"title": "".join(chance.choices("abcdefgh", k=400))} for row in reviews for _ in range(10)]
    data = bytearray(gzip.compress(lines(padded), mtime=0))
    data[-6] ^= 255  # the checksum
    world = World(tmp_path)
    path = tmp_path / "r.jsonl.gz"
    path.write_bytes(data)
    config = world.config(path, world.write("i.jsonl", items))
    stats = world.run(config, batch_bytes=1 << 12)
    assert stats["reviews"]["dropped"]["corrupt-gzip"] == 1
    (bad,) = world.table("quarantine")
    assert len(padded) / 2 < bad["line"] == stats["reviews"]["read"] < len(padded)
    assert world.run(config, batch_bytes=1 << 16, out=tmp_path / "again") == stats


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.jsonl", gzip.compress(b"{}", mtime=0), r"is gzip, but its name does not end in \.gz"),
        ("r.jsonl.gz", b"{}", r"its name ends in \.gz, but it is not gzip"),
        ("r.jsonl", "{}{}".encode("utf-16-le"), "is UTF-16-LE without a byte order mark"),
        ("r.jsonl", b"\n \n", "holds no rows"),
        ("r.jsonl.gz", gzip.compress(b"", mtime=0), "holds no rows"),
        ("r.jsonl", b"user_id,text\nu,hello\n", r"none of 2 rows can be read.*user_id,text"),
        ("r.jsonl", b'[{"a": 1},\n{"a": 2}]\n', "none of"),
        ("r.jsonl", b"\x89PNG\r\n\x1a\n\x00\x00", "none of"),
    ],
)
def test_a_file_that_is_no_json_lines_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    world = World(tmp_path)
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        world.run(world.config(path, world.write("i.jsonl", plain_category()[1])))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)

"""Text files: compressed and encoded in any way, no data file at all, and cut into blocks of whole lines."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import random
import subprocess
import sys
from pathlib import Path

import pytest

from nextquill_core.errors import DataError
from nextquill_core.ingest.formats import text_files
from nextquill_core.ingest.formats.text_files import encoding_remedy, is_empty_file, likely_encoding, read_blocks
from nextquill_core.ingest.sources import source
from tests.nextquill_core.ingest.tables import CANONICAL, FINE, HEADER, batches, rows, write_csv
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


ROW = {"user_id": "u", "parent_asin": "i", "rating": 5.0, "title": "t", "text": "x" * 30, "timestamp": 1600000000000}

LINE = json.dumps(ROW).encode() + b"\n"

READING = """
import resource, sys
from pathlib import Path
from nextquill_core.ingest.sources import source
found = [0, 0, 0]
largest = 0
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for batch in source("amazon-2023", {}).read("reviews", Path(sys.argv[1]), None):
    found = [a + b for a, b in zip(found, (batch.rows.height, len(batch.bad), batch.blank))]
    largest = max(largest, len(batch.bad))
print(*found, largest, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def read_alone(path: Path) -> list[int]:
    """Read a file in a separate process.

    Returns:
        Its rows, bad rows and blank lines, the bad rows of its largest batch, and the memory in MB that it took.
    """
    done = subprocess.run([sys.executable, "-c", READING, str(path)], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.process
def test_blank_lines_cost_no_memory(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "r.jsonl.gz", "wb", compresslevel=1) as file:
        file.write(LINE + b"\n" * (48 << 20) + LINE)
    rows, bad, blank, _, megabytes = read_alone(tmp_path / "r.jsonl.gz")
    assert (rows, bad, blank) == (2, 0, 48 << 20)
    assert megabytes < 500  # 4,000 where a blank line costs 80 bytes


@pytest.mark.process
def test_short_bad_lines_come_in_small_batches(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(LINE + b"bad\n" * 300_000)
    rows, bad, blank, largest, megabytes = read_alone(tmp_path / "r.jsonl")
    assert (rows, bad, blank) == (1, 300_000, 0)
    assert largest <= text_files.MOST_ODD_LINES
    assert megabytes < 400


def lines_of(seed: int) -> bytes:
    choice = random.Random(seed)
    kinds = (LINE, b"\n", b"\n\n\n", b" \n", b"\r\n", b"bad\n", b"[1]\n", b'{"a": 1}\r\n', b"{\n", b'\xff"\n')
    text = b"".join(choice.choice(kinds) for _ in range(choice.randrange(60)))
    return text.removesuffix(b"\n") if choice.random() < 0.3 else text


@pytest.mark.parametrize("seed", range(60))
def test_every_line_has_its_number_wherever_blocks_are_cut(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # compared with the lines as Python splits them, and with reading that resumes after every batch
    path = tmp_path / "r.jsonl"
    path.write_bytes(lines_of(seed))
    lines = path.read_bytes().split(b"\n")
    lines = lines[:-1] if lines[-1] == b"" else lines
    blank = sum(not line.strip(b" \t\r\n") for line in lines)
    good = [number for number, line in enumerate(lines, 1) if line.strip() == LINE.strip()]
    monkeypatch.setattr(text_files, "MOST_ODD_LINES", 3)
    batches = list(source("amazon-2023", {}).read("reviews", path, None))
    assert sum(batch.blank for batch in batches) == blank
    assert [line for batch in batches for line in batch.rows["line"] if line in good] == good
    bad = {row.line: row.raw for batch in batches for row in batch.bad}
    rows = [line for batch in batches for line in batch.rows["line"]]
    assert len(bad) + len(rows) + blank == len(lines)
    for number, raw in bad.items():
        assert raw.rstrip("\r") == lines[number - 1].decode(errors="replace").rstrip("\r")
    for done, batch in enumerate(batches):
        again = list(source("amazon-2023", {}).read("reviews", path, batch.resume))
        assert [later.last_line for later in again] == [later.last_line for later in batches[done + 1 :]]
        assert [later.bad for later in again] == [later.bad for later in batches[done + 1 :]]


def test_blocks_of_objects_are_cut_by_size_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.jsonl").write_bytes(LINE * 500 + b"\n" * 500)
    expected = [(block.first_line, block.end) for block in read_blocks(tmp_path / "r.jsonl", block_bytes=1 << 14)]
    monkeypatch.setattr(text_files, "MOST_ODD_LINES", 3)
    assert [(b.first_line, b.end) for b in read_blocks(tmp_path / "r.jsonl", block_bytes=1 << 14)] == expected


def test_blocks_of_another_encoding_are_resumed_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_bytes("één\n\ntwee€\nλ".encode("utf-16"))
    whole = "één\n\ntwee€\nλ".encode()
    found = list(read_blocks(path, block_bytes=5))
    assert b"".join(bytes(block.data) for block in found) == whole
    for block in found:
        rest = read_blocks(path, block_bytes=5, start=block.end, first_line=9)
        assert b"".join(bytes(part.data) for part in rest) == whole[block.end :]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGES = (
    b"<!DOCTYPE html><html>",
    b"\xef\xbb\xbf\n <HTML lang=en>",
    b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>",
)
NAMES = ("r.jsonl", "r.jsonl.gz", "r.json", "r.csv", "r.CSV.GZ", "r.tsv", "r.parquet")
SUBSTITUTES = [
    (POINTER, "is a Git LFS pointer, not the file itself; run `git lfs pull`"),
    *((page, "is an HTML or XML page, not a data file; download it again") for page in PAGES),
    (b"PK\x03\x04", "is a zip archive; unpack it"),
    (bz2.compress(b"x"), "is compressed with bzip2; unpack it"),
    (lzma.compress(b"x"), "is compressed with xz; unpack it"),
    (b"\x28\xb5\x2f\xfd\x00", "is compressed with zstd; unpack it"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), SUBSTITUTES, ids=lambda value: repr(value)[:30])
def test_substitutes_of_a_data_file_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    for name in NAMES:
        with pytest.raises(DataError) as caught:
            batches(write_csv_as_it_is(tmp_path, content, name))
        assert f"{name}: {message}" in str(caught.value)
        assert "\n" not in str(caught.value)
    path = write_csv_as_it_is(tmp_path, gzip.compress(content), "r.jsonl.gz")
    if content in (POINTER, *PAGES):
        with pytest.raises(DataError, match=message.split(",", maxsplit=1)[0]):
            batches(path)


@pytest.mark.parametrize("name", ["amazon-2023", "amazon-2014", "lamp"])
def test_every_source_names_substitutes(tmp_path: Path, name: str) -> None:
    reader = source(name, {"task": "lamp-4"} if name == "lamp" else None)
    for file in ("r.json", "r.json.gz"):
        path = write_csv_as_it_is(tmp_path, POINTER, file)
        with pytest.raises(DataError, match="Git LFS pointer"):
            list(reader.read("reviews", path))


def write_csv_as_it_is(folder: Path, content: bytes, name: str) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_the_case_of_an_ending_does_not_count(tmp_path: Path) -> None:
    data = HEADER + FINE + b"\n"
    for name in ("R.CSV.GZ", "r.csv.Gz", "R.CSV"):
        path = write_csv_as_it_is(tmp_path, gzip.compress(data) if name.lower().endswith("gz") else data, name)
        assert rows(batches(path)) == [CANONICAL]


TEXTS = [
    ("cp1252", "très bon café, numéro 3\n"),
    ("cp1252", "Größe passt, schöne Schuhe für mich – „toll“\n"),
    ("cp1251", "Очень хорошая книга, мне понравилась\n"),
    ("cp1250", "Bardzo dobra książka, świetna łatwa\n"),
    ("gb18030", "这本书非常好,我很喜欢它,推荐给大家\n" * 2),
    ("cp932", "とても良い本でした。面白い\n" * 2),
    ("big5", "這本書非常好,我很喜歡\n" * 2),
    ("euc_kr", "정말 좋은 책입니다\n"),
]


@pytest.mark.parametrize(("encoding", "text"), TEXTS)
def test_another_encoding_is_named_and_read_when_it_is_set(tmp_path: Path, encoding: str, text: str) -> None:
    text = text.replace(",", "").replace("\n", " ").strip()
    data = HEADER + FINE.replace(b"good", text.encode(encoding)) + b"\n"
    assert likely_encoding(data) == encoding
    path = write_csv(tmp_path, data)
    (batch,) = batches(path)
    assert [row.reason for row in batch.bad] == ["invalid-utf8"]
    assert f"set ingest.options.encoding: {encoding}, or convert the file: iconv -f" in batch.bad[0].remedy
    for name in ("r.csv", "r.csv.gz"):
        path = write_csv(tmp_path, data, name)
        for size in (None, 7):
            assert rows(batches(path, options={"encoding": encoding}, size=size)) == [CANONICAL | {"text": text}]


def test_bytes_that_an_encoding_does_not_have_spoil_their_row_alone(tmp_path: Path) -> None:
    data = HEADER + FINE + b"\n" + FINE.replace(b"good", b"\x81") + b"\n" + FINE + b"\n"  # cp1252 has no 0x81
    (batch,) = batches(write_csv(tmp_path, data), options={"encoding": "cp1252"})
    assert [(row.line, row.reason) for row in batch.bad] == [(3, "invalid-utf8")]
    assert rows([batch]) == [CANONICAL, CANONICAL]


@pytest.mark.parametrize("mark", ["utf-16", "utf-32"])
def test_a_byte_order_mark_sets_the_encoding(tmp_path: Path, mark: str) -> None:
    text = (HEADER + FINE.replace(b"good", "é😀".encode()) + b"\n").decode()
    for name in ("r.csv", "r.csv.gz"):
        for options in ({}, {"encoding": "cp1252"}):
            path = write_csv(tmp_path, text.encode(mark), name)
            assert rows(batches(path, options=options)) == [CANONICAL | {"text": "é😀"}]
    marked = write_csv(tmp_path, codecs.BOM_UTF8 + text.encode())
    assert rows(batches(marked, options={"encoding": "cp1252"})) == [CANONICAL | {"text": "é😀"}]


def test_utf16_without_a_mark_is_named(tmp_path: Path) -> None:
    for encoding, name in (("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE")):
        path = write_csv(tmp_path, (HEADER + FINE).decode().encode(encoding))
        with pytest.raises(
            DataError, match=rf"ingest\.options\.encoding: {encoding}; or convert it: iconv -f {name} -t"
        ):
            batches(path)
        assert rows(batches(path, options={"encoding": encoding})) == [CANONICAL]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_an_encoding_that_needs_a_mark_is_refused_where_there_is_none(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(DataError, match=rf"no byte order mark, so it is not {encoding}; set ingest\.options\.encoding"):
        batches(write_csv(tmp_path, HEADER + FINE), options={"encoding": encoding})


def test_the_encoding_is_guessed_in_damaged_gzip_too(tmp_path: Path) -> None:
    data = bytearray(gzip.compress("é\n".encode("cp1252") * 9, mtime=0))
    data[10] |= 0b110  # the first block is of a type that does not exist
    path = tmp_path / "r.csv.gz"
    path.write_bytes(data)
    assert "set ingest.options.encoding: cp1252" in encoding_remedy(path)


def test_damaged_files_are_not_empty(tmp_path: Path) -> None:
    for name, content in (("a.gz", b"\x1f\x8bnot gzip"), ("b.parquet", b"PAR1 and no more"), ("c.csv", b"x")):
        (tmp_path / name).write_bytes(content)
        assert not is_empty_file(tmp_path / name)
    assert not is_empty_file(tmp_path / "missing")

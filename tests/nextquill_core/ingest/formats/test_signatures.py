"""Files that are something else than their names say, and texts in other encodings than UTF-8."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
from pathlib import Path

import pytest

from nextquill_core.errors import DataError
from nextquill_core.ingest.formats.blocks import read_blocks
from nextquill_core.ingest.formats.signatures import likely_encoding
from nextquill_core.ingest.sources import source
from tests.nextquill_core.ingest.sources.test_table import CANONICAL, FINE, HEADER, batches, rows, write_csv

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
def test_what_lies_where_a_data_file_should_be_is_named(tmp_path: Path, content: bytes, message: str) -> None:
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
def test_every_source_names_them(tmp_path: Path, name: str) -> None:
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


def test_json_lines_in_another_encoding(tmp_path: Path) -> None:
    line = '{"uid": "u1", "bid": "i1", "stars": 4, "head": "h", "body": "é", "date": 1530964800000, "x": "ü"}'
    other = line.replace("é", "e")
    path = write_csv_as_it_is(tmp_path, f"{line}\n{other}\n".encode("cp1252"), "r.jsonl")
    (batch,) = batches(path)
    assert [(row.line, row.reason) for row in batch.bad] == [(1, "invalid-utf8")]  # in line 2 it is no mapped key
    assert "encoding: cp1252" in batch.bad[0].remedy
    assert [row["text"] for row in rows([batch])] == ["e"]
    found = batches(path, options={"encoding": "latin-1"}, size=20)
    assert [row["text"] for row in rows(found)] == ["é", "e"]
    assert [row["text"] for row in rows(source_rest(path, found[0].resume))] == ["e"]


def source_rest(path: Path, resume: object) -> list:
    from tests.nextquill_core.ingest.sources.test_table import OPTIONS

    reader = source("table", OPTIONS | {"encoding": "latin-1"})
    return list(reader.read("reviews", path, resume))


def test_bytes_that_an_encoding_does_not_have_spoil_their_row_alone(tmp_path: Path) -> None:
    data = HEADER + FINE + b"\n" + FINE.replace(b"good", b"\x81") + b"\n" + FINE + b"\n"  # cp1252 has no 0x81
    (batch,) = batches(write_csv(tmp_path, data), options={"encoding": "cp1252"})
    assert [(row.line, row.reason) for row in batch.bad] == [(3, "invalid-utf8")]
    assert rows([batch]) == [CANONICAL, CANONICAL]


@pytest.mark.parametrize("mark", ["utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, mark: str) -> None:
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


def test_blocks_of_another_encoding_are_resumed_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_bytes("één\n\ntwee€\nλ".encode("utf-16"))
    whole = "één\n\ntwee€\nλ".encode()
    found = list(read_blocks(path, block_bytes=5))
    assert b"".join(bytes(block.data) for block in found) == whole
    for block in found:
        rest = read_blocks(path, block_bytes=5, start=block.end, first_line=9)
        assert b"".join(bytes(part.data) for part in rest) == whole[block.end :]

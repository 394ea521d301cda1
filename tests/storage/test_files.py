"""Files and folders exist whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import storage.files
from storage import UserError
from storage.files import (
    atomic_path,
    discard_temporaries,
    read_json,
    read_text,
    replace_folder,
    require_writable,
    user_path,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "note.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text(str(1 / 0))
    assert (names(path.parent), path.read_text()) == (["note.txt"], "whole")


def test_only_temporary_files_of_this_name_are_discarded(tmp_path: Path) -> None:
    for name in (".a[1].json.0123abcd.tmp", ".a1.json.0123abcd.tmp", "a[1].json"):
        (tmp_path / name).touch()
    discard_temporaries(tmp_path / "a[1].json")
    assert names(tmp_path) == [".a1.json.0123abcd.tmp", "a[1].json"]


def test_json_comes_back_as_it_was_written(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": "ö"}
    write_json(tmp_path / "v.json", value)
    assert read_json(tmp_path / "v.json") == value


def test_what_is_no_small_text_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would block without a writer
    with pytest.raises(OSError, match="it is not a file"):
        read_text(tmp_path / "pipe")
    write_text(tmp_path / "long", "x" * 11)
    monkeypatch.setattr(storage.files, "MOST_TEXT", 10)
    with pytest.raises(OSError, match="11 bytes, at most 10 are read"):
        read_text(tmp_path / "long")
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="utf-8"):
        read_text(tmp_path / "bytes")
    (tmp_path / "deep").write_text("[" * 5)
    monkeypatch.setattr(storage.files.json, "loads", _too_deep)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(tmp_path / "deep")


def _too_deep(text: str) -> None:
    raise RecursionError


@pytest.mark.parametrize("exchange", [True, False], ids=["names exchanged", "names not exchanged"])
def test_a_folder_replaces_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(storage.files, "_renameat2", lambda: None)
    new, name, aside = (tmp_path / each for each in ("new", "name", "aside"))
    for number in range(2):
        new.mkdir()
        (new / "n.txt").write_text(str(number))
        replace_folder(new, name, aside)
    assert names(tmp_path) == ["aside", "name"]
    assert ((name / "n.txt").read_text(), (aside / "n.txt").read_text()) == ("1", "0")


def test_a_path_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/below: cannot be written \(Not a directory.*\); name another folder"):
        require_writable(tmp_path / "file" / "below", "name another folder")
    with (
        pytest.raises(UserError, match=r"is not a path .*; name another folder"),
        user_path("a", "name another folder"),
    ):
        (tmp_path / "a\0b").touch()
    require_writable(tmp_path / "new", "name another folder")
    assert names(tmp_path / "new") == []

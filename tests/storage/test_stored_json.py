"""Stored JSON is read only in the form that its reader expects; anything else is one line for the user."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from storage import UserError, write_json
from storage.stored_json import expect_form, read_checked, read_document, read_lines


@dataclass(frozen=True)
class Point:
    x: int
    name: str = ""


def test_values_of_the_expected_form_come_back(tmp_path: Path) -> None:
    write_json(tmp_path / "p.json", {"x": 1, "name": "a"})
    assert read_checked(tmp_path / "p.json", Point, "") == Point(1, "a")
    (tmp_path / "p.jsonl").write_text('{"x": 1}\n{"x": 2}\n{"x"')
    assert read_lines(tmp_path / "p.jsonl", Point, "") == [Point(1), Point(2)], "the last line is unfinished"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"x": "one"}', "the stored value has an unexpected form; run it again"),
        ("[" * 100_000, "the file is damaged; run it again"),
        ("{", "the file is damaged; run it again"),
        (None, r"the file cannot be read \(No such file or directory\); run it again"),
    ],
)
def test_a_file_of_another_form_is_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "p.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=f"{path}: {message}"):
        read_checked(path, Point, "run it again")
    if text is None or not text.startswith('{"'):
        with pytest.raises(UserError, match=f"{path}: {message}"):
            read_document(path, "run it again")


def test_a_line_of_another_form_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"x": 1}\n{"x": []}\n')
    with pytest.raises(UserError, match=r"p\.jsonl, line 2: the stored value has an unexpected form"):
        read_lines(path, Point, "")
    path.write_text('{"x": 1}\nno\n')
    with pytest.raises(UserError, match=r"p\.jsonl, line 2: the text is not JSON"):
        read_lines(path, Point, "")


def test_errors_on_an_unexpected_form_are_one_line_and_others_pass() -> None:
    for broken in (lambda: {}["key"], lambda: None.rows, lambda: 1 / 0, lambda: int("x")):  # type: ignore[attr-defined]
        message = r"stats: the stored value has an unexpected form .*; run it again"
        with pytest.raises(UserError, match=message), expect_form("stats", "run it again"):
            broken()
    with pytest.raises(UserError, match=r"^mine$"), expect_form("stats", ""):
        raise UserError("mine")
    with pytest.raises(OSError, match="disk"), expect_form("stats", ""):
        raise OSError("disk")

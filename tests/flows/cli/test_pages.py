"""Pages of commands are written whole or not at all, in folders that are made for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.cli.pages import write_page
from storage import UserError


def test_missing_folders_are_made_and_the_page_is_opened_on_demand(
    monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("flows.cli.pages.typer.launch", opened.append)
    page = tmp_path / "a" / "b" / "page.html"
    write_page(page, "<p>ü", show=False)
    assert (page.read_text(encoding="utf-8"), opened) == ("<p>ü", [])
    write_page(page, "<p>new", show=True)
    assert (page.read_text(encoding="utf-8"), opened) == ("<p>new", [page.as_uri()])
    assert capsys.readouterr().out == f"page: {page}\n" * 2


def test_a_page_that_cannot_be_written_leaves_the_old_one(monkeypatch: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_page(page, "old", show=False)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("storage.files.sync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_page(page, "new", show=False)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"page.html": "old"}

"""Pages that commands write for a browser."""

from __future__ import annotations

from pathlib import Path

import typer

from storage.files import user_path, write_text


def write_page(path: Path, html: str, *, show: bool) -> None:
    """Write a page, print where it is and, if wanted, open it in a browser.

    Missing folders are created. The page is written whole or not at all.

    Args:
        path: The file.
        html: The page.
        show: Whether to open it.

    Raises:
        UserError: The file cannot be written.
    """
    with user_path(path, "name a file that you can write to"):
        write_text(path, html)
    print(f"page: {path.resolve()}")
    if show:
        typer.launch(path.resolve().as_uri())

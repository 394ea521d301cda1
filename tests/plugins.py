"""Packages that add something by an entry point, left in a folder as pip would leave them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest


def add_package(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, code: str, group: str, points: Mapping[str, str]
) -> None:
    """Write a distribution with one module and put its folder on the path.

    Args:
        folder: Where it is written.
        monkeypatch: Takes the folder off the path again.
        module: Name of the module and of the distribution, version 1.0.
        code: Content of the module.
        group: Entry point group, such as `nextquill.methods`.
        points: Entry points of the group, name to `module:object`.
    """
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(code, encoding="utf-8")
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}", encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, module, raising=False)

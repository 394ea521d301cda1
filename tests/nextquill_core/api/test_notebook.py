"""The notebook of the front runs from its first cell to its last, on a small run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nextquill_core.pipeline.run import Run
from tests.conftest import REPO
from tests.world import small_settings, write_config

NOTEBOOK = REPO / "docs" / "notebooks" / "api.ipynb"


def cells() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return found


def test_the_notebook_has_no_outputs_and_each_cell_one_id() -> None:
    assert json.loads(NOTEBOOK.read_text(encoding="utf-8"))["nbformat"] == 4
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len({cell["id"] for cell in cells()}) == len(cells())


@pytest.mark.pipeline
def test_every_cell_runs(whole: Run, small_world: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", small_settings(small_world, Path(whole.config.store)))
    source = ["".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code"]
    opened = [cell.replace('nq.open("demo")', f"nq.open({str(config)!r})") for cell in source]
    assert sum(before != after for before, after in zip(source, opened, strict=True)) == 1
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in opened:
        exec(cell, names)  # noqa: S102 - a notebook of this repository
    assert names["draft"].n_tokens
    assert names["hidden"].grad is not None

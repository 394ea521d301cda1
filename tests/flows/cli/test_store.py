"""Commands on models and artifacts, on a store of up to a thousand artifacts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.orchestration import fill
from flows.cli.status import status_rows
from nextquill_core.config import load_config
from nextquill_core.pipeline.run import Run
from tests.flows.cli.test_main import nextquill, refused
from tests.nextquill_core.pipeline.test_plan import make_all
from tests.world import small_settings, write_config


@pytest.fixture
def config(small_world: Path, tmp_path: Path) -> Path:
    path = write_config(tmp_path / "config.yaml", small_settings(small_world, tmp_path / "store"))
    make_all(Run(load_config(path, [])))
    return path


def test_gc_lists_and_removes_only_with_apply(monkeypatch: Any, capsys: Any, config: Path) -> None:
    store = config.parent / "store"
    before = {path.parent for path in store.glob("*/*/manifest.json")}
    changed = load_config(config, ["train.alpha=0.3"])
    make_all(Run(changed))
    extra = {path.parent for path in store.glob("*/*/manifest.json")} - before
    assert nextquill(monkeypatch, "gc", "--config", config) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in lines} == {path.name for path in extra}
    assert last.startswith(f"{len(extra)} of {len(before | extra)} can be removed, ")
    assert last.endswith("--apply removes them")
    assert nextquill(monkeypatch, "gc", "--config", config, "--apply", "--older-than", 1) == 0
    assert capsys.readouterr().out.splitlines() == [f"removed 0 of {len(before | extra)}, 0 Bytes"]
    assert all(path.exists() for path in extra)
    other = write_config(config.parent / "other.yaml", changed.model_dump(mode="json"))
    assert nextquill(monkeypatch, "gc", "--config", config, "--config", other, "--apply") == 0
    assert "removed 0 of" in capsys.readouterr().out
    assert nextquill(monkeypatch, "gc", "--config", config, "--apply") == 0
    assert {path.parent for path in store.glob("*/*/manifest.json")} == before
    assert nextquill(monkeypatch, "status", "--config", config, "--json") == 0
    out = capsys.readouterr().out
    assert {row["state"] for row in json.loads(out[out.index("[") :])} == {"fresh"}


def test_gc_of_two_stores_is_refused(monkeypatch: Any, capsys: Any, config: Path, small_world: Path) -> None:
    other = write_config(config.parent / "o.yaml", small_settings(small_world, config.parent / "elsewhere"))
    said = refused(monkeypatch, capsys, "gc", "--config", config, "--config", other)
    assert "the configurations name different stores" in said


def test_a_thousand_artifacts_are_listed_at_once(monkeypatch: Any, capsys: Any, config: Path) -> None:
    fill(config.parent / "store", 1000)
    settings = load_config(config, [])
    started = time.monotonic()
    assert {row["state"] for row in status_rows(settings)} == {"fresh"}
    assert {row["state"] for row in status_rows(load_config(config, ["seed=9"]))} <= {"stale", "missing", "fresh"}
    assert nextquill(monkeypatch, "status", "--all", "--config", config, "--json") == 0
    assert time.monotonic() - started < 10, "a generous bound for a busy machine; measured: 0.5 s for each"
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 1000
    assert {tuple(row["standing"]) for row in rows} == {("current",), ()}
    assert sum(row["standing"] == ["current"] for row in rows) < 50
    assert nextquill(monkeypatch, "status", "--all", "--config", config) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["all", "1,000"]


def test_missing_accepted_adapters_are_one_line(monkeypatch: Any, capsys: Any, config: Path) -> None:
    for command, message in (
        (["path", "accepted"], "nothing has been accepted as `nextquill`"),
        (["promote", "--back"], "`nextquill` pointed at nothing before"),
        (["promote", "--metric", "length_ratio"], "`length_ratio` cannot decide a promotion"),
    ):
        assert message in refused(monkeypatch, capsys, *command, "--config", config)

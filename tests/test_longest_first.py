"""Files whose tests take longest begin first, by a record that `make record` writes."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import longest_first
from tests.conftest import REPO


def item(file: str, *marks: str) -> Any:
    return SimpleNamespace(path=REPO / file, get_closest_marker=lambda mark: mark in marks)


def test_recorded_seconds_decide_and_what_tests_start_where_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(longest_first, "SECONDS", tmp_path / "seconds.json")
    (tmp_path / "seconds.json").write_text('{"tests/long.py": 15, "tests/short.py": 5}')
    new = item("tests/new.py", "flow")
    unmarked = [item("tests/many.py") for _ in range(60)]
    items = [item("tests/short.py", "flow"), *unmarked, new, item("tests/long.py"), item("tests/short.py")]
    longest_first.pytest_collection_modifyitems(items)
    order = list(dict.fromkeys(one.path.stem for one in items))
    assert order == ["long", "new", "many", "short"], "15, 10, 60 × 0.1 and 5 seconds"


def test_a_run_that_records_adds_up_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(longest_first, "SECONDS", tmp_path / "seconds.json")
    monkeypatch.setattr(longest_first, "_took", defaultdict(float, {"tests/a.py": 7.6, "tests/b.py": 4.9}))
    whole: Any = SimpleNamespace(config=SimpleNamespace())
    part: Any = SimpleNamespace(config=SimpleNamespace(workerinput={}))
    monkeypatch.delenv(longest_first.RECORD, raising=False)  # `make record` sets it for this test too
    longest_first.pytest_sessionfinish(whole)
    monkeypatch.setenv(longest_first.RECORD, "1")
    longest_first.pytest_sessionfinish(part)
    assert not longest_first.SECONDS.exists()
    report: Any = SimpleNamespace(nodeid="tests/b.py::test_it[a::b]", duration=0.7)
    longest_first.pytest_runtest_logreport(report)
    longest_first.pytest_sessionfinish(whole)
    assert json.loads(longest_first.SECONDS.read_text()) == {"tests/a.py": 8, "tests/b.py": 6}


def test_the_record_names_files_that_exist() -> None:
    recorded = json.loads(longest_first.SECONDS.read_text(encoding="utf-8"))
    assert [path for path in recorded if not (REPO / path).is_file()] == []

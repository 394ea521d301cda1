"""What a person sees of a stage's progress: its main work, and phases at either end of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nextquill_core import progress as core
from nextquill_core.progress import PhaseFile
from tasks import progress
from tasks.progress import ShownProgress


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    monkeypatch.setattr(progress, "get_run_logger", lambda: logging.getLogger("a flow run"))
    caplog.set_level(logging.INFO, "a flow run")
    return lambda: caplog.messages


def test_a_phase_is_logged_when_it_begins_and_ends_and_not_more_often(logged: Callable[[], list[str]]) -> None:
    with ShownProgress("train nextquill") as shown:
        shown(0, 0, phase="loading the model")
        shown(1, 40, "loss 2")  # in the first second: a stage of milliseconds shows nothing
        shown._started -= 2
        for done in range(200):
            shown(done, 200, phase="validating")
        shown(40, 40, "loss 1")
    assert logged() == [
        "train nextquill: loading the model",
        "train nextquill: validating 0 of 200  ",
        "train nextquill: 40 of 40  loss 1",
    ]


def test_the_bar_names_the_phase_and_knows_no_total_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with ShownProgress("train") as shown:
        shown(0, 0, phase="loading the model")
        assert shown._bar is not None
        (task,) = shown._bar.tasks
        assert (task.description, task.total) == ("train: loading the model", None)
        shown(40, 200, phase="validating")
        assert (task.description, task.completed, task.total) == ("train: validating", 40, 200)
        shown._started -= 2
        shown(3, 40, "loss 1")
        assert (task.description, task.completed, task.total) == ("train", 3, 40)


def test_brackets_in_a_note_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with ShownProgress("scan") as shown:
        shown._started -= 2
        shown(1, 2, "reviews[/old].jsonl")
        assert shown._bar is not None
        table = shown._bar.make_tasks_table(shown._bar.tasks)
        assert "reviews[/old].jsonl" in {str(cell) for column in table.columns for cell in column.cells}


def test_a_phase_of_another_process_is_shown_while_it_lasts_and_its_end_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "WRITE_EVERY_S", 60.0)
    seen: list[Any] = []

    def shown(done: float, total: float, note: str = "", *, phase: str = "") -> None:
        seen.append((done, total, phase))

    there, here = PhaseFile(tmp_path / "phase.json"), PhaseFile(tmp_path / "phase.json")
    here.show(shown)
    there(0, 200, phase="validating")
    there(1, 200, phase="validating")  # too soon
    here.show(shown)
    there._written = time.monotonic() - 61
    there(40, 200, phase="validating")
    here.show(shown)
    there(0, 0, phase="saving")
    here.show(shown)
    there.clear()
    here.show(shown)
    here.show(shown)
    assert seen == [(0, 200, "validating"), (40, 200, "validating"), (0, 0, "saving"), (0, 0, "")]
    PhaseFile(tmp_path / "no folder" / "phase.json")(0, 0, phase="no reason to fail")

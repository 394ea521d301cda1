"""Rows of a run are numbered as `nextquill status` lists them; what has no row belongs to the next one."""

from __future__ import annotations

import logging

from flows.cli.runner import _RunLines
from nextquill_core.pipeline import Step
from tasks.numbering import ROW, begin_row, numbered, row_number, with_number

SCAN, INGEST, MODEL = (Step(name, name, {}) for name in ("scan", "ingest", "model"))


def test_a_step_without_a_row_counts_to_the_next_row_of_its_stage() -> None:
    with numbered(lambda: [INGEST, MODEL]):
        assert row_number() == ""
        begin_row([SCAN, INGEST])
        assert with_number("scan Demo") == "[1/2] scan Demo"
        begin_row([MODEL])
        assert row_number() == "[2/2]"
        assert row_number(INGEST.fingerprint) == "[1/2]"
        begin_row([SCAN])
        assert with_number("scan Demo") == "scan Demo", "nothing of this stage has a row"
    assert row_number() == ""


def test_a_stage_that_runs_alone_is_not_numbered() -> None:
    begin_row([INGEST])
    assert row_number(INGEST.fingerprint) == ""
    assert with_number("ingest") == "ingest"


def test_a_line_of_the_log_has_the_number_of_its_own_row() -> None:
    def line(**attributes: str) -> str:
        record = logging.LogRecord("x", logging.INFO, "x", 1, "%s: made", ("ingest",), None)
        vars(record).update(attributes)
        return _RunLines().format(record).split(None, 1)[1]

    with numbered(lambda: [INGEST, MODEL]):
        begin_row([MODEL])
        assert line() == "[2/2] ingest: made"
        assert line(**{ROW: row_number(INGEST.fingerprint)}) == "[1/2] ingest: made"
    assert line() == "ingest: made"

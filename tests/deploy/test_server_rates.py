"""What is measured of Prefect's servers: every run arrives, and nothing is left running."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from benchmarks.server_rates import create_runs, running

pytestmark = [pytest.mark.flow, pytest.mark.process, pytest.mark.slow]


def test_each_run_reaches_the_database_with_its_logs(tmp_path: Path) -> None:
    with running("sqlite", tmp_path) as server:
        measured = asyncio.run(create_runs(server.api, 12, 4))
    assert (measured["completed"], measured["clients"], measured["requests"], measured["failed"]) == (12, 4, 48, 0)
    assert measured["completed_per_second"] == pytest.approx(12 / measured["seconds"], rel=0.2)
    with sqlite3.connect(tmp_path / "prefect" / "prefect.db") as database:
        assert database.execute("select count(*) from flow_run where state_type = 'COMPLETED'").fetchone() == (12,)
        assert database.execute("select count(*) from log").fetchone() == (120,)
    assert not Path(f"/proc/{server.pid}").exists()


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="not-a-number"),
        running("sqlite", tmp_path, PREFECT_SERVER_API_PORT="not-a-number"),
    ):
        pass

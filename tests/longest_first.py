"""The order in which the files of a test run begin: those whose tests take longest come first.

With one file a process at a time, a long file that begins late is still running when all others have ended. The seconds
of each file are recorded by `make record` in `tests/seconds.json`.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path

import pytest

from tests.forked import REPO

RECORD = "NEXTQUILL_RECORD_SECONDS"
"""Environment variable with which a test run writes the record."""
SECONDS = Path(__file__).with_name("seconds.json")
"""Seconds that the tests of each file took; files that took less than `SHORT_S` are left out."""
SHORT_S = 5
STARTS = ("flow", "ranks", "process", "slurm", "pipeline")
"""Marks of tests that start servers or ranks, or run a whole pipeline."""
START_S = 10
"""Seconds that such a test is taken to need, in a file that is not in the record; other tests take a hundredth."""

_took: defaultdict[str, float] = defaultdict(float)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files whose tests take longest, by the record or, without one, by what the tests start."""
    recorded: dict[str, int] = json.loads(SECONDS.read_text(encoding="utf-8"))
    seconds: defaultdict[Path, float] = defaultdict(float)
    for item in items:
        seconds[item.path] += START_S if any(map(item.get_closest_marker, STARTS)) else START_S / 100
    for path in seconds:
        seconds[path] = recorded.get(path.relative_to(REPO).as_posix(), seconds[path])
    items.sort(key=lambda item: -seconds[item.path])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add the time of a test's setup, call or teardown to that of its file."""
    _took[report.nodeid.partition("::")[0]] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the record, if this run is to make one; of pytest's processes, the one that knows all reports does."""
    if RECORD in os.environ and not hasattr(session.config, "workerinput"):
        long = {path: round(seconds) for path, seconds in sorted(_took.items()) if seconds >= SHORT_S}
        SECONDS.write_text(json.dumps(long, indent=1) + "\n", encoding="utf-8")

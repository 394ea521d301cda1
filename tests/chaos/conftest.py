"""The table of `make chaos`."""

from __future__ import annotations

from typing import Any

from tests.chaos.trials import MINUTES, TRIALS, table


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if TRIALS or MINUTES:
        for line in table():
            terminalreporter.write_line(line)

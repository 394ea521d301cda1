"""What the fork server of `tests.forked` imports once, before it forks."""

from __future__ import annotations

import importlib

from flows.cli.runner import MODEL_LIBRARIES, quiet_prefect

quiet_prefect()  # before Prefect is imported
for flow in ("pipeline", "promote", "study", "sweep", "reproduce"):
    importlib.import_module(f"flows.{flow}")
for library in MODEL_LIBRARIES:
    importlib.import_module(library)
for command_line in ("flows.cli.main", "prefect.cli"):
    importlib.import_module(command_line)

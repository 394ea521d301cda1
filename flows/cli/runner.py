"""Run a flow in this process: start or check the Prefect server, load the libraries, and print the flow's log."""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import typer

from flows.cli.interruption import INTERRUPTED
from flows.server import outage
from flows.server.settings import URL, ServerSettings, bypass_proxy_for_loopback, require_server, server_settings
from flows.server.temporary import ServerFailed, TemporaryServer
from storage.errors import UserError
from storage.files import require_writable

MODEL_LIBRARIES = ("nextquill_core.model.tiny", "nextquill_core.evaluation.metrics", "peft")
"""Modules that take long to import, and that stages with a model need."""


def run_flow(name: str, settings: Any, *, about: Iterable[str] = (), narrator: Any = None, **options: Any) -> Any:
    """Run the flow in `flows.NAME` in this process, and return its result.

    Args:
        name: Name of the flow and of its module.
        settings: Configuration of the flow, or its configurations.
        about: Lines that are printed first, before anything that takes seconds to load.
        narrator: A `flows.stage.Narrator` that shows more of the run.
        options: Further parameters of the flow.

    Raises:
        UserError: The Prefect server that is set does not answer, or the flow found invalid input.
        Exit: A signal ended the flow, or the Prefect server failed.
    """
    quiet_prefect()
    server = server_settings()
    require_server(server)
    for line in (*about, _about_server(server)):
        print(line, file=sys.stderr, flush=True)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        with server_ready(server, meanwhile=() if name == "ingest" else MODEL_LIBRARIES):
            flow = getattr(importlib.import_module(f"flows.{name}"), name)
            interrupted = importlib.import_module("flows.results").Interrupted
    except ServerFailed as error:
        print(f"nextquill: {error}; the same command resumes", file=sys.stderr)
        raise typer.Exit(1) from None
    print_run_lines()
    if narrator:
        importlib.import_module("flows.stage").narrators.append(narrator)
    outage.watch()
    with no_heartbeats():
        try:
            return flow(settings, **options)
        except interrupted:
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            outage.end_if_cause(error)
            raise


def _about_server(server: ServerSettings) -> str:
    if server.url:
        return f"Prefect: uses the server at {server.shown_url}"
    return "Prefect: starts a temporary server for this run, in 10 to 30 s (`nextquill up` keeps one running)"


def quiet_prefect() -> None:
    """Set defaults of Prefect's settings; call it before Prefect is imported."""
    # Offline and quiet: the terminal shows our own lines, the UI shows everything.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    # The first server on a machine creates its database, which can take longer than Prefect's 20 s on a slow one.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    bypass_proxy_for_loopback()


@contextmanager
def server_ready(checked: ServerSettings, meanwhile: Sequence[str] = ()) -> Iterator[None]:
    """Start a temporary Prefect server, if one is needed, while the block runs, and wait for it after the block.

    The start takes about seven seconds on one core. Prefect itself would start a server at the first request and wait.

    Args:
        checked: Settings of the server that has been found to answer, if one is set.
        meanwhile: Modules that will be needed; they are imported while the server starts.

    Raises:
        UserError: Prefect has another server set, which does not answer, or temporary servers are switched off.
        ServerFailed: The temporary server does not start.
    """
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_SERVER_EPHEMERAL_ENABLED
    from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS as STARTUP_S

    if url := PREFECT_API_URL.value():  # from a file such as prefect.toml, which only Prefect reads
        if url != checked.url:
            require_server(ServerSettings({**checked.values, URL: url}))
        yield
        return
    if not PREFECT_SERVER_EPHEMERAL_ENABLED.value():
        raise UserError(
            "no Prefect server is set, and temporary ones are switched off (PREFECT_SERVER_EPHEMERAL_ENABLED)",
            URL,
            "start one (`nextquill up`) and set its URL, or allow temporary ones",
        )
    require_writable(PREFECT_HOME.value(), "set PREFECT_HOME to a folder that you can write to")
    began = time.monotonic()
    # The kernel ends the server when the thread that started it ends, so the main thread starts it.
    server = TemporaryServer(PREFECT_HOME.value(), float(STARTUP_S.value()))
    # Exit functions are called in reverse order: Prefect, which is imported later, first sends its last reports.
    atexit.register(server.end)
    yield
    for module in meanwhile:
        if not server.answers(wait_s=0):
            importlib.import_module(module)
    server.wait_until_healthy()
    server.keep_alive()
    use_temporary(server)
    print(f"Prefect: the temporary server answers after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def use_temporary(server: TemporaryServer) -> None:
    """Make Prefect in this process use a temporary server in place of the one that it would start.

    `PREFECT_API_URL` stays unset, because jobs and workers on other machines cannot reach this server.
    """
    from prefect.server.api.server import SubprocessASGIServer

    temporary = SubprocessASGIServer()
    temporary.port, temporary.server_process, temporary.running = server.port, server.process, True


def no_heartbeats() -> AbstractContextManager[Any]:
    """Switch off the heartbeats of flow runs, unless the user has set their frequency.

    Prefect waits up to a second for the heartbeat thread at the end of each flow run. The user at the terminal sees
    without heartbeats whether the command still runs.
    """
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    return temporary_settings(set_defaults={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})


class _RunLines(logging.Formatter):
    """Formats a line as time, number of the row of the plan and message: `13:05:20  [3/6] score: made in 12.1 s …`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s  %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name of the overridden method
        """Return the line without a traceback."""
        from tasks.numbering import ROW, with_number

        return f"{record.asctime}  {with_number(record.message, getattr(record, ROW, None))}"


def print_run_lines() -> None:
    """Print the log lines of our flows and tasks; the engine's lines are shown in the UI only."""
    import prefect

    engine = str(Path(prefect.__file__).parent)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_RunLines())
    handler.addFilter(lambda record: not record.pathname.startswith(engine))
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addHandler(handler)

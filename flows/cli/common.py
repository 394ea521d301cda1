"""What all commands share: their options, the configuration behind them, and starting a flow."""

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
from typing import Annotated, Any

import typer

from flows.cli.interruption import INTERRUPTED
from flows.server import outage
from flows.server.settings import URL, ServerSettings, require_server, server_settings, spare_loopback_the_proxy
from flows.server.temporary import ServerFailed, TemporaryServer
from storage.errors import UserError
from storage.files import require_writable

MODEL_LIBRARIES = ("nextquill_core.model.tiny", "nextquill_core.evaluation.metrics", "peft")
"""What takes long to import, and stages that read or write a model import at their turn."""

UNLIMITED = 100_000
"""Columns of what is no terminal."""

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="The run's YAML file, or `demo` and others that come along.")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key; YAML value.")]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", metavar="NAME|FILE", help="Lay `paper`, `tuned` or a YAML file over the config."),
]
StoreOption = Annotated[str | None, typer.Option("--store", help="Artifact store; overrides the config's.")]


def read_settings(config: Path, overrides: list[str] | None, store: str | None, preset: str | None = None) -> Any:
    """The `Config` in a file with a preset, then single keys, laid over it.

    Raises:
        UserError: The file cannot be read, or a key or value does not fit.
    """
    from nextquill_core.config import load_config
    from nextquill_core.config.packaged import config_path, preset_overrides

    laid = preset_overrides(preset) if preset else []
    return load_config(config_path(str(config)), [*laid, *(overrides or []), *([f"store={store}"] if store else [])])


def run_flow(name: str, settings: Any, *, about: Iterable[str] = (), **options: Any) -> Any:
    """Run the flow in `flows.NAME` here, and return what it returns.

    Args:
        name: Name of the flow and its module.
        settings: Its configuration, or configurations.
        about: What is about to happen; these lines are printed before anything that takes seconds to load.
        options: Its further parameters.

    Raises:
        UserError: The Prefect server that is set does not answer, or what the flow raises.
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
    """Settle, before Prefect is imported, what it is to be like unless the user says otherwise."""
    # Offline and quiet: our own lines in the terminal, everything in the UI.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    # Patient: the first server on a machine makes its database, which a slow one does not do in Prefect's 20 s.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    spare_loopback_the_proxy()


@contextmanager
def server_ready(checked: ServerSettings, meanwhile: Sequence[str] = ()) -> Iterator[None]:
    """Start Prefect's temporary server, where one is needed, beside the block; at the end of the block it is there.

    Prefect itself would start it, and wait, at the first call. It takes seven seconds, and all of them on one core.

    Args:
        checked: The server that has been found to answer, if one is set.
        meanwhile: Modules that will be wanted, to import while there is still something to wait for.

    Raises:
        UserError: Prefect itself knows of another server, which does not answer, or may start none.
        ServerFailed: The temporary server does not come up.
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
            "start one (`nextquill up`) and set it, or allow temporary ones",
        )
    require_writable(PREFECT_HOME.value(), "set PREFECT_HOME to a folder that you can write to")
    began = time.monotonic()
    # The kernel ends the server when the thread that started it ends, so this is done here, in the main thread.
    server = TemporaryServer(PREFECT_HOME.value(), float(STARTUP_S.value()))
    # At exit, functions are called in the reverse order: Prefect, imported later, first sends what it still has to say.
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
    """Let Prefect in this process take a server for the temporary one that it would start.

    `PREFECT_API_URL` stays unset, because jobs and workers on other machines could not reach this server.
    """
    from prefect.server.api.server import SubprocessASGIServer

    temporary = SubprocessASGIServer()
    temporary.port, temporary.server_process, temporary.running = server.port, server.process, True


def no_heartbeats() -> AbstractContextManager[Any]:
    """Leave out what tells a server that a run is alive, unless somebody has set it.

    At the end of each flow run, Prefect waits up to a second for the thread that tells it. Whoever types the command
    sees that it has died.
    """
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    return temporary_settings(set_defaults={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})


def print_run_lines() -> None:
    """Print what our flows and tasks log; the engine's own lines stay in the UI."""
    import prefect

    engine = str(Path(prefect.__file__).parent)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    handler.addFilter(lambda record: not record.pathname.startswith(engine))
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addHandler(handler)


def console() -> Any:
    """Return the console that tables are printed to; a pipe or a file has no width at which lines are folded."""
    from rich.console import Console

    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=UNLIMITED)


def readable_size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"

"""What all commands share: their options, the configuration behind them, and starting a flow."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

MODEL_LIBRARIES = ("nextquill_core.model.tiny", "nextquill_core.evaluation.metrics", "peft")
"""What takes long to import, and stages that read or write a model import at their turn."""

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The run's YAML file.")]
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
    from nextquill_core.config.presets import preset_overrides

    laid = preset_overrides(preset) if preset else []
    return load_config(config, [*laid, *(overrides or []), *([f"store={store}"] if store else [])])


def run_flow(name: str, settings: Any, **options: Any) -> Any:
    """Run the flow in `flows.NAME` here, and return what it returns.

    Args:
        name: Of the flow and its module.
        settings: Its configuration, or configurations.
        options: Its further parameters.
    """
    quiet_prefect()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    with server_ready(meanwhile=() if name == "ingest" else MODEL_LIBRARIES):
        flow = getattr(importlib.import_module(f"flows.{name}"), name)
    print_run_lines()
    with no_heartbeats():
        return flow(settings, **options)


def quiet_prefect() -> None:
    """Settle, before Prefect is imported, what it is to be like unless the user says otherwise."""
    # Offline and quiet: our own lines in the terminal, everything in the UI.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    # Patient: the first server on a machine makes its database, which a slow one does not do in Prefect's 20 s.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")


@contextmanager
def server_ready(meanwhile: Sequence[str] = ()) -> Iterator[None]:
    """Start Prefect's temporary server, where one is needed, beside the block; at the end of the block it is there.

    Prefect itself would start it, and wait, at the first call. It takes seven seconds, and all of them on one core.

    Args:
        meanwhile: Modules that will be wanted, to import while there is still something to wait for.
    """
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_ENABLED

    if PREFECT_API_URL.value() or not PREFECT_SERVER_EPHEMERAL_ENABLED.value():
        yield
        return
    from prefect.server.api.server import SubprocessASGIServer

    with ThreadPoolExecutor(1) as beside:
        started = beside.submit(SubprocessASGIServer().start)
        yield
        for module in meanwhile:
            if not started.done():
                importlib.import_module(module)
        started.result()


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
    """Where tables are shown."""
    from rich.console import Console

    return Console()


def readable_size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"

"""What all commands share: their options, the configuration behind them, and starting a flow."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

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
    # Offline and quiet unless the user says otherwise: our own lines in the terminal, everything in the UI.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    flow = getattr(importlib.import_module(f"flows.{name}"), name)
    print_run_lines()
    return flow(settings, **options)


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

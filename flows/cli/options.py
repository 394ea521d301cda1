"""Options that several commands share, and the configuration that they select."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from enum import StrEnum
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from storage.errors import UserError

PIPE_WIDTH = 100_000
"""Columns of an output that is no terminal."""

_CONFIG = typer.Option("--config", "-c", help="YAML file of the run, or the name of a packaged one such as `demo`.")
ConfigOption = Annotated[Path, _CONFIG]
NoConfigOption = Annotated[Path | None, _CONFIG]
"""For a command that does without a configuration under another option."""
ConfigsOption = Annotated[
    list[Path], typer.Option("--config", "-c", help="YAML file of a run; name several by repeating the option.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key; the value is YAML.")
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME|FILE",
        help="Override the config by a preset (mirror, paper, paper-v1, paper-v2, tuned) or a YAML file.",
    ),
]
StoreOption = Annotated[str | None, typer.Option("--store", help="Artifact store; overrides the config's.")]


def finite(value: float | None) -> float | None:
    """Refuse a number that is not finite; as the callback of an option, since bounds let `nan` pass."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


class Panel(StrEnum):
    """Groups of commands in `nextquill --help`."""

    pipeline = "Run the pipeline"
    look = "Look at results"
    registry = "Manage models and artifacts"
    server = "Prefect server"
    data = "Data and choices"


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options --config, --set, --preset and --store.

    The command's parameter `settings` gets the configuration that the options select. Its parameter `config` is the
    option --config, one file or a list of files; for a list, `settings` is a list, too. Where --config may be left out,
    both are None without it, and the other three options are refused. A parameter `given` of a command with one
    file gets these options as they were typed, for a command line that selects the same configuration.
    """
    parameters = inspect.signature(command, eval_str=True).parameters

    @functools.wraps(command)
    def configured(
        config: Path | list[Path] | None,
        overrides: SetOption,
        preset: PresetOption,
        store: StoreOption,
        **other: Any,
    ) -> None:
        from nextquill_core.config.packaged import read_config

        def read(file: Path) -> Any:
            return read_config(str(file), overrides or [], store, preset)

        if config is None:
            if overrides or preset or store:
                raise UserError("--set, --preset and --store change a configuration", "--config", "name one")
            command(config=None, settings=None, **other)
            return
        settings = list(map(read, config)) if isinstance(config, list) else read(config)
        if "given" in parameters:
            options = [("--config", str(config)), ("--preset", preset), *(("--set", one) for one in overrides or [])]
            other["given"] = [word for pair in (*options, ("--store", store)) if pair[1] for word in pair]
        command(config=config, settings=settings, **other)

    own = {name: parameter for name, parameter in parameters.items() if name not in ("settings", "given")}
    for name, option in (("overrides", SetOption), ("preset", PresetOption), ("store", StoreOption)):
        own[name] = Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=option)
    keyword_only = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in own.values()]
    vars(configured)["__signature__"] = inspect.Signature(keyword_only)
    return configured


def console() -> Any:
    """Return the console for tables; lines are not folded if the output is a pipe or a file."""
    from rich.console import Console

    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=PIPE_WIDTH)

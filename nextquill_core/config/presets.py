"""Presets: settings that belong together, by name, laid over a config file as a bundle of `--set`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from nextquill_core.config.loading import load_config
from storage.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "presets"


def preset_names() -> list[str]:
    """The presets that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def preset_path(name: str) -> Path:
    """The file of a preset: one of the project's by its name, or any YAML file by its path.

    Raises:
        UserError: There is none; the nearest name is told.
    """
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return path
    names = preset_names()
    if name in names:
        return FOLDER / f"{name}.yaml"
    near = difflib.get_close_matches(name, names, n=1)
    there = f"there are {', '.join(names)}; or name a YAML file"
    raise UserError(f"no preset {name!r}", "--preset", f"did you mean {near[0]!r}?" if near else there)


def preset_overrides(name: str) -> list[str]:
    """A preset as overrides for `load_config`, to stand before those of the command line.

    So the order is: `--set` over the preset, the preset over the file, the file over the defaults. A preset is asked
    for on the command line, by a person who expects its values and not those that the file happens to have.

    Args:
        name: As `preset_path` takes it.

    Returns:
        `dotted.key=value` for each key, the value in YAML.

    Raises:
        UserError: There is no such preset, or what is in it does not fit the configuration.
    """
    path = preset_path(name)
    load_config(path)  # so that a fault is told of the preset and not of the config it is laid over
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return [f"{key}={_flow(value)}" for key, value in _leaves(values)]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _flow(value: Any) -> str:
    """A value as YAML on one line, without the marker of a document's end."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("...\n").strip()

"""Configurations and presets that come with NextQuill, found by name.

`nextquill_core/configs` is a link to the folder `configs` of the repository, and a copy of it in an installed package.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from nextquill_core.config.loading import load_config
from storage.errors import UserError

FOLDER = Path(__file__).resolve().parents[1] / "configs"
PRESETS = FOLDER / "presets"
ENDINGS = (".yaml", ".yml")


def config_path(name: str) -> Path:
    """Return the file of a configuration: a path, or one of NextQuill's own by its name, such as `demo`.

    Raises:
        UserError: The name has no ending of a YAML file, and nothing is known by it.
    """
    return _found(name, FOLDER, "configuration", "--config")


def preset_names() -> list[str]:
    """Return the names of the presets that come with NextQuill."""
    return _names(PRESETS)


def preset_path(name: str) -> Path:
    """Return the file of a preset: a path, or one of NextQuill's own by its name.

    Raises:
        UserError: The name has no ending of a YAML file, and nothing is known by it.
    """
    return _found(name, PRESETS, "preset", "--preset")


def _found(name: str, folder: Path, what: str, option: str) -> Path:
    path = Path(name).expanduser()
    if path.suffix in ENDINGS or len(path.parts) > 1 or path.exists():
        return path
    names = _names(folder)
    if name in names:
        return folder / f"{name}.yaml"
    near = difflib.get_close_matches(name, names, n=1)
    known = f"use one of {', '.join(names)}, or the path of a YAML file"
    raise UserError(f"no {what} {name!r}", option, f"did you mean {near[0]!r}?" if near else known)


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def preset_overrides(name: str) -> list[str]:
    """Return a preset as overrides for `load_config`, which go before those of the command line.

    The order is: `--set` over the preset, the preset over the file, the file over the defaults. A preset is named on
    the command line by a user who expects its values, and not those of the file.

    Args:
        name: As `preset_path` takes it.

    Returns:
        `dotted.key=value` for each key, the value in YAML.

    Raises:
        UserError: There is no such preset, or what is in it does not fit the configuration.
    """
    path = preset_path(name)
    load_config(path)  # so that an error names the preset, not the config
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

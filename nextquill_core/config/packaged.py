"""Configurations and presets that are part of the package, found by name.

`nextquill_core/configs` is a link to the folder `configs` of the repository, and a copy of it in an installed package.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nextquill_core.config.loading import Config, load_config
from storage.errors import UserError

FOLDER = Path(__file__).resolve().parents[1] / "configs"
PRESETS = FOLDER / "presets"
ENDINGS = (".yaml", ".yml")


def config_path(name: str) -> Path:
    """Return the file of a configuration, given as a path or by the name of a packaged one, such as `demo`.

    Raises:
        UserError: The name is neither a path of a YAML file nor the name of a packaged one.
    """
    return named_file(name, FOLDER, "configuration", "--config")


def read_config(
    name: str, overrides: Sequence[str] = (), store: str | None = None, preset: str | None = None
) -> Config:
    """Return the configuration in a file with a preset and then single keys laid over it.

    Args:
        name: YAML file, or the name of a packaged configuration.
        overrides: `KEY=VALUE` texts.
        store: Artifact store that replaces the file's.
        preset: YAML file, or the name of a packaged preset.

    Raises:
        UserError: The file cannot be read, or a key or value is invalid.
    """
    laid = preset_overrides(preset) if preset else []
    return load_config(config_path(name), [*laid, *overrides, *([f"store={store}"] if store else [])])


def config_names() -> list[str]:
    """Return the names of the packaged configurations."""
    return packaged_names(FOLDER)


def named_file(name: str, folder: Path, what: str, option: str) -> Path:
    """Return a YAML file that is given as a path or by the name of a packaged one.

    Args:
        name: The path or the name.
        folder: Folder of the packaged files.
        what: What it is, for messages.
        option: The option or key that names it, for messages.

    Raises:
        UserError: The name is neither a path of a YAML file nor the name of a packaged one.
    """
    path = Path(name).expanduser()
    if path.suffix in ENDINGS or len(path.parts) > 1 or path.exists():
        return path
    names = packaged_names(folder)
    if name in names:
        return folder / f"{name}.yaml"
    near = difflib.get_close_matches(name, names, n=1)
    known = f"use one of {', '.join(names)}, or the path of a YAML file"
    raise UserError(f"no {what} {name!r}", option, f"did you mean {near[0]!r}?" if near else known)


def packaged_names(folder: Path) -> list[str]:
    """Return the names of the packaged files of one kind, which are in `folder`."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def preset_overrides(name: str) -> list[str]:
    """Return a preset as overrides for `load_config`, to be followed by those of the command line.

    `--set` replaces values of the preset, the preset those of the file, and the file the defaults: a user who names a
    preset on the command line expects its values rather than those of the file.

    Args:
        name: YAML file, or the name of a packaged preset.

    Returns:
        `dotted.key=value` for each key, the value in YAML.

    Raises:
        UserError: There is no such preset, or its values are invalid.
    """
    path = named_file(name, PRESETS, "preset", "--preset")
    load_config(path)  # an error then names the preset and not the config
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return [f"{key}={_flow(value)}" for key, value in leaves(values)]


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested sections by dotted key; an empty section is a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _flow(value: Any) -> str:
    """Return a value as YAML on one line, without the marker of a document's end."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("...\n").strip()

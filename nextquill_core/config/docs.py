"""Write docs/reference/configuration.md from the configuration's classes: `python -m nextquill_core.config.docs`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from nextquill_core.config import Config, Section
from nextquill_core.config.base import section_of

BOUNDS = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt"), MinLen: ("at least", "min_length")}


def markdown() -> str:
    """The page: a table a section, a row a key."""
    lines = [
        "# Configuration",
        "",
        "A YAML file of the sections below; `--set section.key=VALUE` (the value in YAML) goes over the file, the file",
        "over the defaults. Unknown keys are refused. Keys marked ○ say how a stage is run and not what it makes: they",
        "never make an artifact stale. Defaults are the paper's where it states one.",
        "",
        "Made by `python -m nextquill_core.config.docs > docs/reference/configuration.md`.",
    ]
    sections: list[tuple[str, type[Section], bool]] = [("top level", Config, False), *_sections(Config)]
    for name, section, operational in sections:
        lines += ["", f"## {name}", "", *((section.__doc__ or "").splitlines()[:1]), ""]
        lines += ["| key | default | values | |", "|---|---|---|---|"]
        fields = section.model_fields.items()
        lines += [_row(key, field, operational) for key, field in fields if section_of(field) is None]
    return "\n".join(lines) + "\n"


def _sections(
    section: type[Section], prefix: str = "", inherited: bool = False
) -> Iterator[tuple[str, type[Section], bool]]:
    """Each section below, its name first; last whether all that is in it is operational."""
    for key, field in section.model_fields.items():
        if inner := section_of(field):
            operational = inherited or _operational(field)
            yield prefix + key, inner, operational
            yield from _sections(inner, f"{prefix}{key}.", operational)


def _operational(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("operational"))


def _row(key: str, field: FieldInfo, operational: bool) -> str:
    mark = " ○" if operational or _operational(field) else ""
    default = field.default
    shown = "[…]" if isinstance(default, tuple) and any(isinstance(part, Section) for part in default) else default
    return f"| `{key}`{mark} | `{_yaml(shown)}` | {_values(field)} | {field.description or ''} |"


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _values(field: FieldInfo) -> str:
    bounds = [
        f"{BOUNDS[type(mark)][0]} {getattr(mark, BOUNDS[type(mark)][1])}"
        for mark in field.metadata
        if type(mark) in BOUNDS
    ]
    return f"{_kind(field.annotation)} {', '.join(bounds)}".strip()


def _kind(annotation: Any) -> str:
    arguments = [part for part in get_args(annotation) if part is not Ellipsis]
    if annotation is None or annotation is type(None):
        return "null"
    if not arguments:
        if isinstance(annotation, type) and issubclass(annotation, Section):
            return "{" + ", ".join(annotation.model_fields) + "}"
        return annotation.__name__ if isinstance(annotation, type) else f"`{annotation}`"
    if getattr(annotation, "__origin__", None) is tuple:
        return f"list of {_kind(arguments[0])}"
    return " or ".join(_kind(part) for part in arguments)


if __name__ == "__main__":
    print(markdown(), end="")

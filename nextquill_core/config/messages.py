"""Messages for invalid settings: pydantic's errors in plain words, with the key, the value and what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from nextquill_core.config.base import Section
from nextquill_core.config.yaml_text import shortened

SEE = "see docs/reference/configuration.md"
WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "date": "a date such as 2020-12-31",
    "none": "null",
}
"""The expected value in words, by the first part of the type of pydantic's error."""
Error = Mapping[str, Any]
"""One of pydantic's errors: its `type`, `loc`, `msg`, `input` and `ctx`."""


def first_error(model: type[Section], errors: Sequence[Error]) -> tuple[str, list[Error]]:
    """Return the key of the error to show, and all errors of this key: a union has one for each of its types.

    An unknown key comes before a wrong value, because it often explains the value.

    Args:
        model: What the values were checked against.
        errors: pydantic's errors, at least one.
    """
    chosen = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    key, _ = key_and_type(model, chosen["loc"])
    return key, [error for error in errors if key_and_type(model, error["loc"])[0] == key]


def key_and_type(model: type[Section], location: Sequence[int | str]) -> tuple[str, Any]:
    """Return the dotted key of pydantic's location, without the names of a union's types, and its annotation."""
    parts: list[str] = []
    annotation: Any = model
    for part in location:
        section = _section(annotation)
        if isinstance(part, int):
            parts.append(str(part))
        elif section is not None:
            parts.append(part)
            field = section.model_fields.get(part)
            annotation = field.annotation if field else None
        elif any(get_origin(kind) is dict for kind in _kinds(annotation)):
            parts.append(part)
            annotation = None
        # Anything else is the name of one type of a union.
    return ".".join(parts), annotation


def explained(model: type[Section], errors: Sequence[Error]) -> tuple[str, str]:
    """Return what is wrong with a key's value, and what to write.

    Args:
        model: What the values were checked against.
        errors: All errors of one key, at least one.
    """
    value, kind = errors[0]["input"], errors[0]["type"]
    if literal := next((error for error in errors if error["type"] == "literal_error"), None):
        others = [f"write {_wanted(error)}" for error in errors if error["type"] != "literal_error"]
        return f"unknown value {_quoted(value)}", " or ".join((nearest(str(value), _allowed(literal)), *others))
    if kind in ("tuple_type", "list_type", "set_type"):
        return "it takes a list", _list_remedy(_section(key_and_type(model, errors[0]["loc"])[1]), value)
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        if value is None:
            return "the section is empty", "give it keys, or leave it out"
        return "it takes a section of keys", f"got {_quoted(value)}; {SEE}"
    if kind == "missing":
        return "it is missing", f"set it; {SEE}"
    if kind == "string_type" and isinstance(value, str | int | float):
        return "it takes a text", f"put it in quotes: '{shortened(str(value))}'"
    return " or ".join(dict.fromkeys(map(_sentence, errors))), f"got {_quoted(value)}"


def nearest(name: str, allowed: Sequence[str]) -> str:
    """Return a remedy: the allowed name that is nearest to `name`, or all of them."""
    alike = {_folded(other): other for other in allowed}
    near = difflib.get_close_matches(_folded(name), list(alike), n=1, cutoff=0.5)
    if near:
        return f"did you mean `{alike[near[0]]}`?"
    return f"one of: {', '.join(allowed)}"


def _quoted(value: Any) -> str:
    return shortened(repr(value))


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.casefold())


def _allowed(error: Error) -> list[str]:
    """The values of a Literal, from pydantic's list: `'a', 'b' or 3`."""
    expected = str(error["ctx"]["expected"])
    return [quoted or bare for quoted, bare in re.findall(r"'([^']*)'|(\b[\w.]+\b)", expected) if bare != "or"]


def _list_remedy(section: type[Section] | None, value: Any) -> str:
    """Show how the list is written: of sections with the keys that they must have, or of the value that was given."""
    if section is not None:
        keys = [name for name, field in section.model_fields.items() if field.is_required()]
        return f"write [{{{', '.join(f'{key}: …' for key in keys)}}}], got {_quoted(value)}; {SEE}"
    if not isinstance(value, str | int | float):
        return f"got {_quoted(value)}; {SEE}"
    return f"write [{', '.join(part.strip() for part in str(value).split(',') if part.strip())}]"


def _sentence(error: Error) -> str:
    words = _wanted(error)
    if error["type"] == "string_pattern_mismatch" and error["ctx"]["pattern"] == r"\S":
        words = "at least 1 character that is not white space"
    return f"it takes {words}" if words else str(error["msg"]).removeprefix("Value error, ")


def _wanted(error: Error) -> str:
    """What the value has to be, in words; "" where pydantic's own sentence says more."""
    kind, _, rest = str(error["type"]).partition("_")
    return WORDS.get(kind, "") if rest.endswith(("type", "parsing", "from_float", "required")) else ""


def _section(annotation: Any) -> type[Section] | None:
    kinds = _kinds(annotation)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def _kinds(annotation: Any) -> Iterator[Any]:
    """An annotation and what is inside it: the types of a union, the elements of a list, the values of a mapping."""
    yield annotation
    for part in get_args(annotation):
        yield from _kinds(part)

"""`ingest.options`, checked against what a source takes; a fault is one line with its remedy."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from nextquill_core.config import Section
from nextquill_core.errors import DataError

WHERE = "ingest.options"
Options = TypeVar("Options", bound=Section)


def checked(model: type[Options], options: Mapping[str, Any] | None, source: str) -> Options:
    """The options as `model` has them.

    Args:
        model: What the source takes.
        options: What the configuration gives.
        source: The source's name, for the message.

    Raises:
        DataError: An option is unknown (the nearest one is suggested), missing, or does not fit.
    """
    try:
        return model.model_validate(dict(options or {}))
    except ValidationError as error:
        faults = error.errors(include_url=False)
    fault = next((each for each in faults if each["type"] == "extra_forbidden"), faults[0])
    *parents, last = (str(part) for part in fault["loc"]) if fault["loc"] else ("",)
    where = ".".join((WHERE, *parents))
    if fault["type"] == "extra_forbidden":
        known = _known(model, parents)
        near = difflib.get_close_matches(last, known, n=1, cutoff=0.5)
        remedy = f"did you mean `{near[0]}`?" if near else f"one of: {', '.join(known)}"
        raise DataError(f"unknown option `{last}`", where, remedy)
    if fault["type"] == "missing":
        raise DataError(f"{source} needs `{last}`", where, "see docs/how-to/sources.md")
    message = fault["msg"].removeprefix("Value error, ")
    raise DataError(f"`{last}`: {message}" if last else message, where, f"got {fault['input']!r}")


def nearest(name: str, names: list[str]) -> str:
    """A remedy that names the nearest of `names`, or lists them."""
    same = [other for other in names if other.casefold() == name.casefold()]
    near = same or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean `{near[0]}`?"
    listed = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return f"the file has: {listed}" if names else "the file has none"


def _known(model: type[Section], parents: list[str]) -> list[str]:
    for parent in parents:
        kind = model.model_fields[parent].annotation if parent in model.model_fields else None
        if not (isinstance(kind, type) and issubclass(kind, Section)):
            return []
        model = kind
    return list(model.model_fields)

"""Check `ingest.options` against what a source takes; a fault is one line with its remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from nextquill_core.config.base import Section, alternatives
from nextquill_core.errors import DataError
from nextquill_core.plugins import suggestion

WHERE = "ingest.options"
Options = TypeVar("Options", bound=Section)


def checked(model: type[Options], options: Mapping[str, Any] | None, source: str) -> Options:
    """Return the options as an instance of `model`.

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
        raise DataError(f"unknown option `{last}`", where, suggestion(last, _known(model, parents)))
    if fault["type"] == "missing":
        raise DataError(f"{source} needs `{last}`", where, "see docs/how-to/sources.md")
    message = fault["msg"].removeprefix("Value error, ")
    raise DataError(f"`{last}`: {message}" if last else message, where, f"got {fault['input']!r}")


def _known(model: type[Section], parents: list[str]) -> list[str]:
    """Return the options of the section that lies under these keys."""
    for parent in parents:
        kinds = alternatives(model.model_fields[parent].annotation) if parent in model.model_fields else iter(())
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
        if section is None:
            return []
        model = section
    return list(model.model_fields)

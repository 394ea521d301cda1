"""The sources there are: those that come with NextQuill, and those of other packages.

Another package adds one by an entry point of the group `nextquill.sources`: `NAME = "package.module:ClassName"`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from nextquill_core.errors import DataError, first_line
from nextquill_core.ingest.sources.amazon import Amazon2014, Amazon2018, Amazon2023
from nextquill_core.ingest.sources.base import PARTS, BadRow, Batch, Part, RawFiles, Source, local_files
from nextquill_core.ingest.sources.columns import Column, Kind
from nextquill_core.ingest.sources.jsonlines import JsonLines
from nextquill_core.ingest.sources.lamp import Lamp
from nextquill_core.ingest.sources.table import Table

__all__ = [
    "BUILT_IN",
    "PARTS",
    "BadRow",
    "Batch",
    "Column",
    "JsonLines",
    "Kind",
    "Lamp",
    "Part",
    "RawFiles",
    "Source",
    "Table",
    "added",
    "local_files",
    "source",
]

BUILT_IN: dict[str, type[Source]] = {
    source.name: source for source in (Amazon2023, Amazon2018, Amazon2014, Table, Lamp)
}
GROUP = "nextquill.sources"


def added() -> dict[str, EntryPoint]:
    """The entry points of other packages, by name; nothing of theirs is imported yet."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in BUILT_IN}


def source(name: str, options: Mapping[str, Any] | None = None) -> Source:
    """The source called `name`, with its `ingest.options`.

    Raises:
        DataError: There is none (the nearest name is suggested), its package cannot be loaded, or an option does not
            fit.
    """
    return load(name)(options or {})


def load(name: str) -> type[Source]:
    """The class of the source called `name`.

    Raises:
        DataError: There is none, or its package cannot be loaded.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    others = added()
    if name not in others:
        names = [*BUILT_IN, *others]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        remedy = f"did you mean `{near[0]}`?" if near else f"one of: {', '.join(names)}"
        raise DataError(f"unknown source `{name}`", "ingest.source", remedy)
    try:
        found = others[name].load()
    except Exception as error:  # whatever another package's import may raise
        raise DataError(
            f"source `{name}` cannot be loaded: {first_line(error)}", others[name].value, "mend its package"
        ) from None
    if not (isinstance(found, type) and issubclass(found, Source)):
        raise DataError(f"source `{name}` is not a Source", others[name].value, "name a subclass of Source")
    return found

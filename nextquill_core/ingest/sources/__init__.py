"""The table of sources: those that come with NextQuill, and those of other packages.

Another package adds one by an entry point of the group `nextquill.sources`: `NAME = "package.module:ClassName"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Any

from nextquill_core.errors import DataError
from nextquill_core.ingest.batches import PARTS, BadRow, Batch, Column, Kind, Part
from nextquill_core.ingest.sources.amazon import Amazon2014, Amazon2018, Amazon2023
from nextquill_core.ingest.sources.base import JsonLines, RawFiles, Source, local_files
from nextquill_core.ingest.sources.lamp import Lamp
from nextquill_core.ingest.sources.table import Table
from nextquill_core.plugins import Plugins

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
SOURCES = Plugins[type[Source]]("source", "nextquill.sources", "ingest.source", BUILT_IN, DataError)


def source(name: str, options: Mapping[str, Any] | None = None) -> Source:
    """Return the source called `name`, with its `ingest.options`.

    Raises:
        DataError: There is none (the nearest name is suggested), its package cannot be loaded, or an option does not
            fit.
    """
    return load(name)(options or {})


def added() -> dict[str, EntryPoint]:
    """Return the entry points of the sources of other packages, by name; none is imported yet."""
    return SOURCES.added()


def load(name: str) -> type[Source]:
    """Return the class of the source called `name`.

    Raises:
        DataError: There is none, or its package cannot be loaded.
    """
    found = SOURCES.load(name)
    if not (isinstance(found, type) and issubclass(found, Source)):
        raise DataError(f"source `{name}` is not a Source", added()[name].value, "name a subclass of Source")
    return found

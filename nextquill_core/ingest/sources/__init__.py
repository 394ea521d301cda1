"""The table of sources: those that come with NextQuill, and those of other packages.

Another package adds one by an entry point of the group `nextquill.sources`: `NAME = "package.module:ClassName"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nextquill_core.errors import DataError
from nextquill_core.ingest.batches import PARTS, BadRow, Batch, Column, Kind, Part
from nextquill_core.ingest.sources.amazon import Amazon2014, Amazon2018, Amazon2023
from nextquill_core.ingest.sources.base import JsonLines, RawFiles, Source, local_files
from nextquill_core.ingest.sources.dpl import Dpl
from nextquill_core.ingest.sources.lamp import Lamp
from nextquill_core.ingest.sources.table import Table
from nextquill_core.plugins import Plugins

__all__ = [
    "BUILT_IN",
    "PARTS",
    "BadRow",
    "Batch",
    "Column",
    "Dpl",
    "JsonLines",
    "Kind",
    "Lamp",
    "Part",
    "RawFiles",
    "Source",
    "Table",
    "local_files",
    "source",
]

BUILT_IN: dict[str, type[Source]] = {
    source.name: source for source in (Amazon2023, Amazon2018, Amazon2014, Dpl, Table, Lamp)
}


def _fault(_name: str, found: Any) -> str:
    is_source = isinstance(found, type) and issubclass(found, Source)
    return "" if is_source else "is not a subclass of Source"


SOURCES = Plugins[type[Source]]("source", "nextquill.sources", "ingest.source", BUILT_IN, DataError, _fault)


def source(name: str, options: Mapping[str, Any] | None = None) -> Source:
    """Return the source called `name`, with its `ingest.options`.

    Raises:
        DataError: There is none (the nearest name is suggested), its package cannot be loaded, or an option does not
            fit.
    """
    return SOURCES[name](options or {})

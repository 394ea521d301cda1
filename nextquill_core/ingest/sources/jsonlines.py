"""Sources whose files hold one object a line: which raw keys hold the canonical columns is all they have to say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from nextquill_core.ingest.sources.base import Batch, Part, Source
from nextquill_core.ingest.sources.columns import Column


class JsonLines(Source):
    """A source of JSON lines, plain or gzip.

    Attributes:
        columns: Where raw rows hold the canonical columns; those that are left out have to be `absent`.
        literals: Whether lines may be Python literals instead of JSON.
    """

    columns: Mapping[Part, Mapping[str, Column]]
    literals: ClassVar[bool] = False

    def read(self, part: Part, path: Path, resume: Any = None) -> Iterator[Batch]:
        """Read a file in blocks of whole lines; a block that was done with is never read again."""
        from nextquill_core.ingest.formats.fields import layout_fields
        from nextquill_core.ingest.formats.parse import Parser, read_lines

        parser = Parser(layout_fields(self.columns[part], part), part, literals=self.literals)
        yield from read_lines(path, parser, self.batch_bytes, resume)

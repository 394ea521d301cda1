"""Sources whose files hold one object a line: which raw keys hold the canonical columns is all they have to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nextquill_core.ingest.sources.base import Batch, Part, Source

if TYPE_CHECKING:
    import polars as pl

Kind = Literal["string", "number", "integer", "seconds", "strings", "text", "lists"]


@dataclass(frozen=True)
class Column:
    """How raw rows hold one canonical column.

    Attributes:
        kind: The JSON type, and how it becomes the canonical one: string, number, integer, seconds (an integer, taken
            for the canonical milliseconds), strings (a list of them), text (a string, taken as a list of one), lists
            (lists of strings, taken as one list).
        keys: The raw key, then others that some dumps use for it; the first that is not null counts.
        required: A row without any of the keys cannot be read; where it is False the value is then null.
        identifies: The value may not be null either.
        convert: What then becomes of the values; where it makes null of one, that one does not fit.
    """

    kind: Kind
    keys: tuple[str, ...]
    required: bool = True
    identifies: bool = False
    convert: Callable[[pl.Expr], pl.Expr] | None = None


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
        from nextquill_core.ingest.ahead import in_order
        from nextquill_core.ingest.blocks import read_blocks
        from nextquill_core.ingest.parse import Parser

        parser = Parser(self.columns[part], part, literals=self.literals)
        if resume == "end":
            return
        start, line = resume or (0, 1)
        blocks = read_blocks(path, block_bytes=self.batch_bytes, start=start, first_line=line)
        yield from in_order(parser.parse, blocks)

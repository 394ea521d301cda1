"""What sources, formats and the scan hand to each other: the parts of a category, batches of rows, and bad rows.

Imports nothing heavy, because `nextquill status` and `nextquill sources` load the sources.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import polars as pl

Part = Literal["reviews", "items"]
PARTS: tuple[Part, ...] = ("reviews", "items")
BATCH_BYTES = 24 << 20  # below 32 MB, from where on malloc has the kernel clear new memory each time
BATCH_ROWS = 20_000  # of formats whose rows are not read by size
RAW_CHARS = 2000  # of a bad row's raw text
Kind = Literal["string", "number", "integer", "seconds", "strings", "text", "lists"]


@dataclass(frozen=True)
class Column:
    """How raw rows hold one canonical column.

    Attributes:
        kind: The JSON type, and how it becomes the canonical one: string, number, integer, seconds (an integer, becomes
            milliseconds), strings (a list of them), text (a string, becomes a list of one), lists (lists of strings,
            become one list).
        keys: The raw key, then other keys that some dumps use for it; the first that is not null counts.
        required: Whether a row must have one of the keys; without, the value is null.
        identifies: Whether the value must not be null either.
        convert: Applied to the values last; a value that it turns into null is a bad one.
    """

    kind: Kind
    keys: tuple[str, ...]
    required: bool = True
    identifies: bool = False
    convert: Callable[[pl.Expr], pl.Expr] | None = None


@dataclass(frozen=True, slots=True)
class BadRow:
    """Something in a raw file that cannot be read as a row.

    Attributes:
        line: Its place in the file, from 1: the number of a line, or of a record where a row is no line.
        reason: Why it cannot be read, as a short name like `wrong-type-rating`.
        raw: The beginning of its text, at most `RAW_CHARS` characters.
        detail: What is wrong, for a message: which column holds which value. Empty where `raw` says it.
        remedy: The setting that would accept it, or another way to fix it; empty where there is none.
    """

    line: int
    reason: str
    raw: str
    detail: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Batch:
    """Some consecutive rows of a raw file.

    Attributes:
        rows: The columns of `canonical.CANONICAL` and `line` (i64, as in `BadRow`), in file order.
        bad: The rows that could not be read, in file order.
        blank: Number of lines that hold nothing; these are no rows.
        last_line: Number of the last line (or record) that this batch accounts for.
        position: How far the file has been read, in bytes on disk.
        resume: What `Source.read` needs to continue after this batch, as a JSON value; None if it cannot.
        raw: Returns the text of a row by its line, for the quarantine; None where rows have no text.
    """

    rows: pl.DataFrame
    bad: list[BadRow] = field(default_factory=list)
    blank: int = 0
    last_line: int = 0
    position: int = 0
    resume: Any = None
    raw: Callable[[int], str] | None = None

"""How raw rows hold the canonical columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

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

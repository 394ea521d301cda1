"""Which row of the plan the pipeline is making, as `[3/6]`, for lines and bars in a terminal.

The rows are those of `nextquill status`: one for each stage, fold and trained adapter. A step without a row, such as a
scan, belongs to the next row of its stage. A stage that runs alone is not numbered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property

from nextquill_core.pipeline import Step

ROW = "row_number"
"""Attribute of a log record that is about another row than the one that is being made."""


class _Rows:
    """The numbers of rows by fingerprint, and the one that is being made."""

    def __init__(self, rows: Callable[[], Iterable[Step]]) -> None:
        self._rows = rows
        self.current = ""

    @cached_property
    def numbers(self) -> dict[str, str]:
        rows = list(self._rows())
        return {row.fingerprint: f"[{place}/{len(rows)}]" for place, row in enumerate(rows, 1)}


_rows: ContextVar[_Rows | None] = ContextVar("numbered_rows", default=None)


@contextmanager
def numbered(rows: Callable[[], Iterable[Step]]) -> Iterator[None]:
    """Number rows within the block.

    Args:
        rows: Returns them; it is called when the first step begins, so that errors in the data arise in their stage.
    """
    token = _rows.set(_Rows(rows))
    try:
        yield
    finally:
        _rows.reset(token)


def begin_row(steps: Sequence[Step]) -> None:
    """Make the first row among steps the current one.

    Args:
        steps: The step that begins, and those that its stage makes after it.
    """
    if rows := _rows.get():
        rows.current = next((rows.numbers[step.fingerprint] for step in steps if step.fingerprint in rows.numbers), "")


def row_number(fingerprint: str | None = None) -> str:
    """Return the number of a row, or of the one that is being made; "" where nothing is numbered."""
    rows = _rows.get()
    if rows is None:
        return ""
    return rows.numbers.get(fingerprint, "") if fingerprint else rows.current


def with_number(text: str, number: str | None = None) -> str:
    """Return a text with a number before it, by default with that of the row that is being made."""
    number = row_number() if number is None else number
    return f"{number} {text}" if number else text

"""The command `compare`: two evaluations beside each other, in the terminal and as a page."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import Panel, StoreOption, console
from flows.cli.pages import write_page

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from nextquill_core.analysis.comparison_page import Comparison, ResultLine, ValueDifference

MARKS = {1: "▲", -1: "▼", 0: ""}
NAMES = "a store, the fingerprint of an evaluate artifact, or a configuration"


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("compare", rich_help_panel=Panel.look)(_compare)


def _compare(
    a: Annotated[str, typer.Argument(metavar="A", help=f"First evaluation: {NAMES}.")],
    b: Annotated[str, typer.Argument(metavar="B", help=f"Second evaluation: {NAMES}.")],
    store: StoreOption = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the comparison as a page.")] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Compare two evaluations: which settings differ, and B minus A in every metric, with tests.

    Only reads the stores. A store means its latest evaluation, a configuration the evaluation that it asks for.
    """
    from flows.runs import open_run
    from nextquill_core.analysis.comparison_page import comparison_html
    from nextquill_core.studies.compare import compare, find_evaluations

    found = compare(*find_evaluations(a, b, store, partial(open_run, fetch=False)))
    terminal = console()
    for part in comparison_lines(found, width=terminal.width):
        terminal.print(part, highlight=False, markup=False)
    if html is None and not show:
        return
    file = html or Path(tempfile.mkdtemp(prefix="nextquill-"), "comparison.html")
    write_page(file, comparison_html(found), show=show)


def comparison_lines(found: Comparison, *, width: int) -> Iterator[Table | Text]:
    """Yield a comparison as tables and lines for the terminal; control characters of stored texts are replaced.

    Args:
        found: The comparison.
        width: Width of the terminal in columns; tables that do not fit are continued below.
    """
    from flows.cli.status import fitting_tables
    from nextquill_core.analysis.comparison_page import comparison_tables

    for letter, run in (("A", found.a), ("B", found.b)):
        yield _line(f"{letter}  {run.name}  {run.fingerprint}  {run.made}  {run.split}, {run.examples:,} examples")
    for title, differences in found.setting_groups:
        yield _line("")
        yield _line(title, "italic")
        yield _settings_table(differences)
    yield _line("")
    if not found.setting_groups:
        yield _line("No setting differs.")
    yield _line(str(found.overlap))
    for note in found.notes:
        yield _line(f"Note: {note}")
    headings = ("metric", "method", "A", "B", "B - A", "95 % interval", "test", "B higher")
    for table in comparison_tables(found.rows):
        lines = [_cells(line) for line in table.lines]
        yield _line("")
        yield from fitting_tables(_printable(table.title), headings, lines, width, repeated=2)
    if found.overlap.examples and found.rows:
        yield _line("")
        yield _line(
            "▲ B better, ▼ B worse: p < 0.05 in a paired bootstrap over users, after Holm's correction over the "
            "comparisons of a table. B higher: users for whom B scores higher; a tie counts one half."
        )


def _settings_table(differences: Sequence[ValueDifference]) -> Table:
    from rich.table import Column, Table

    columns = (Column(heading, overflow="fold") for heading in ("key", "A", "B"))
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for one in differences:
        table.add_row(*map(_line, (one.key, one.a, one.b)))
    return table


def _cells(line: ResultLine) -> list[Text]:
    style = "bold" if line.verdict else ""
    test = f"{line.test} {MARKS[line.verdict]}".rstrip()
    texts = (line.metric.name, line.method, line.a, line.b, line.difference, line.interval, test, line.wins)
    return [_line(text, style) for text in texts]


def _line(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(_printable(text), style)


def _printable(text: str) -> str:
    """Return a text of a store as one line whose control characters do not reach the terminal."""
    return "".join(sign if sign.isprintable() else "·" for sign in text)

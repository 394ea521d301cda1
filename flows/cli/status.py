"""Status of the stages and results, as tables for the terminal and as rows for scripts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from humanize import naturalsize
from rich.table import Column, Table
from rich.text import Text

from flows.runs import open_run
from nextquill_core.config import Config
from nextquill_core.ingest.account import account_rows
from nextquill_core.pipeline import FreshnessCache
from storage import Artifact
from storage.stored_json import expect_form

if TYPE_CHECKING:
    from nextquill_core.analysis.result_tables import Histories

COLOURS = {
    "fresh": "green",
    "stale": "yellow",
    "missing": "dim",
    "running": "cyan",
    "failed": "red",
    "interrupted": "yellow",
}
UNFINISHED = ("running", "failed", "interrupted")
WITH_INTERVALS = 110
"""Width of a terminal in columns from which intervals are shown beside the values."""
HISTORIES_TITLE = "Log-likelihood by the history that is shown, nats a token"
TRUTH_TITLE = "Against the exact effects (aims: slope 1, own style of the users)"
HISTORY_DECIMALS = 4
GAP = 2
"""Blanks between two columns of a table."""
MIN_WHY = 24
"""Smallest width of the reason in columns, however narrow the terminal is."""


def status_rows(config: Config) -> list[dict[str, Any]]:
    """Return one row per stage: stage, state, why, path, rows, bytes, seconds.

    The last three are None if there is no artifact.
    """
    run = open_run(config, fetch=False)
    known = run.cache or FreshnessCache(run.store)
    rows = []
    for step in run.plan.stages:
        standing = known(step)
        manifest = standing.artifact.manifest if standing.artifact else None
        parts = [known(part) for part in run.plan.parts(step)]
        if standing.state != "fresh":  # the cause may be one of its parts
            standing = next((part for part in parts if part.state in UNFINISHED), standing)
        seconds = sum(part.artifact.manifest.seconds for part in parts if part.artifact)
        rows.append(
            {
                "stage": step.name,
                "state": standing.state,
                "why": standing.why,
                "path": run.store.location(step.kind, step.fingerprint),
                "rows": manifest.rows if manifest else None,
                "bytes": manifest.bytes if manifest else None,
                "seconds": round(manifest.seconds + seconds, 1) if manifest else None,
            }
        )
    return rows


def status_lines(rows: list[dict[str, Any]], width: int) -> Iterator[Text]:
    """Yield the rows as lines of text; a path is never cut or wrapped.

    Args:
        rows: Rows of `status_rows`.
        width: Width of the terminal in columns. Reasons are folded to it, and a path that does not fit is printed on
            the line below its stage.
    """
    headings = ("stage", "state", "rows", "size", "seconds")
    cells = [
        (
            row["stage"],
            row["state"],
            "" if row["rows"] is None else f"{row['rows']:,}",
            "" if row["bytes"] is None else naturalsize(row["bytes"]),
            "" if row["seconds"] is None else f"{row['seconds']:,.1f}",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    indent = sum(widths) + 2 * len(widths)

    def aligned(values: Sequence[str]) -> list[str]:
        left = [value.ljust(size) for value, size in zip(values[:2], widths[:2], strict=True)]
        return left + [value.rjust(size) for value, size in zip(values[2:], widths[2:], strict=True)]

    yield Text("  ".join((*aligned(headings), "path / why")), style="bold")
    for row, values in zip(rows, cells, strict=True):
        line = Text("  ".join(aligned(values)) + "  ")
        line.stylize(COLOURS[row["state"]], widths[0] + 2, widths[0] + 2 + len(row["state"]))
        why = " ".join(row["why"].split())
        path = row["path"] if row["state"] == "fresh" else ""
        if indent + len(why or path) <= width:
            rest = [why or path]
        elif why:
            rest = textwrap.wrap(why, max(width - indent, MIN_WHY), break_long_words=False, break_on_hyphens=False)
        else:
            rest = ["", path]
        line.append(rest[0])
        line.rstrip()
        yield line
        for more in rest[1:]:
            yield Text(f"  {more}" if path else " " * indent + more)


def account_table(sequences: Artifact) -> Table:
    """Return a table of the rows that ingest read, with the number kept and the number rejected for each reason."""
    numbers = (Column(heading, justify="right") for heading in ("rows", "share"))
    table = Table("category", "what", "outcome", *numbers, box=None, pad_edge=False, header_style="bold")
    with expect_form(sequences.location, "run `nextquill ingest --force`"):
        rows = account_rows(sequences.manifest.stats)
    for row in rows:
        share = "" if row["share"] is None else f"{row['share']:.2%}"
        table.add_row(row["category"], row["what"], row["outcome"], f"{row['rows']:,}", share)
    return table


def results_table(evaluation: Artifact, *, width: int) -> Iterator[Table | str]:
    """Yield what an evaluation found, what matters most first.

    The verdict; the most important metrics with intervals; own against a stranger's history; the comparison with exact
    effects, where there is one; all tables, or what the report has more; notes on how to read them.

    Args:
        evaluation: Artifact of the evaluation.
        width: Width of the terminal in columns. Columns that do not fit are printed in further tables. All tables are
            printed where there is room for their intervals.
    """
    from nextquill_core.analysis.result_tables import headline_table, histories
    from nextquill_core.pipeline.evaluate import read_results, read_truth, result_tables, table_cells

    results = read_results(evaluation)
    if results.verdict:
        yield "\n".join(results.verdict)
    title, headlines = headline_table(results.rows)
    yield from _cells_tables(title, table_cells(headlines), width)
    yield from _cells_tables(HISTORIES_TITLE, list(_history_cells(histories(results.rows))), width)
    yield from _cells_tables(TRUTH_TITLE, list(_truth_cells(read_truth(evaluation))), width)
    tables = list(result_tables(results.rows))
    if width >= WITH_INTERVALS:
        for title, cells in tables:
            yield from _cells_tables(title, cells, width)
    else:
        yield "The report has all tables:\n" + "\n".join(f"  {title}" for title, _ in tables)
    yield from (f"Note: {caution}" for caution in results.cautions)


def _history_cells(found: Iterable[Histories]) -> Iterator[dict[str, str]]:
    """Yield a row for each method that was measured with a stranger's history too."""
    from nextquill_core.analysis.result_tables import NOTHING, signed

    for one in found:
        if one.stranger is not None:
            yield {
                "method": one.method,
                "own": signed(one.own, HISTORY_DECIMALS),
                "a stranger's": signed(one.stranger, HISTORY_DECIMALS),
                "none": NOTHING if one.none is None else signed(one.none, HISTORY_DECIMALS),
                "own minus a stranger's": signed(one.own - one.stranger, HISTORY_DECIMALS),
            }


def _truth_cells(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    """Yield a row for each method that was compared with exact effects, for the perfect reader and for the users."""
    from nextquill_core.analysis.result_tables import NOTHING

    columns = {
        "r": "pearson",
        "AUC": "auc",
        "slope": "slope",
        "own style": "own_style",
        "with a stranger's history": "stranger_style",
    }
    for row in rows:
        cells = {name: NOTHING if row[key] is None else f"{row[key]:.2f}" for name, key in columns.items()}
        if set(cells.values()) != {NOTHING}:
            yield {"method": row["method"], **cells}


def reproduced_tables(found: Artifact, *, width: int) -> Iterator[Table | str]:
    """Yield a table per category with our numbers / the published ones, each followed by differences of the set-up.

    Args:
        found: Artifact of the reproduction.
        width: Width of the terminal in columns; see `results_table`.
    """
    from nextquill_core.analysis.published import published_cells
    from nextquill_core.pipeline.evaluate import result_tables
    from nextquill_core.studies.reproduce import reproduced

    for part in reproduced(found):
        for title, cells in list(published_cells(part["rows"])) or result_tables(
            part["ours"], intervals=width >= WITH_INTERVALS
        ):
            yield from _cells_tables(title, cells, width)
        yield "\n".join(f"- {difference}" for difference in part["differences"])
        yield from (f"Note: {caution}" for caution in part.get("cautions", []))


def sweep_results(swept: Artifact, *, width: int) -> Iterator[Table | str]:
    """Yield a table of points by metrics for each decoding preset and category, then notes on how to read them.

    The best value of a column is bold.

    Args:
        swept: Artifact of the sweep.
        width: Width of the terminal in columns; see `results_table`.
    """
    from nextquill_core.studies.sweep import read_sweep

    intervals = width >= WITH_INTERVALS
    tables, cautions = read_sweep(swept)
    for found in tables:
        lines = []
        for method, values, cells in found.lines:
            shown = [Text(str(cell) if intervals else cell.value, "bold" if cell.best else "") for cell in cells]
            lines.append([Text(method), *map(Text, values), *shown])
        headings = ("method", *found.keys, *found.metrics)
        yield from fitting_tables(found.title, headings, lines, width, repeated=1 + len(found.keys))
    yield from (f"Note: {caution}" for caution in cautions)


def _cells_tables(title: str, cells: list[dict[str, str]], width: int) -> Iterator[Table]:
    if cells:
        yield from fitting_tables(title, list(cells[0]), [list(map(Text, row.values())) for row in cells], width)


def fitting_tables(
    title: str, headings: Sequence[str], lines: Sequence[Sequence[Text]], width: int, repeated: int = 1
) -> Iterator[Table]:
    """Yield one table if it fits, otherwise several that repeat the first columns; no heading or value is cut.

    Args:
        title: Title of the first table.
        headings: Heading of each column.
        lines: Rows of cells.
        width: Width of the terminal in columns.
        repeated: Number of first columns that every table has.
    """
    sizes = [max(map(len, column)) + GAP for column in zip(headings, *lines, strict=True)]
    first = sum(sizes[:repeated])
    groups: list[list[int]] = [[]]
    for column in range(repeated, len(headings)):
        taken = first + sum(sizes[other] for other in groups[-1])
        if groups[-1] and taken + sizes[column] - GAP > width:
            groups.append([])
        groups[-1].append(column)
    for number, group in enumerate(groups):
        shown = [*range(repeated), *group]
        heading = title if number == 0 else None
        table = Table(title=heading, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for column in shown:
            table.add_column(headings[column], no_wrap=True, overflow="fold")
        for line in lines:
            table.add_row(*(line[column] for column in shown))
        yield table

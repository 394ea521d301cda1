"""How the stages of a configuration stand, and what came out, as tables for people and rows for scripts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from flows.cli.common import readable_size
from flows.runs import open_run
from nextquill_core.config import Config
from nextquill_core.ingest.report import account_rows
from nextquill_core.pipeline import freshness
from storage import Artifact
from storage.documents import form_expected
from storage.garbage import Glance

COLOURS = {
    "fresh": "green",
    "stale": "yellow",
    "missing": "dim",
    "running": "cyan",
    "failed": "red",
    "interrupted": "yellow",
}
HELD_UP = ("running", "failed", "interrupted")
WITH_INTERVALS = 110
"""Columns of a terminal from which on intervals are shown beside the values."""
GAP = 2
"""Columns between two columns of a table."""
MIN_WHY = 24
"""Columns that the reason has at least, in however narrow a terminal."""


def status_rows(config: Config) -> list[dict[str, Any]]:
    """A row a stage: stage, state, why, path, rows, bytes, seconds (the last three None without an artifact)."""
    run = open_run(config, fetch=False)
    store = Glance(run.store)
    rows = []
    for step in run.plan.stages:
        standing = freshness(store, step)
        manifest = standing.artifact.manifest if standing.artifact else None
        parts = [freshness(store, part) for part in run.plan.parts(step)]
        if standing.state != "fresh":  # then what holds it up may be one of its parts
            standing = next((part for part in parts if part.state in HELD_UP), standing)
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
    """Lay the rows out as lines of text; no path is ever cut or wrapped.

    Args:
        rows: What `status_rows` returns.
        width: Columns of the terminal. The reason is folded into them, and a path that does not fit gets a line below
            its stage.
    """
    headings = ("stage", "state", "rows", "size", "seconds")
    cells = [
        (
            row["stage"],
            row["state"],
            "" if row["rows"] is None else f"{row['rows']:,}",
            "" if row["bytes"] is None else readable_size(row["bytes"]),
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
    """What became of every row that ingest read."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("category", "what", "outcome", "rows", "share"):
        table.add_column(heading, justify="right" if heading in ("rows", "share") else "left")
    with form_expected(sequences.location, "run `nextquill ingest --force`"):
        rows = account_rows(sequences.manifest.stats)
    for row in rows:
        share = "" if row["share"] is None else f"{row['share']:.2%}"
        table.add_row(row["category"], row["what"], row["outcome"], f"{row['rows']:,}", share)
    return table


def results_table(evaluation: Artifact, *, width: int) -> Iterator[Table | str]:
    """Methods by metrics, for each decoding preset and category, then what to know when reading them.

    Args:
        evaluation: The artifact.
        width: Columns of the terminal. Wide ones show the intervals; columns that do not fit get tables of their own.
    """
    from nextquill_core.pipeline.evaluate import result_cautions, result_tables

    for title, cells in result_tables(evaluation, intervals=width >= WITH_INTERVALS):
        yield from _cells_tables(title, cells, width)
    yield from (f"Note: {caution}" for caution in result_cautions(evaluation))


def reproduced_tables(found: Artifact, *, width: int) -> Iterator[Table | str]:
    """Our numbers / the published ones, a table a category, each followed by what was done differently."""
    from nextquill_core.analysis.published import published_cells
    from nextquill_core.pipeline.evaluate import shown_tables
    from nextquill_core.studies.reproduce import reproduced

    for part in reproduced(found):
        for title, cells in list(published_cells(part["rows"])) or shown_tables(
            part["ours"], intervals=width >= WITH_INTERVALS
        ):
            yield from _cells_tables(title, cells, width)
        yield "\n".join(f"- {difference}" for difference in part["differences"])
        yield from (f"Note: {caution}" for caution in part.get("cautions", []))


def sweep_results(swept: Artifact, *, width: int) -> Iterator[Table | str]:
    """Points by metrics, a table for each decoding preset and category, then what to know when reading them.

    The best of a column is bold.
    """
    from nextquill_core.studies.sweep import sweep_cautions, sweep_tables

    intervals = width >= WITH_INTERVALS
    for found in sweep_tables(swept):
        lines = []
        for method, values, cells in found.lines:
            shown = [Text(str(cell) if intervals else cell.value, "bold" if cell.best else "") for cell in cells]
            lines.append([Text(method), *map(Text, values), *shown])
        headings = ("method", *found.keys, *found.metrics)
        yield from fitting_tables(found.title, headings, lines, width, repeated=1 + len(found.keys))
    yield from (f"Note: {caution}" for caution in sweep_cautions(swept))


def _cells_tables(title: str, cells: list[dict[str, str]], width: int) -> Iterator[Table]:
    yield from fitting_tables(title, list(cells[0]), [list(map(Text, row.values())) for row in cells], width)


def fitting_tables(
    title: str, headings: Sequence[str], lines: Sequence[Sequence[Text]], width: int, repeated: int = 1
) -> Iterator[Table]:
    """One table where it fits, else several that have the first columns in common; no heading or value is cut.

    Args:
        title: Of the first table.
        headings: A heading a column.
        lines: Rows of cells.
        width: Columns of the terminal.
        repeated: How many first columns every table has.
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

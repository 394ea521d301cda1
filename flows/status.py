"""How the stages of a configuration stand, and what came out, as tables for people and rows for scripts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

from flows.command import readable_size
from flows.runs import open_run
from nextquill_core.config import Config
from nextquill_core.ingest.report import account_rows
from nextquill_core.plan import freshness
from storage import Artifact
from storage.keeping import Glance

COLOURS = {"fresh": "green", "stale": "yellow", "missing": "dim", "running": "cyan", "failed": "red"}


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
            standing = next((part for part in parts if part.state in ("running", "failed")), standing)
        seconds = sum(part.artifact.manifest.provenance["seconds"] for part in parts if part.artifact)
        rows.append(
            {
                "stage": step.name,
                "state": standing.state,
                "why": standing.why,
                "path": run.store.location(step.kind, step.fingerprint),
                "rows": manifest.rows if manifest else None,
                "bytes": manifest.bytes if manifest else None,
                "seconds": round(manifest.provenance["seconds"] + seconds, 1) if manifest else None,
            }
        )
    return rows


def status_table(rows: list[dict[str, Any]]) -> Table:
    """The rows as a table for the terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("stage", "state", "rows", "size", "seconds"):
        table.add_column(heading, justify="left" if heading in ("stage", "state") else "right")
    table.add_column("path / why", overflow="fold")
    for row in rows:
        table.add_row(
            row["stage"],
            Text(row["state"], style=COLOURS[row["state"]]),
            "" if row["rows"] is None else f"{row['rows']:,}",
            "" if row["bytes"] is None else readable_size(row["bytes"]),
            "" if row["seconds"] is None else f"{row['seconds']:,.1f}",
            row["why"] or (row["path"] if row["state"] == "fresh" else ""),
        )
    return table


def account_table(sequences: Artifact) -> Table:
    """What became of every row that ingest read."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("category", "what", "outcome", "rows", "share"):
        table.add_column(heading, justify="right" if heading in ("rows", "share") else "left")
    for row in account_rows(sequences.manifest.stats):
        share = "" if row["share"] is None else f"{row['share']:.2%}"
        table.add_row(row["category"], row["what"], row["outcome"], f"{row['rows']:,}", share)
    return table


def results_table(evaluation: Artifact, *, intervals: bool) -> Iterator[Table]:
    """Methods by metrics, a table for each decoding preset and category."""
    from nextquill_core.stages.evaluate import result_tables

    for title, cells in result_tables(evaluation, intervals=intervals):
        yield _cells_table(title, cells)


def reproduced_tables(found: Artifact, *, intervals: bool) -> Iterator[Table | str]:
    """Our numbers / the published ones, a table a category, each followed by what was done differently."""
    from nextquill_core.analysis.published import published_cells
    from nextquill_core.stages.evaluate import shown_tables
    from nextquill_core.stages.reproduce import reproduced

    for part in reproduced(found):
        for title, cells in list(published_cells(part["rows"])) or shown_tables(part["ours"], intervals=intervals):
            yield _cells_table(title, cells)
        yield "\n".join(f"- {difference}" for difference in part["differences"])


def sweep_results(swept: Artifact, *, intervals: bool) -> Iterator[Table]:
    """Points by metrics, a table for each decoding preset and category; the best of a column is bold."""
    from nextquill_core.stages.sweep import sweep_tables

    for found in sweep_tables(swept):
        table = Table(title=found.title, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for heading in ("method", *found.keys, *found.metrics):
            table.add_column(heading)
        for method, values, cells in found.lines:
            shown = [Text(str(cell) if intervals else cell.value, "bold" if cell.best else "") for cell in cells]
            table.add_row(method, *values, *shown)
        yield table


def _cells_table(title: str, cells: list[dict[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading in cells[0]:
        table.add_column(heading)
    for row in cells:
        table.add_row(*row.values())
    return table

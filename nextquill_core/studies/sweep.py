"""Sweeps: one table and the pictures of the results of all points of a grid on val."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from nextquill_core.config.yaml_text import InvalidYaml, parse_yaml, shortened
from nextquill_core.errors import UserError
from nextquill_core.pipeline import Step, freshness, lineage, outdated
from nextquill_core.pipeline.run import Outcome, Run
from nextquill_core.pipeline.sweep_points import (
    DOCUMENT,
    SPLIT,
    Point,
    measured_steps,
    shown_value,
    sweep_document,
    sweep_step,
)
from nextquill_core.progress import Progress
from storage import Artifact, Staging, write_json, write_text

if TYPE_CHECKING:
    from nextquill_core.analysis.result_tables import Cell
    from nextquill_core.evaluation.tables import Row

ANY = "any"
"""The value of a key that does not change a method's texts."""


class LabelledRun(Protocol):
    """A run of one configuration among many, with its name among them."""

    @property
    def label(self) -> str:
        """Its name."""

    @property
    def run(self) -> Run:
        """The run."""


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Parse a grid from texts of the form `KEY=VALUE,VALUE,…`, the values in YAML.

    Raises:
        UserError: A text has another form, or names a key again.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        key, separator, listed = text.partition("=")
        try:
            values = parse_yaml(f"[{listed}]")
        except InvalidYaml as error:
            remedy = "quote those with commas or brackets"
            raise UserError(f"the values are not valid YAML ({error})", shortened(key), remedy) from None
        if not separator or not key or not values:
            raise UserError(f"a sweep takes KEY=VALUE,VALUE,…, got {text!r}", remedy="for example train.alpha=0.01,0.1")
        if key in grid:
            raise UserError("the key is named twice", key, "list all its values behind one `=`")
        grid[key] = values
    return grid


def missing(run: Run) -> set[tuple[str, str]]:
    """Return kind and fingerprint of every artifact of a run's evaluation that is missing or stale."""
    return {
        step.address
        for step in lineage(run.plan.evaluate)
        if (artifact := run.store.find(step.kind, step.fingerprint)) is None or outdated(run.store, step, artifact)
    }


def fresh_sweep(points: Sequence[Point]) -> Artifact | None:
    """Return the artifact of a sweep if it is up to date, else None."""
    known = freshness(points[0].run.store, sweep_step(points))
    return known.artifact if known.state == "fresh" else None


def collect(points: Sequence[Point], *, force: bool = False) -> Outcome:
    """Make the artifact of a sweep: one table of all points.

    Args:
        points: The points, all evaluated.
        force: Make it even if it is up to date.

    Raises:
        UserError: A point has not been evaluated.
    """
    return points[0].run.make(sweep_step(points), force=force, points=points)


def build_sweep(
    run: Run, step: Step, staging: Staging, progress: Progress, *, points: Sequence[Point]
) -> dict[str, Any]:
    """Write metrics.json, metrics.parquet, the pictures and sweep.html.

    Args:
        run: The run of the first point.
        step: As from `sweep_step`.
        staging: Folder of the new artifact.
        progress: Not used.
        points: All points; they have been evaluated.
    """
    import pyarrow as pa

    from nextquill_core.analysis.html import page
    from nextquill_core.analysis.report import number
    from nextquill_core.analysis.sweep_series import sweep_series
    from nextquill_core.pipeline.evaluate import write_picture
    from nextquill_core.pipeline.report.paper_pictures import sweep_picture
    from nextquill_core.schemas import SWEEP

    document = _document(points)
    write_json(staging.path(DOCUMENT), document)
    rows = [{**row, "values": json.dumps(points[row["point"]].values)} for row in document["rows"]]
    staging.write_table("metrics.parquet", pa.Table.from_pylist(rows, schema=SWEEP))
    series = {key: sweep_series(document, key) for key in points[0].values}
    drawn = {f"sweep-{place}": found for place, found in enumerate(series.values(), 1) if found}
    figures = {name: sweep_picture(found, name) for name, found in drawn.items()}
    for name, picture in figures.items():
        write_picture(staging, name, picture)
    title = f"Sweep over {', '.join(points[0].values)}"
    shown = {"title": title, "tables": list(_tables(document)), "split": SPLIT, "cautions": document["cautions"]}
    text = page("sweep.html.j2", {"number": number}, figures=list(figures.values()), **shown)
    write_text(staging.path("sweep.html"), text)
    return {"points": len(points), "split": SPLIT}


def _document(points: Sequence[Point]) -> dict[str, Any]:
    from nextquill_core.pipeline.evaluate import read_results

    described: list[dict[str, Any]] = []
    rows: list[Row] = []
    settings: Mapping[str, Any] = {}
    cautions: dict[str, None] = {}
    for number, point in enumerate(points):
        evaluation = point.run.artifact(point.run.plan.evaluate)
        results = read_results(evaluation)
        settings = results.settings
        cautions |= dict.fromkeys(results.cautions)
        rows += [{"point": number, **row} for row in results.rows]
        described.append(
            {
                "point": number,
                "values": dict(point.values),
                "evaluate": evaluation.manifest.fingerprint,
                "predictions": measured_steps(point.run),
            }
        )
    return {"split": SPLIT, "settings": settings, "cautions": list(cautions), "points": described, "rows": rows}


@dataclass(frozen=True, slots=True)
class SweepTable:
    """The table of one decoding preset and category, with a line for each method and point at which its texts differ.

    Attributes:
        title: Category, preset and number of examples.
        keys: The keys that were swept.
        metrics: Names of the metrics, one for each cell of a line.
        lines: (method, the value of each key, the cells).
    """

    title: str
    keys: tuple[str, ...]
    metrics: tuple[str, ...]
    lines: tuple[tuple[str, tuple[str, ...], tuple[Cell, ...]], ...]


def read_sweep(artifact: Artifact) -> tuple[list[SweepTable], list[str]]:
    """Read the tables of a sweep, and what a reader must know to read the numbers right.

    Raises:
        UserError: The file is damaged, or its points do not all have values of the same keys.
    """
    document = sweep_document(artifact)
    return list(_tables(document)), document.get("cautions", [])


def sweep_cells(artifact: Artifact) -> list[dict[str, str]]:
    """Return the tables of a sweep as one table of texts."""
    return [
        {"table": table.title, "method": method}
        | dict(zip(table.keys, values, strict=True))
        | dict(zip(table.metrics, map(str, cells), strict=True))
        for table in read_sweep(artifact)[0]
        for method, values, cells in table.lines
    ]


def _tables(document: Mapping[str, Any]) -> Iterator[SweepTable]:
    from nextquill_core.analysis.result_tables import pivot
    from nextquill_core.evaluation.metrics import GAIN, MAIN

    points: list[dict[str, Any]] = document["points"]
    keys = tuple(points[0]["values"])
    rows: list[Row] = document["rows"]
    for decoding, category in dict.fromkeys((row["decoding"], row["category"]) for row in rows):
        lines: dict[str, tuple[str, tuple[str, ...]]] = {}
        chosen: list[Row] = []
        methods = dict.fromkeys(name.rpartition("/")[0] for point in points for name in point["predictions"])
        for method in methods:
            for members in _sharing(points, f"{method}/{decoding}"):
                name = str(len(lines))
                lines[name] = method, tuple(_values(key, members, points) for key in keys)
                chosen += [
                    {**row, "method": name}
                    for row in rows
                    if (row["point"], row["method"]) == (members[0]["point"], method)
                ]
        table = pivot(chosen, decoding, category, (GAIN, MAIN))
        yield SweepTable(
            f"{category}, {decoding} decoding, {document['split']}, n = {table.n}",
            keys,
            tuple(metric.name for metric in table.metrics),
            tuple((*lines[name], cells) for name, cells in table.lines),
        )


def _sharing(points: Sequence[Mapping[str, Any]], prediction: str) -> list[list[Mapping[str, Any]]]:
    """Return the points in groups that share this set of predictions."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for point in points:
        if prediction in point["predictions"]:
            groups.setdefault(point["predictions"][prediction], []).append(point)
    return list(groups.values())


def _values(key: str, members: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]]) -> str:
    """Return the values of a key in a group of points, or `any` where all values of the grid are in the group."""
    mine, all_values = (
        dict.fromkeys(shown_value(point["values"][key]) for point in group) for group in (members, points)
    )
    return ANY if len(mine) > 1 and mine == all_values else ", ".join(mine)

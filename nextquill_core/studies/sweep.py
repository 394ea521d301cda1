"""Sweeps: a grid of settings, each point of it a configuration, and one table of what all of them reach on val.

A sweep exists so that somebody chooses from it, and what is chosen by the test split can no longer be measured on it.
So every point is measured on the val split, whatever the configuration says.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING, Any

import yaml

from nextquill_core.config import Config, parse_config
from nextquill_core.errors import UserError
from nextquill_core.pipeline import Plan, Step, freshness, outdated
from nextquill_core.pipeline.run import Outcome, Run
from storage import Artifact, Staging, write_json, write_text
from storage.documents import read_checked

if TYPE_CHECKING:
    from nextquill_core.evaluation.forms import SweepDocument
    from nextquill_core.evaluation.tables import Cell, Row

SPLIT = "val"
ANY = "any"  # of a setting that has no say in a method's texts
Grid = Mapping[str, Sequence[Any]]
"""Values by dotted key."""


@dataclass(frozen=True)
class Point:
    """One point of the grid: its values by dotted key, and the run of its configuration."""

    values: Mapping[str, Any]
    run: Run

    @property
    def label(self) -> str:
        """`train.alpha=0.05 weights.high=0.9`."""
        return label_of(self.values)


def label_of(values: Mapping[str, Any]) -> str:
    """`train.alpha=0.05 weights.high=0.9`."""
    return " ".join(f"{key}={_shown(value)}" for key, value in values.items())


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """The grid of `KEY=VALUE,VALUE,…`, the values in YAML.

    Raises:
        UserError: A text is something else, or names a key again.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        key, separator, listed = text.partition("=")
        try:
            values = yaml.safe_load(f"[{listed}]")
        except yaml.YAMLError:
            raise UserError("the values are not valid YAML", key, "quote those with commas or brackets") from None
        if not separator or not key or not values:
            raise UserError(f"a sweep takes KEY=VALUE,VALUE,…, got {text!r}", remedy="for example train.alpha=0.01,0.1")
        if key in grid:
            raise UserError("the key is named twice", key, "list all its values behind one `=`")
        grid[key] = values
    return grid


def grid_configs(config: Config, grid: Grid) -> list[tuple[dict[str, Any], Config]]:
    """The values and the configuration of each point, the last key's values changing fastest; all measure on val.

    Raises:
        UserError: The grid is empty or sets the split, a key is unknown, or a value does not fit.
    """
    if not grid:
        raise UserError("a sweep needs a key and its values", remedy="for example train.alpha=0.01,0.1")
    if "evaluate.split" in grid:
        raise UserError("a sweep always looks at val", "evaluate.split", "choose on val, then `run` what you chose")
    found = []
    for chosen in itertools.product(*grid.values()):
        values = {key: _plain(value) for key, value in zip(grid, chosen, strict=True)}
        settings = config.model_dump(mode="json")
        for key, value in values.items():
            _lay(settings, key, value)
        if isinstance(settings["evaluate"], dict):
            settings["evaluate"]["split"] = SPLIT
        point = parse_config(settings, where=f"sweep {label_of(values)}")
        found.append((values, point.with_laid_over(values)))
    return found


def open_points(config: Config, grid: Grid, open_run: Callable[[Config], Run]) -> list[Point]:
    """The points of a grid, each against its store.

    Args:
        config: What all points share.
        grid: Values by dotted key; the points are all their combinations.
        open_run: Opens a configuration.

    Raises:
        UserError: The grid does not fit, two points would write the same texts and somebody would wait for nothing, or
            what `open_run` raises.
    """
    points: list[Point] = []
    seen: dict[frozenset[str], Point] = {}
    for values, settings in grid_configs(config, grid):
        point = Point(values, open_run(settings))
        texts = frozenset(found.step.fingerprint for found in point.run.plan.evaluation.predictions.values())
        if texts in seen:
            raise UserError(
                f"{seen[texts].label} and {point.label} make the same predictions",
                "sweep",
                "leave one out; a key counts only where a method of evaluate.methods depends on it",
            )
        seen[texts] = point
        points.append(point)
    return points


def missing(run: Run) -> set[tuple[str, str]]:
    """(kind, fingerprint) of every artifact of a run that is not there as it should be."""
    return {
        (step.kind, step.fingerprint)
        for step in all_steps(run.plan)
        if (artifact := run.store.find(step.kind, step.fingerprint)) is None or outdated(run.store, step, artifact)
    }


def all_steps(plan: Plan) -> list[Step]:
    """Every step that a plan's evaluation is made from, and itself."""
    return steps_behind(plan.evaluate)


def steps_behind(step: Step) -> list[Step]:
    """Every step that one is made from, and itself."""
    found: dict[tuple[str, str], Step] = {}
    waiting = [step]
    while waiting:
        one = waiting.pop()
        if (one.kind, one.fingerprint) not in found:
            found[one.kind, one.fingerprint] = one
            waiting += one.inputs
    return list(found.values())


def sweep_step(points: Sequence[Point]) -> Step:
    """The artifact of a sweep: made from the evaluations of all its points."""
    inputs = tuple(replace(point.run.plan.evaluate, name=f"point {number}") for number, point in enumerate(points))
    return Step("sweep", "sweep", {"points": [dict(point.values) for point in points]}, inputs)


def fresh_sweep(points: Sequence[Point]) -> Artifact | None:
    """The sweep's artifact, if it is there and nothing is left to do."""
    standing = freshness(points[0].run.store, sweep_step(points))
    return standing.artifact if standing.state == "fresh" else None


def collect(points: Sequence[Point], *, force: bool = False) -> Outcome:
    """One table of all points: metrics.json, metrics.parquet and sweep.html.

    Raises:
        UserError: A point has not been evaluated.
    """

    def build(staging: Staging) -> dict[str, Any]:
        import pyarrow as pa

        from nextquill_core.analysis.html import page
        from nextquill_core.schemas import SWEEP

        document = _document(points)
        write_json(staging.path("metrics.json"), document)
        rows = [{**row, "values": json.dumps(points[row["point"]].values)} for row in document["rows"]]
        staging.write_table("metrics.parquet", pa.Table.from_pylist(rows, schema=SWEEP))
        tables = list(_tables(document))
        title = f"Sweep over {', '.join(points[0].values)}"
        shown = {"title": title, "tables": tables, "split": SPLIT, "cautions": document["cautions"]}
        write_text(staging.path("sweep.html"), page("sweep.html.j2", **shown))
        return {"points": len(points), "split": SPLIT}

    return points[0].run.make(sweep_step(points), build, force=force)


def _document(points: Sequence[Point]) -> dict[str, Any]:
    from nextquill_core.evaluation.tables import from_document, read_document  # late: `status` needs no metrics

    described: list[dict[str, Any]] = []
    rows: list[Row] = []
    settings: dict[str, Any] = {}
    cautions: dict[str, None] = {}
    for number, point in enumerate(points):
        evaluation = point.run.artifact(point.run.plan.evaluate)
        path = evaluation.folder / "metrics.json"
        measured = read_document(path)
        settings, found, _ = from_document(measured, str(path))
        cautions |= dict.fromkeys(measured.get("cautions", []))
        rows += [{"point": number, **row} for row in found]
        written = point.run.plan.evaluation.predictions
        predictions = {"/".join(key): found.step.fingerprint for key, found in written.items()}
        described.append(
            {
                "point": number,
                "values": dict(point.values),
                "evaluate": evaluation.manifest.fingerprint,
                "predictions": predictions,
            }
        )
    return {"split": SPLIT, "settings": settings, "cautions": list(cautions), "points": described, "rows": rows}


@dataclass(frozen=True, slots=True)
class SweepTable:
    """One decoding preset and category: a line for each method and point at which its texts differ.

    Attributes:
        keys: What was swept.
        metrics: Names of the columns of cells.
        lines: (method, the value of each key, the cells).
    """

    title: str
    keys: tuple[str, ...]
    metrics: tuple[str, ...]
    lines: tuple[tuple[str, tuple[str, ...], tuple[Cell, ...]], ...]


def sweep_tables(artifact: Artifact) -> list[SweepTable]:
    """The tables of a sweep's artifact, for people."""
    return list(_tables(_stored(artifact)))


def sweep_cautions(artifact: Artifact) -> list[str]:
    """What a reader must know to read the tables of a sweep right."""
    return list(_stored(artifact).get("cautions", []))


def _stored(artifact: Artifact) -> SweepDocument:
    """Return metrics.json of a sweep.

    Raises:
        UserError: It is damaged, or its points do not all have values of the same keys.
    """
    from nextquill_core.evaluation.forms import SweepDocument

    path, remedy = artifact.folder / "metrics.json", "run `nextquill sweep --force`"
    document: SweepDocument = read_checked(path, SweepDocument, remedy)
    if len({frozenset(point["values"]) for point in document["points"]}) != 1:
        raise UserError("its points do not have the same keys", str(path), remedy)
    return document


def sweep_cells(artifact: Artifact) -> list[dict[str, str]]:
    """The same as one table of texts."""
    return [
        {"table": table.title, "method": method}
        | dict(zip(table.keys, values, strict=True))
        | dict(zip(table.metrics, map(str, cells), strict=True))
        for table in sweep_tables(artifact)
        for method, values, cells in table.lines
    ]


def _tables(document: Mapping[str, Any]) -> Iterator[SweepTable]:
    from nextquill_core.evaluation.tables import pivot

    points: list[dict[str, Any]] = document["points"]
    keys = tuple(points[0]["values"])
    rows: list[Row] = document["rows"]
    for decoding, category in dict.fromkeys((row["decoding"], row["category"]) for row in rows):
        lines: dict[str, tuple[str, tuple[str, ...]]] = {}
        chosen: list[Row] = []
        methods = dict.fromkeys(name.rpartition("/")[0] for point in points for name in point["predictions"])
        for method in methods:
            for members in _alike(points, f"{method}/{decoding}"):
                name = str(len(lines))
                lines[name] = method, tuple(_spanned(key, members, points) for key in keys)
                chosen += [
                    {**row, "method": name}
                    for row in rows
                    if (row["point"], row["method"]) == (members[0]["point"], method)
                ]
        table = pivot(chosen, decoding, category)
        yield SweepTable(
            f"{category}, {decoding} decoding, {document['split']}, n = {table.n}",
            keys,
            tuple(metric.name for metric in table.metrics),
            tuple((*lines[name], cells) for name, cells in table.lines),
        )


def _alike(points: Sequence[Mapping[str, Any]], prediction: str) -> list[list[Mapping[str, Any]]]:
    """The points in groups that have this prediction in common."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for point in points:
        if prediction in point["predictions"]:
            groups.setdefault(point["predictions"][prediction], []).append(point)
    return list(groups.values())


def _spanned(key: str, members: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]]) -> str:
    """The value of a key in a group of points, or that any value of the grid gives the same."""
    mine, all_values = (dict.fromkeys(_shown(point["values"][key]) for point in group) for group in (members, points))
    return ANY if len(mine) > 1 and mine == all_values else ", ".join(mine)


def _lay(settings: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    section: Any = settings
    for name in parents:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise UserError(f"{name} is a value, not a section", key, "see docs/reference/configuration.md")
    section[last] = value


def _plain(value: Any) -> Any:
    """A YAML value as JSON has it."""
    return value.isoformat() if isinstance(value, date) else value


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

"""Sweeps as plans: the points of a grid of settings, each with its run, and the step of their common table.

The results of a sweep are for choosing, and what was chosen by the test split can no longer be measured on it. So every
point is measured on the val split, whatever the configuration says.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nextquill_core.config import Config, parse_config
from nextquill_core.config.base import plain
from nextquill_core.config.loading import set_key
from nextquill_core.errors import UserError
from nextquill_core.evaluation.forms import SweepDocument
from nextquill_core.pipeline.run import OpenRun, Run
from nextquill_core.pipeline.step import Step
from storage import Artifact
from storage.stored_json import expect_form, read_checked

SPLIT = "val"
DOCUMENT = "metrics.json"
Grid = Mapping[str, Sequence[Any]]
"""Values by dotted key."""


@dataclass(frozen=True)
class Point:
    """A point of the grid.

    Attributes:
        values: Its values by dotted key.
        run: The run of its configuration.
    """

    values: Mapping[str, Any]
    run: Run

    @property
    def label(self) -> str:
        """The point's values as text, such as `train.alpha=0.05 weights.high=0.9`."""
        return label_of(self.values)


def label_of(values: Mapping[str, Any]) -> str:
    """Return the values of a point as text, such as `train.alpha=0.05 weights.high=0.9`."""
    return " ".join(f"{key}={shown_value(value)}" for key, value in values.items())


def grid_configs(config: Config, grid: Grid) -> list[tuple[dict[str, Any], Config]]:
    """Return the values and the configuration of each point, which measures on val; the last key changes fastest.

    Raises:
        UserError: The grid is empty or sets the split, a key is unknown, or a value does not fit.
    """
    if not grid:
        raise UserError("a sweep needs a key and its values", remedy="for example train.alpha=0.01,0.1")
    if "evaluate.split" in grid:
        raise UserError("a sweep always looks at val", "evaluate.split", "choose on val, then `run` what you chose")
    found = []
    for chosen in itertools.product(*grid.values()):
        values = {key: plain(value) for key, value in zip(grid, chosen, strict=True)}
        settings = config.model_dump(mode="json")
        for key, value in values.items():
            set_key(settings, key, value)
        if isinstance(settings["evaluate"], dict):
            settings["evaluate"] |= {"split": SPLIT, "pictured_tokens": 0}  # the table needs no clusters
        point = parse_config(settings, where=f"sweep {label_of(values)}")
        found.append((values, point.with_overridden(values)))
    return found


def open_points(config: Config, grid: Grid, open_run: OpenRun) -> list[Point]:
    """Return the points of a grid with their runs.

    Args:
        config: The settings that all points share.
        grid: Values by dotted key; the points are all their combinations.
        open_run: Opens a configuration.

    Raises:
        UserError: The grid does not fit, or two points would generate the same texts; or what `open_run` raises.
    """
    points: list[Point] = []
    seen: dict[frozenset[str], Point] = {}
    for values, settings in grid_configs(config, grid):
        point = Point(values, open_run(settings))
        texts = frozenset(measured_steps(point.run).values())
        if texts in seen:
            raise UserError(
                f"{seen[texts].label} and {point.label} make the same predictions",
                "sweep",
                "leave one out; a key counts only where a method of evaluate.methods depends on it",
            )
        seen[texts] = point
        points.append(point)
    return points


def sweep_step(points: Sequence[Point]) -> Step:
    """Return the step of a sweep, whose inputs are the evaluations of all points."""
    inputs = tuple(replace(point.run.plan.evaluate, name=f"point {number}") for number, point in enumerate(points))
    return Step("sweep", "sweep", {"points": [dict(point.values) for point in points]}, inputs)


def stored_sweeps(run: Run, open_run: OpenRun, keys: Collection[str] = ()) -> Iterator[Artifact]:
    """Yield the stored sweeps over the configuration of a run, newest first.

    A sweep is over a configuration if its grid, laid over that configuration, gives the same fingerprint.

    Args:
        run: The run.
        open_run: Opens a configuration.
        keys: Only sweeps over one of these keys; empty for all.
    """
    for artifact in run.store.newest_first("sweep"):
        grid: dict[str, list[Any]] = {}
        try:
            with expect_form(artifact.location, "delete it"):
                for point in artifact.manifest.identity["points"]:
                    for key, value in point.items():
                        if value not in (values := grid.setdefault(key, [])):
                            values.append(value)
            if keys and grid.keys().isdisjoint(keys):
                continue
            same = sweep_step(open_points(run.config, grid, open_run)).fingerprint
        except UserError:
            continue  # its keys do not fit this configuration, so it is a sweep over another one
        if same == artifact.manifest.fingerprint:
            yield artifact


def sweep_document(artifact: Artifact) -> SweepDocument:
    """Read the results of a sweep.

    Raises:
        UserError: The file is damaged, or its points do not all have values of the same keys.
    """
    path, remedy = artifact.folder / DOCUMENT, "run `nextquill sweep --force`"
    document: SweepDocument = read_checked(path, SweepDocument, remedy)
    if len({frozenset(point["values"]) for point in document["points"]}) != 1:
        raise UserError("its points do not have the same keys", str(path), remedy)
    return document


def measured_steps(run: Run) -> dict[str, str]:
    """Return the fingerprints of what is measured, by `METHOD/DECODING`: predictions, or likelihoods without texts."""
    from nextquill_core.evaluation.tables import NO_TEXTS

    plan = run.plan.evaluation
    texts = {"/".join(key): one.step.fingerprint for key, one in plan.predictions.items()}
    return texts or {f"{name}/{NO_TEXTS}": step.fingerprint for name, step in plan.likelihoods.items()}


def shown_value(value: Any) -> str:
    """Return a value of a key as text."""
    return value if isinstance(value, str) else json.dumps(value)

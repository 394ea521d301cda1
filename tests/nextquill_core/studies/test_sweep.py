"""Grids: what is parsed, what is refused, what points share, and the table that comes out."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nextquill_core.config import Config
from nextquill_core.pipeline import lineage
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.sweep_points import Point, grid_configs, label_of, open_points, stored_sweeps
from nextquill_core.schemas import SWEEP
from nextquill_core.studies.sweep import collect, fresh_sweep, missing, parse_grid, read_sweep, sweep_cells
from storage import Basis, UserError, write_json
from tests.world import small_config


def test_values_are_yaml_and_commas_part_them() -> None:
    assert parse_grid(["train.alpha=0.01,0.1", "train.lora.targets=all-linear,'q,v'", "evaluate.decoding=[sane]"]) == {
        "train.alpha": [0.01, 0.1],
        "train.lora.targets": ["all-linear", "q,v"],
        "evaluate.decoding": [["sane"]],
    }


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["train.alpha"], "a sweep takes KEY=VALUE,VALUE"),
        (["train.alpha="], "a sweep takes KEY=VALUE,VALUE"),
        (["=1"], "a sweep takes KEY=VALUE,VALUE"),
        (["train.alpha=[1"], "train.alpha: the values are not valid YAML"),
        (["train.alpha=1", "train.alpha=2"], "train.alpha: the key is named twice"),
        (["ingest.protocol.val_from=2020-13-45"], "ingest.protocol.val_from: the values are not valid YAML (`2020-13"),
        (["weights={high: 1, high: 2}"], "weights: the values are not valid YAML (the key `high` is there twice"),
    ],
)
def test_what_is_no_grid_is_one_line(texts: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_grid(texts)
    assert str(caught.value).startswith(message)


def test_all_combinations_and_always_on_val() -> None:
    grid = parse_grid(["train.alpha=0.01,0.1", "weights.high=0.7,0.9", "train.learning_rate=1e-4"])
    found = grid_configs(Config(), grid)
    assert [(c.train.alpha, c.weights.high) for _, c in found] == [(0.01, 0.7), (0.01, 0.9), (0.1, 0.7), (0.1, 0.9)]
    assert {(c.evaluate.split, c.train.learning_rate) for _, c in found} == {("val", 1e-4)}
    assert label_of(found[1][0]) == "train.alpha=0.01 weights.high=0.9 train.learning_rate=1e-4"
    whole = grid_configs(Config(), {"evaluate": [{"split": "test", "methods": ["nextquill"]}]})
    assert whole[0][1].evaluate.split == "val"
    timed = [f"ingest.protocol.{text}" for text in ("name=global-time", "val_from=2019-01-01", "test_from=2020-01-01")]
    values, config = grid_configs(Config(), parse_grid(timed))[0]
    assert json.loads(json.dumps(values))["ingest.protocol.test_from"] == "2020-01-01"
    assert config.ingest.protocol.test_from == date(2020, 1, 1)
    values, _ = grid_configs(Config(), parse_grid(["ingest.protocol={name: global-time, val_from: 2019-01-01}"]))[0]
    assert label_of(values) == 'ingest.protocol={"name": "global-time", "val_from": "2019-01-01"}'


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, "a sweep needs a key"),
        ({"evaluate.split": ["test"]}, "a sweep always looks at val"),
        ({"train.alfa": [1]}, "sweep train.alfa=1: unknown config key `train.alfa`; did you mean `train.alpha`?"),
        ({"train.alpha": [0.1, -1]}, "greater than or equal to 0"),
        ({"seed.x": [1]}, "seed.x: seed is a value, not a section"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(grid: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(UserError) as caught:
        grid_configs(Config(), grid)
    assert message in str(caught.value)


def points_of(small_world: Path, store: Path, *texts: str, **changes: Any) -> list[Point]:
    return open_points(small_config(small_world, store, **changes), parse_grid(texts), Run)


@pytest.mark.parametrize(
    ("texts", "methods"),
    [
        (["train.batch_tokens=100,200"], ["nextquill"]),
        (["train.alpha=0.1,0.2"], ["qwen", "contextsft"]),
        (["weights.high=0.7,0.70"], ["nextquill"]),
    ],
)
def test_points_that_would_write_the_same_are_refused(
    small_world: Path, tmp_path: Path, texts: list[str], methods: list[str]
) -> None:
    with pytest.raises(UserError, match="make the same predictions"):
        points_of(small_world, tmp_path, *texts, evaluate={"methods": methods})


def test_points_without_texts_differ_by_their_likelihoods(small_world: Path, tmp_path: Path) -> None:
    settings = {"evaluate": {"methods": ["nextquill"], "decoding": []}}
    assert len(points_of(small_world, tmp_path, "train.alpha=0.1,0.2", **settings)) == 2
    with pytest.raises(UserError, match="make the same predictions"):
        points_of(small_world, tmp_path, "train.batch_tokens=100,200", **settings)


def test_points_share_everything_before_what_is_swept(small_world: Path, tmp_path: Path) -> None:
    first, second = points_of(small_world, tmp_path, "train.alpha=0.1,0.2")
    kinds = sorted(kind for kind, _ in missing(first.run) & missing(second.run))
    shared = ["choice", "effects", "ingest", *["likelihood"] * 3, "model", *["predictions"] * 6, "scan", "score"]
    assert kinds == [*shared, "train"], "contextsft, what it and qwen write and find likely, and what chooses `sane`"
    assert len(missing(first.run)) == len(lineage(first.run.plan.evaluate))


VALUES = {0.1: 0.30, 0.2: 0.40}


def pretend_evaluated(points: list[Point]) -> None:
    """Artifacts without content for all steps, and metrics for the evaluations; qwen's are the same at every point."""
    for point in points:
        for step in lineage(point.run.plan.evaluate):
            if not point.run.store.find(step.kind, step.fingerprint):
                _pretend(point.run, step, point)


def _pretend(run: Run, step: Any, point: Point) -> None:
    with run.store.write(step.kind, step.fingerprint, Basis()) as staging:
        write_json(staging.path("name.json"), step.fingerprint)
        if step.kind == "evaluate":
            rows = [
                {"method": method, "category": "Small", "decoding": "sane", "metric": "rouge1", "value": value,
                 "ci_low": value - 0.01, "ci_high": value + 0.01, "n": 20}
                for method, value in (("qwen", 0.2), ("nextquill", VALUES[point.values["train.alpha"]]))
            ]  # fmt: skip
            write_json(staging.path("metrics.json"), {"settings": {"rouge": "1"}, "rows": rows, "comparisons": []})
        inputs = [run.artifact(source).ref for source in step.inputs]
        staging.seal(
            kind=step.kind, fingerprint=step.fingerprint, identity=step.identity, config={}, inputs=inputs, stats={},
            provenance={"seconds": 0.0},
        )  # fmt: skip
        run.store.commit(step.kind, step.fingerprint)


def test_the_table_names_each_method_once_for_what_decides_it(small_world: Path, tmp_path: Path) -> None:
    changes = {"evaluate": {"methods": ["qwen", "nextquill"], "decoding": ["sane"]}}
    points = points_of(small_world, tmp_path, "train.alpha=0.1,0.2", **changes)
    assert fresh_sweep(points) is None
    with pytest.raises(UserError, match="artifact is missing"):
        collect(points)
    pretend_evaluated(points)
    assert not any(missing(point.run) for point in points)
    artifact = collect(points).artifact
    assert artifact.folder.parent == tmp_path / "sweep"
    [table], _ = read_sweep(artifact)
    assert table.title == "Small, sane decoding, val, n = 20"
    assert [(method, values, str(cells[0]), cells[0].best) for method, values, cells in table.lines] == [
        ("qwen", ("any",), "0.2000 [0.1900, 0.2100]", False),
        ("nextquill", ("0.1",), "0.3000 [0.2900, 0.3100]", False),
        ("nextquill", ("0.2",), "0.4000 [0.3900, 0.4100]", True),
    ]
    assert sweep_cells(artifact)[1] == {
        "table": table.title, "method": "nextquill", "train.alpha": "0.1", "ROUGE-1": "0.3000 [0.2900, 0.3100]"
    }  # fmt: skip
    rows = pq.read_table(artifact.folder / "metrics.parquet")
    assert rows.schema.equals(SWEEP)
    assert [(row["point"], row["method"], row["value"]) for row in rows.to_pylist()] == [
        (0, "qwen", 0.2), (0, "nextquill", 0.3), (1, "qwen", 0.2), (1, "nextquill", 0.4)
    ]  # fmt: skip
    assert json.loads(rows["values"][3].as_py()) == {"train.alpha": 0.2}
    page = (artifact.folder / "sweep.html").read_text()
    assert '<td class="num best">0.4000<small>[0.3900, 0.4100]</small></td>' in page
    assert "val split" in page
    assert "http" not in page.replace("http-equiv", "")
    drawn = pq.read_table(artifact.folder / "figures" / "sweep-1.parquet").to_pylist()
    assert [(row["series"], row["at"], row["value"]) for row in drawn] == [
        ("nextquill", "0.1", 0.3), ("nextquill", "0.2", 0.4)
    ]  # fmt: skip
    assert (artifact.folder / "figures" / "sweep-1.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in page
    assert collect(points).reused
    assert fresh_sweep(points) is not None
    assert [one.manifest.fingerprint for one in stored_sweeps(points[0].run, Run, {"train.alpha"})] == [
        artifact.manifest.fingerprint
    ]
    assert list(stored_sweeps(points[0].run, Run, {"weights.high"})) == []
    other = Run(small_config(small_world, tmp_path, seed=7, **changes))
    assert list(stored_sweeps(other, Run)) == [], "a sweep over another configuration"


def test_a_remade_point_makes_the_sweep_stale(small_world: Path, tmp_path: Path) -> None:
    import shutil

    changes = {"evaluate": {"methods": ["qwen", "nextquill"], "decoding": ["sane"]}}
    points = points_of(small_world, tmp_path, "train.alpha=0.1,0.2", **changes)
    pretend_evaluated(points)
    collect(points)
    shutil.rmtree(points[1].run.artifact(points[1].run.plan.evaluate).folder)
    assert fresh_sweep(points) is None

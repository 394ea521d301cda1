"""A package adds two methods and two metrics, and a small run has them in its plan, its files and its tables."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nextquill_core.analysis.result_tables import pivot
from nextquill_core.methods.registry import METHODS
from nextquill_core.pipeline.evaluate import read_results, result_markdown, result_tables
from nextquill_core.pipeline.evaluation_plan import OWN
from nextquill_core.pipeline.methods import shown_examples, split_examples
from nextquill_core.pipeline.run import Run
from tests.conftest import REPO
from tests.plugins import add_package
from tests.stages import make, ranks
from tests.world import small_config

pytestmark = pytest.mark.ranks

GUIDE = (REPO / "docs" / "how-to" / "extend.md").read_text(encoding="utf-8")
MORE_METHODS = """
from nextquill_core.methods.registry import Training

soft = Method("soft-weights", "contextsft with the soft policy", "newest", Training(True, False, policy="soft"))
"""
MORE_METRICS = """
import numpy as np


def count_blanks(predictions, references):
    return [[text.count(" "), len(text)] for text in predictions]


def root(sums):
    return np.sqrt(sums[..., 0] / np.maximum(sums[..., 1], 1))


blanks = Metric("blanks", "Blanks", 3, None, root, score=count_blanks)
"""
CHANGES: dict[str, Any] = {
    "evaluate": {
        "methods": ["latestk", "longest", "soft-weights"],
        "decoding": ["paper"],
        "control": "stranger",
        "metrics": ["char_distance", "blanks"],
    },
    "train": {"method": "soft-weights"},
}


def snippet(heading: str, language: str) -> str:
    """Return the one block in this language of a section of the guide."""
    section = GUIDE.partition(f"## {heading}")[2].partition("\n## ")[0]
    (found,) = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    return str(found)


def points(heading: str) -> dict[str, str]:
    return dict(re.findall(r'^(\S+) = "(\S+)"$', snippet(heading, "toml"), re.MULTILINE))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The two packages of the guide, each with one thing more."""
    folder = tmp_path_factory.mktemp("packages")
    with pytest.MonkeyPatch.context() as patch:
        for heading, kind, module, code, further in (
            ("A method", "methods", "nextquill_longest", MORE_METHODS, {"soft-weights": "nextquill_longest:soft"}),
            ("A metric", "metrics", "nextquill_distance", MORE_METRICS, {"blanks": "nextquill_distance:blanks"}),
        ):
            code = snippet(heading, "python") + code
            add_package(folder, patch, module, code, f"nextquill.{kind}", points(heading) | further)
        patch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{REPO}")  # for the ranks
        yield folder


@pytest.fixture(scope="module")
def whole(packages: Path, small_world: Path, prepared_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    store = shutil.copytree(prepared_store, tmp_path_factory.mktemp("plugins") / "store")
    run = Run(small_config(small_world, store, **CHANGES))
    make(run, run.plan.evaluate, launch=ranks(1))
    return run


def test_an_added_method_is_planned_trained_and_measured(whole: Run) -> None:
    assert list(whole.plan.train) == ["soft-weights"]
    assert list(whole.plan.weights) == ["soft"]
    assert ("longest", "paper") in whole.plan.evaluation.predictions
    folder = whole.artifact(whole.plan.evaluate).folder
    rows = pq.read_table(folder / "metrics.parquet").to_pylist()
    assert {row["method"] for row in rows} == {"latestk", "longest", "soft-weights"}
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "the base model with the longest past reviews" in page


def test_an_added_method_shows_what_it_selects(whole: Run) -> None:
    before = {example.example_id: example for example in split_examples(whole, "test")}
    differs = False
    for example in shown_examples(whole, METHODS["longest"], "test", OWN):
        history = before[example.example_id].history
        expected = sorted(map(len, (review.text for review in history)), reverse=True)[:2]
        assert sorted(map(len, (review.text for review in example.history)), reverse=True) == expected
        differs |= example.history != history[-2:]
    assert differs, "the newest are not always the longest"


def test_an_added_metric_is_in_every_table_with_its_direction_and_note(whole: Run) -> None:
    artifact = whole.artifact(whole.plan.evaluate)
    document = json.loads((artifact.folder / "metrics.json").read_text(encoding="utf-8"))
    assert document["settings"]["char_distance"] == {
        "package": "nextquill_distance 1.0",
        "value": "Distance",
        "direction": "lower is better",
        "note": "in characters",
    }
    examples = pq.read_table(artifact.folder / "examples.parquet").to_pylist()
    for method in ("latestk", "longest"):
        scores = [row["char_distance"] for row in examples if row["method"] == method]
        values = [
            row["value"] for row in document["rows"] if (row["method"], row["metric"]) == (method, "char_distance")
        ]
        assert values == [pytest.approx(sum(scores) / len(scores))]
    assert {row["metric"] for row in document["comparisons"]} >= {"char_distance"}
    assert not [row for row in document["comparisons"] if row["metric"] == "blanks"], "it has no better direction"
    slices = pq.read_table(artifact.folder / "slices.parquet").to_pylist()
    assert {"char_distance", "blanks"} <= {row["metric"] for row in slices}
    results = read_results(artifact)
    gains, cells, *_ = [rows for _, rows in result_tables(results.rows)]
    assert set(gains[0]) & {"Distance", "Blanks", "Personal gain"} == {"Personal gain"}
    assert {"Distance", "Blanks"} <= set(cells[0])
    page = (artifact.folder / "report.html").read_text(encoding="utf-8")
    assert "in characters" in page
    assert result_markdown(results, "report.html").count("| Distance |") > 0


def test_the_best_of_a_distance_is_the_least(whole: Run) -> None:
    document = json.loads((whole.artifact(whole.plan.evaluate).folder / "metrics.json").read_text(encoding="utf-8"))
    table = pivot(document["rows"], "paper", document["rows"][0]["category"])
    place = [metric.key for metric in table.metrics].index("char_distance")
    best = [float(cells[place].value) for _, cells in table.lines if cells[place].best]
    assert set(best) == {min(float(cells[place].value) for _, cells in table.lines)}


def test_the_metrics_that_are_named_decide_the_fingerprint(whole: Run, small_world: Path, tmp_path: Path) -> None:
    without = CHANGES | {"evaluate": CHANGES["evaluate"] | {"metrics": []}}
    other = Run(small_config(small_world, tmp_path, **without))
    assert other.plan.evaluate.fingerprint != whole.plan.evaluate.fingerprint
    assert "metrics" not in other.plan.evaluate.settings["evaluate"]


def test_commands_list_what_packages_add(packages: Path) -> None:
    environment = os.environ | {"PYTHONPATH": f"{packages}{os.pathsep}{REPO}"}
    for command, line in (
        ("methods", "longest the base model with the longest past reviews [nextquill_longest 1.0]"),
        ("metrics", "char_distance Distance, lower is better; in characters [nextquill_distance 1.0]"),
    ):
        arguments = [sys.executable, "-m", "flows", command]
        done = subprocess.run(arguments, cwd=REPO, env=environment, capture_output=True, text=True, check=True)
        assert line.split() in [found.split() for found in done.stdout.splitlines()]


def test_an_unknown_metric_is_one_line(packages: Path, small_world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown metric `char_distanc`; did you mean `char_distance`\?"):
        small_config(small_world, tmp_path, evaluate={"metrics": ["char_distanc"]})

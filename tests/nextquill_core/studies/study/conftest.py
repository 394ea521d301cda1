"""A small study whose evaluations are made up: numbers by method, candidate, split and seed, in real artifacts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextquill_core.config import Config
from nextquill_core.evaluation.metrics import LIKELIHOOD, ExampleScores
from nextquill_core.evaluation.tables import NO_TEXTS, metric_rows, statistics_table
from nextquill_core.ingest.reader import read_examples
from nextquill_core.pipeline import Step, lineage
from nextquill_core.pipeline.run import Run
from nextquill_core.studies.study.cells import Cell, Study
from nextquill_core.studies.study.spec import parse_study
from storage import Basis, write_json
from tests.world import small_settings, write_config

SPEC: dict[str, Any] = {
    "name": "small",
    "title": "A small study",
    "settings": {"evaluate": {"control": "none"}},
    "seeds": [42, 7],
    "methods": ["latestk"],
    "decoding": [],
    "parts": {"by": LIKELIHOOD, "not_below": [], "candidates": {"α = 0.5": {"train.alpha": 0.5}}},
    "variants": {"by": LIKELIHOOD, "candidates": {"ε = 0.5": {"weights.low": 0.5}}},
    "bootstrap_samples": 200,
}
SECONDS = 2.0
"""Time that each made-up artifact took."""
Values = Callable[[Cell, str], float]
"""From a cell and a method to its mean log-likelihood."""


@pytest.fixture
def small_study(small_world: Path, prepared_store: Path, tmp_path: Path) -> Study:
    """A study on a copy of the prepared store, in which nothing has been trained."""
    store = tmp_path / "store"
    shutil.copytree(prepared_store, store)
    base = write_config(tmp_path / "base.yaml", small_settings(small_world, store))
    opened: dict[str, Run] = {}

    def open_run(config: Config) -> Run:
        key = config.model_dump_json()
        if key not in opened:
            opened[key] = Run(config)
        return opened[key]

    return Study(parse_study(SPEC | {"base": str(base)}, "the test"), open_run)


def pretend(cell: Cell, values: Values) -> None:
    """Put artifacts for all missing steps of a cell into the store, the evaluation with made-up numbers."""
    for step in lineage(cell.run.plan.evaluate):
        if cell.run.store.find(step.kind, step.fingerprint) is None:
            _commit(cell, step, values)


def _commit(cell: Cell, step: Step, values: Values) -> None:
    run = cell.run
    with run.store.write(step.kind, step.fingerprint, Basis()) as staging:
        write_json(staging.path("name.json"), step.fingerprint)
        if step.kind == "evaluate":
            examples = list(read_examples(run.artifact(run.plan.ingest).folder, (cell.split,)))
            noise = np.random.default_rng(cell.seed).normal(0, 0.1, len(examples))
            scores = {
                (method, NO_TEXTS): ExampleScores(
                    {LIKELIHOOD: np.stack([10 * (values(cell, method) + noise), np.full(len(noise), 10.0)], axis=1)}
                )
                for method in cell.methods
            }
            users, categories = ([getattr(one, name) for one in examples] for name in ("user_id", "category"))
            rows = metric_rows(scores, users, categories, samples=100)
            write_json(staging.path("metrics.json"), {"settings": {}, "rows": rows, "comparisons": []})
            staging.write_table("statistics.parquet", statistics_table(scores, [one.example_id for one in examples]))
        staging.seal(
            kind=step.kind, fingerprint=step.fingerprint, identity=step.identity, config={},
            inputs=[run.artifact(origin).ref for origin in step.inputs], stats={"steps": 3},
            provenance={"seconds": SECONDS},
        )  # fmt: skip
        run.store.commit(step.kind, step.fingerprint)

"""The whole table beside the published one: which methods, which numbers, which notes."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from nextquill_core.errors import UserError
from nextquill_core.pipeline.run import Run
from nextquill_core.schemas import METRICS
from nextquill_core.studies.reproduce import DOCUMENT, TABLES, collect, reproduced, reproduction_step, whole_table
from storage import Staging, write_json
from tests.nextquill_core.pipeline.test_plan import make_all
from tests.stages import make
from tests.world import small_config


def test_the_whole_table_adds_what_the_paper_has_and_drops_nothing(small_world: Path, tmp_path: Path) -> None:
    config = whole_table(
        small_config(small_world, tmp_path, evaluate={"methods": ["bm25"], "decoding": ["sane"], "split": "val"})
    )
    assert config.evaluate.methods == (
        "qwen", "contriever", "bm25", "latestk", "llm-trsr", "cos", "sft", "oppu", "contextsft", "causal-only",
        "mce-dce", "norm-only", "nextquill", "nextquill-official",
    )  # fmt: skip
    assert config.evaluate.decoding == ("paper", "sane")
    assert config.evaluate.split == "test"


def evaluated(world: Path, store: Path, category: str) -> Run:
    """A run whose evaluation says 0.25 everywhere; the rest are stand-ins, except for the sequences."""
    inputs = [{"category": category, "reviews": str(world / "reviews.jsonl"), "items": str(world / "items.jsonl")}]
    run = Run(small_config(world, store, ingest={"inputs": inputs}))
    make(run, run.plan.ingest)
    make_all(run)

    def build(staging: Staging) -> dict[str, int]:
        row = {"method": "nextquill", "category": category, "decoding": "paper", "metric": "rouge1", "n": 20}
        row |= {"value": 0.25, "ci_low": 0.2, "ci_high": 0.3}
        write_json(staging.path("metrics.json"), {"settings": {}, "rows": [row], "comparisons": []})
        staging.write_table("metrics.parquet", pa.Table.from_pylist([row], schema=METRICS))
        return {}

    run.make(run.plan.evaluate, build, force=True)
    return run


def test_our_numbers_stand_beside_the_published_ones(small_world: Path, tmp_path: Path) -> None:
    runs = [evaluated(small_world, tmp_path, category) for category in ("Books", "Mine")]
    outcome = collect(runs)
    books, mine = reproduced(outcome.artifact)
    found = next(row for row in books["rows"] if (row["method"], row["metric"]) == ("nextquill", "rouge1"))
    assert (found["ours"], found["published"]) == (0.25, 0.2318)  # METHOD's table
    assert found["difference"] == pytest.approx(0.0182)
    assert any("small offline one" in difference for difference in books["differences"])
    assert mine["rows"] == []
    text = (outcome.artifact.folder / TABLES).read_text()
    assert "## Books" in text
    assert "no such category" in text
    assert json.loads((outcome.artifact.folder / DOCUMENT).read_text()) == [books, mine]
    assert collect(runs).reused
    assert runs[0].artifact(reproduction_step(runs)).folder == outcome.artifact.folder


def test_one_store_for_all(small_world: Path, tmp_path: Path) -> None:
    runs = [Run(small_config(small_world, tmp_path / name)) for name in "ab"]
    with pytest.raises(UserError, match="different stores"):
        collect(runs)

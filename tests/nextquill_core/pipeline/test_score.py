"""Stored effects are read for the wanted examples alone, as they are stored."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from nextquill_core.causal.summary import ScoredAnswer
from nextquill_core.pipeline.score import read_effects
from nextquill_core.schemas import EFFECTS, Example, Item, Review
from storage.tables import write_table


def example(key: str) -> Example:
    return Example(key, "u", "C", "test", Review(Item("B", "B"), 5.0, "", "text"), ())


def test_effects_of_the_wanted_examples_are_read_from_all_shards(tmp_path: Path) -> None:
    (tmp_path / "effects").mkdir()
    for shard, keys in enumerate(("ab", "c")):
        rows = [
            {"example_id": key, "target_ids": [1, 2], "logp_factual": [-1.0, -0.5], "logp_counterfactual": [-2.0, -0.5],
             "effect": [0.25, ord(key)]}
            for key in keys
        ]  # fmt: skip
        write_table(tmp_path / "effects" / f"{shard}.parquet", pa.Table.from_pylist(rows, schema=EFFECTS))
    found = read_effects(tmp_path, [example("c"), example("a"), example("not scored")])
    assert found == {
        key: ScoredAnswer(key, "C", (1, 2), (-1.0, -0.5), (-2.0, -0.5), (0.25, float(ord(key)))) for key in "ac"
    }


@pytest.mark.process
def test_a_study_compares_effects_without_loading_the_figures() -> None:
    code = "import sys, nextquill_core.studies.study.effects; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

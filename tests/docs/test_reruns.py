"""What the pages say runs again when a setting changes is what a plan makes again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from nextquill_core.config import Config
from nextquill_core.methods.registry import METHODS
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.step import Step, lineage
from tests.conftest import REPO
from tests.world import small_config

EXPLANATION = REPO / "docs" / "explanation"
CHANGES: dict[str, Any] = {
    "ingest.protocol.min_text_chars": 100,
    "prompt.max_history": 1,
    "weights.delta": 0.1,
    "train.learning_rate": 2e-3,
    "evaluate.max_new_tokens": 9,
    "evaluate.bootstrap_samples": 300,
    "train.batch_tokens": 99,
}


def rows() -> dict[str, str]:
    """Return the second column of the table in the page on the architecture, by the setting in the first."""
    page = (EXPLANATION / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("## What runs again")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `([\w.]+)`[^|]* \| (.+) \|$", table, re.MULTILINE))


def changed(config: Config, key: str, value: Any) -> Config:
    values = section = config.model_dump()
    *path, name = key.split(".")
    for part in path:
        section = section[part]
    section[name] = value
    return Config.model_validate(values)


def steps(config: Config) -> list[Step]:
    plan = Run(config).plan
    clusters = [plan.evaluation.clusters] if plan.evaluation.clusters else []
    return lineage(plan.evaluate, *plan.train.values(), *clusters)


def test_every_row_of_the_table_is_tried() -> None:
    assert set(rows()) == set(CHANGES)


@pytest.mark.parametrize("key", CHANGES)
def test_a_change_makes_again_what_the_table_says(small_world: Path, tmp_path: Path, key: str) -> None:
    config = small_config(small_world, tmp_path)
    before = {step.fingerprint for step in steps(config)}
    after = steps(changed(config, key, CHANGES[key]))
    text = rows()[key]
    named = set(re.findall(r"`(\w+)`", text))
    kinds = {step.kind for step in after}
    expected = kinds - named if text.startswith("all kinds but") else named
    assert {step.kind for step in after if step.fingerprint not in before} == expected
    assert named <= kinds


def test_the_methods_whose_weights_depend_on_delta(small_world: Path, tmp_path: Path) -> None:
    config = small_config(
        small_world, tmp_path, evaluate={"methods": [name for name, known in METHODS.items() if known.training]}
    )
    before, after = (Run(one).plan.train for one in (config, changed(config, "weights.delta", 0.1)))
    page = (EXPLANATION / "losses.md").read_text(encoding="utf-8")
    listed = re.search(r"methods whose weights depend on δ \(([^)]+)\)", " ".join(page.split()))
    assert listed
    moved = {name for name, step in after.items() if step.fingerprint != before[name].fingerprint}
    assert set(re.findall(r"`([\w-]+)`", listed[1])) == moved

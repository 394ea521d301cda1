"""What a run takes, before, between and after its steps."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flows.cli.plan import closing_lines
from nextquill_core.config import parse_config
from nextquill_core.costs.estimate import GROUPS, estimate
from nextquill_core.costs.shape import ModelShape
from nextquill_core.errors import DataError
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.step import KINDS
from tests.nextquill_core.conftest import Configured
from tests.nextquill_core.pipeline.test_plan import every_step
from tests.stages import make

open_run = partial(Run, fetch=False)


def test_a_run_that_has_made_nothing_has_every_step_to_make(configured: Configured) -> None:
    config = configured()
    found = estimate(config, open_run, users=20)
    assert {one.step.name for one in found.steps} == {step.name for step in every_step(Run(config).plan)}
    assert all(one.missing for one in found.steps)
    assert [row.name for row in found.rows] == ["ingest", "model", "score", "train", "texts", "likelihoods", "evaluate"]
    assert found.sizes.examples == {"train": 40, "val": 20, "test": 20}
    card = found.rates[0]
    assert found.hours(card) == pytest.approx(sum(row.seconds["A100"] for row in found.rows) / 3600)
    assert found.hours(card, longest=True) >= found.hours(card)


def test_what_is_up_to_date_costs_nothing_and_its_sizes_are_exact(configured: Configured) -> None:
    run = Run(configured())
    make(run, run.plan.ingest)
    found = estimate(run.config, open_run)
    assert found.sizes.counted == "the sequences in the store"
    assert found.sizes.examples == run.artifact(run.plan.ingest).manifest.stats["examples"]
    by_name = {row.name: row for row in found.rows}
    assert (by_name["ingest"].missing, by_name["ingest"].stored, by_name["ingest"].processor) == (0, 0, 0)
    assert by_name["train"].missing == 2
    document = found.document
    assert {one["seconds"]["A100"] for one in document["steps"] if one["state"] == "fresh"} == {0}
    assert document["bytes"]["artifacts"] == round(found.stored)


def test_money_is_hours_times_the_price_of_the_settings(configured: Configured) -> None:
    found = estimate(configured(prices={"a100": 7.5}), open_run, users=20)
    dollars = found.document["dollars"]
    hours = {rates.name: found.hours(rates) for rates in found.rates}
    assert dollars == {
        "A100": round(7.5 * hours["A100"], 2),
        "H100": round(3.0 * hours["H100"], 2),
        "H200": round(4.0 * hours["H200"], 2),
    }


@pytest.mark.parametrize(
    ("layers", "dtype", "cards"),
    [(64, "bfloat16", []), (64, "float32", ["A100", "H100"]), (160, "float32", ["A100", "H100", "H200"])],
)
def test_cards_that_cannot_hold_the_weights_are_named(
    configured: Configured, layers: int, dtype: str, cards: list[str]
) -> None:
    found = estimate(configured(model={"dtype": dtype}), open_run, users=20)
    shape = ModelShape(152_064, 5120, 27_648, layers, 40, 8, 128, tied=False)  # with 64 layers Qwen2.5-32B
    found = replace(found, shape=shape)
    assert found.too_small == found.document["too_small"] == cards
    lines = [line for line in closing_lines(found) if line.startswith("too small")]
    assert [line.partition(";")[0] for line in lines] == ([f"too small: {', '.join(cards)}"] if cards else [])


def test_raw_files_and_a_model_that_are_not_here_are_downloads(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    config = parse_config({"store": "nowhere", "ingest": {"inputs": [{"category": "Books"}]}}, "the test")
    found = estimate(config, open_run)
    assert found.downloads["raw files of Books"] == 29.5e6 * 650 + 4.4e6 * 3100
    assert found.downloads["model Qwen/Qwen2.5-3B"] == 2 * found.shape.parameters
    assert found.document["bytes"]["downloads"] == found.downloads


def test_a_file_that_is_named_and_missing_is_an_error(tmp_path: Path) -> None:
    raw = {"category": "C", "reviews": str(tmp_path / "no.jsonl"), "items": str(tmp_path / "no.jsonl")}
    config = parse_config({"store": "nowhere", "ingest": {"inputs": [raw]}}, "the test")
    with pytest.raises(DataError, match="no such file"):
        estimate(config, open_run, users=1)


def test_every_kind_that_a_run_makes_has_a_row() -> None:
    of_other_commands = {"sweep", "reproduction", "study"}
    assert {kind for kinds in GROUPS.values() for kind in kinds} == set(KINDS) - of_other_commands


def test_this_machine_is_measured_with_the_code_of_a_run(configured: Configured) -> None:
    rates = estimate(configured(), open_run, here=True, users=20).rates[-1]
    assert rates.name == "this machine"
    assert min(rates.forward, rates.training, rates.step_s, rates.positions) > 0
    assert rates.row_s >= 0
    assert "measured now on the CPU, with 2 layers" in rates.source

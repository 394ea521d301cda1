"""From cells to the page: choices read val alone, what is missing is listed, and the page follows from its numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nextquill_core.registry.garbage import current
from nextquill_core.studies.study.cells import Cell, Study, plan_lines, plan_rows
from nextquill_core.studies.study.collect import (
    PAGE,
    RESULTS,
    beside,
    choices_of,
    collect,
    document_files,
    read_document,
    results_of,
    stored_studies,
    write_files,
)
from nextquill_core.studies.study.measure import val_differences
from nextquill_core.studies.study.spec import Choice
from storage import UserError
from tests.nextquill_core.studies.study.conftest import SECONDS, pretend

LEVELS = {"latestk": -3.0, "contextsft": -2.0, "nextquill": -2.0}
BETTER = {"α = 0.5": 0.5, "ε = 0.5": -0.5}
"""How far nextquill is above contextsft on val under each candidate but the base; on test it is the other way round."""


def value(cell: Cell, method: str) -> float:
    sign = 1 if cell.split == "val" else -1
    return LEVELS[method] + (sign * BETTER.get(cell.candidate, 0.1) if method == "nextquill" else 0.0)


def measured_on_val(study: Study) -> None:
    for cell in study.val_cells():
        pretend(cell, value)


def test_val_chooses_whatever_test_says(small_study: Study) -> None:
    measured_on_val(small_study)
    before = choices_of(small_study)
    assert {name: {method: one.candidate for method, one in found.items()} for name, found in before.items()} == {
        "parts": {"nextquill": "α = 0.5"},
        "variants": {"nextquill": "base"},
    }
    assert before["parts"]["nextquill"].differences["α = 0.5"]["log_likelihood"] == pytest.approx(0.5)
    cells = small_study.test_cells(before)
    for cell in cells:
        pretend(cell, value)
        statistics = next(cell.run.artifact(cell.run.plan.evaluate).folder.glob("statistics.parquet"))
        statistics.write_bytes(b"not to be read")  # opening it while choosing would fail
    assert choices_of(small_study) == before


def test_cells_on_test_are_refused_by_the_chooser(small_study: Study) -> None:
    with pytest.raises(ValueError, match="choices are made on val alone"):
        val_differences(small_study.test_cells({}), "nextquill", "contextsft")


def test_each_method_is_measured_on_test_under_what_val_chose(small_study: Study) -> None:
    measured_on_val(small_study)
    cells = small_study.test_cells(choices_of(small_study))
    assert {(cell.choice, cell.candidate, cell.methods) for cell in cells} == {
        ("parts", "base", ("latestk", "contextsft")),
        ("parts", "α = 0.5", ("nextquill",)),
        ("variants", "base", ("contextsft", "nextquill")),
    }
    assert {cell.seed for cell in cells} == {42, 7}
    assert {(cell.run.config.evaluate.split, cell.run.config.seed == cell.seed) for cell in cells} == {("test", True)}


def test_a_choice_waits_for_all_its_cells(small_study: Study) -> None:
    first, *_, last = [cell for cell in small_study.val_cells() if cell.choice == "parts"]
    pretend(first, value)
    assert choices_of(small_study) == {}
    pretend(last, value)
    assert set(choices_of(small_study)) == {"parts"}


def test_the_plan_counts_what_cells_share_once_and_what_it_may_take(small_study: Study) -> None:
    cells = [cell for cell in small_study.val_cells() if cell.choice == "parts"]
    rows = list(plan_rows(cells))
    assert [dict(row.missing) for row in rows] == [
        {"train": 2, "likelihood": 4, "evaluate": 1},
        {"train": 1, "likelihood": 2, "evaluate": 1},
    ], "effects are in the prepared store, and contextsft does not depend on α"
    assert [row.seconds for row in rows] == [None, None]
    pretend(cells[0], value)
    rest = list(plan_rows(cells))
    assert [dict(row.missing) for row in rest] == [{}, {"train": 1, "likelihood": 2, "evaluate": 1}]
    assert rest[1].seconds == 4 * SECONDS, "by the times of the others of each kind"
    lines = list(plan_lines(rest))
    assert lines[0].endswith("nothing to make")
    assert lines[-1] == "  to make: 1 train, 2 likelihood, 1 evaluate; about 8 s"


def test_the_page_is_collected_from_what_there_is(small_study: Study, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing has been measured yet"):
        collect([small_study])
    measured_on_val(small_study)
    early = results_of(small_study)
    assert set(early["tables"]) == {"parts_val", "variants_val"}
    assert len(early["missing"]) == 6, "three cells on test, under two seeds"
    cells = small_study.test_cells(choices_of(small_study))
    for cell in cells[:-1]:
        pretend(cell, value)
    partial = collect([small_study])
    assert partial.artifact.manifest.stats == {"studies": ["small"], "missing": 1}
    assert f"- {cells[-1].label}" in (partial.artifact.folder / PAGE).read_text()
    pretend(cells[-1], value)
    whole = collect([small_study])
    assert not whole.reused
    assert collect([small_study]).reused
    results = read_document(whole.artifact.folder / RESULTS)["studies"][0]
    assert results["missing"] == []
    assert results["steps"] == {"contextsft": [3], "nextquill": [3]}
    pair = {(row["method"], row["reference"]): row["difference"] for row in results["tables"]["parts"]["comparisons"]}
    assert pair == {
        ("latestk", "contextsft"): pytest.approx(-1.0),
        ("nextquill", "contextsft"): pytest.approx(-0.5),
        ("nextquill", "latestk"): pytest.approx(0.5),
    }
    [row] = [row for row in results["tables"]["parts"]["rows"] if row["method"] == "nextquill"]
    assert (row["candidate"], row["seeds"], row["n"]) == ("α = 0.5", 2, 20)


def test_the_page_can_be_written_again_from_its_numbers_alone(small_study: Study, tmp_path: Path) -> None:
    measured_on_val(small_study)
    folder = collect([small_study]).artifact.folder
    document = read_document(folder / RESULTS)
    stored = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    stored.pop("manifest.json")
    assert document_files(document) == stored
    written = write_files(document, tmp_path / "docs")
    assert {path.relative_to(tmp_path / "docs").as_posix(): path.read_bytes() for path in written} == stored
    assert json.loads(stored[RESULTS])["studies"][0]["name"] == "small"


def test_studies_of_other_names_stay_on_the_page(tmp_path: Path) -> None:
    old = [{"name": "first", "title": "old"}, {"name": "second", "title": "old"}]
    new = {"studies": [{"name": "third", "title": "new"}, {"name": "first", "title": "new"}]}
    found = beside(new, old)["studies"]
    assert [(one["name"], one["title"]) for one in found] == [("first", "new"), ("second", "old"), ("third", "new")]
    assert beside(new, []) == new
    assert stored_studies(tmp_path) == []
    (tmp_path / "results.json").write_text('{"studies": 3}')
    with pytest.raises(UserError, match="run `nextquill study` again"):
        stored_studies(tmp_path)


def test_a_question_alone_needs_only_its_cells(small_study: Study) -> None:
    alone = Study(small_study.spec, small_study.open_run, {5})
    assert {cell.choice for cell in alone.val_cells()} == {"variants"}
    assert {cell.choice for cell in alone.test_cells({})} == {"variants"}
    decoding = Study(small_study.spec, small_study.open_run, {4})
    assert {cell.methods for cell in decoding.test_cells({})} == {("contextsft", "nextquill")}


def test_without_candidates_nothing_is_measured_on_val(small_study: Study) -> None:
    spec = small_study.spec.model_copy(update={"parts": Choice()})
    study = Study(spec, small_study.open_run, {2})
    assert study.val_cells() == []
    cells = study.test_cells(choices_of(study))
    assert [(cell.candidate, cell.methods) for cell in cells] == [("base", ("latestk", "contextsft", "nextquill"))] * 2
    for cell in cells:
        pretend(cell, value)
    folder = collect([study]).artifact.folder
    [results] = read_document(folder / RESULTS)["studies"]
    assert results["choices"] == []
    assert {row["method"] for row in results["tables"]["parts"]["rows"]} == {"latestk", "contextsft", "nextquill"}
    assert "Chosen on val" not in (folder / PAGE).read_text()
    assert Study(spec, small_study.open_run, {5}).val_cells(), "question 5 shows what is measured on val"


def test_question_1_compares_the_effects_of_further_models(small_study: Study) -> None:
    spec = small_study.spec.model_copy(update={"effects": {"longer": {"model.tiny.steps": 7}}})
    cells = Study(spec, small_study.open_run, {1}).effect_cells()
    assert [cell.label for cell in cells] == ["small: effects, base, seed 42", "small: effects, longer, seed 42"]
    assert [cell.goal for cell in cells] == [cell.run.plan.effects for cell in cells]
    rows = list(plan_rows(cells))
    assert [dict(row.missing) for row in rows] == [{}, {"model": 1, "effects": 1}], "the prepared store has the base's"
    assert Study(spec, small_study.open_run, {2}).effect_cells() == []
    results = results_of(Study(spec, small_study.open_run, {1}))
    assert {row["setting"] for row in results["effects"]} == {"base"}
    assert results["missing"] == ["small: effects, longer, seed 42"]


def test_question_1_trains_no_adapters(small_study: Study) -> None:
    compared = {"evaluate": {"preference_tokens": ["initial", "crossfit"]}}
    spec = small_study.spec.model_copy(
        update={"effects": {"longer": {"model.tiny.steps": 7}}, "settings": {**small_study.spec.settings, **compared}}
    )
    study = Study(spec, small_study.open_run, {1, 2})
    assert not any(cell.run.plan.folds for cell in study.effect_cells())
    assert all(cell.run.plan.folds for cell in study.val_cells())
    base, *_ = study.effect_cells()
    assert base.goal.fingerprint == study.val_cells()[0].run.plan.effects.fingerprint, "the others share its effects"


def test_garbage_collection_keeps_the_newest_page_and_all_behind_its_cells(small_study: Study) -> None:
    measured_on_val(small_study)
    first = collect([small_study]).artifact
    cells = small_study.test_cells(choices_of(small_study))
    for cell in cells:
        pretend(cell, value)
    newest = collect([small_study]).artifact
    base = small_study.base_run(42)
    kept = current([base], small_study.open_run)
    assert ("study", newest.manifest.fingerprint) in kept
    assert ("study", first.manifest.fingerprint) not in kept
    trained = {step.address for cell in cells for step in cell.run.plan.train.values()}
    assert trained <= kept

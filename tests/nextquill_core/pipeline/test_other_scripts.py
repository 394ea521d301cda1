"""What is chosen and measured on reviews that the standard ROUGE does not see: a world in Cyrillic letters."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nextquill_core.errors import DataError
from nextquill_core.pipeline import Step
from nextquill_core.pipeline.evaluate import chosen_notes
from nextquill_core.pipeline.methods import measured_examples, split_examples
from nextquill_core.pipeline.predict import chosen
from nextquill_core.pipeline.run import Run
from nextquill_core.registry.promote import decide, missing_steps, val_run
from nextquill_core.schemas import PREDICTIONS
from nextquill_core.synthetic.sample import write_sample
from storage import Staging
from tests.nextquill_core.pipeline.test_plan import every_step
from tests.stages import make, table
from tests.world import small_config

LATIN = "abcdefghijklmnopqrstuvwxyz"
CYRILLIC = str.maketrans(LATIN + LATIN.upper(), "абвгдежзийклмнопрстуфхцчшщ" + "АБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩ")
EMPTY = "ничего подобного"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample with its reviews in Cyrillic letters."""
    folder = tmp_path_factory.mktemp("world")
    write_sample(folder, users=30, seed=1)
    rows = reviews_of(folder)
    for row in rows:
        row |= {name: row[name].translate(CYRILLIC) for name in ("text", "title")}
    write_reviews(folder, rows)
    return folder


def reviews_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a sample that are whole; its dirt is left out."""
    rows = []
    for line in (folder / "reviews.jsonl").read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row.get("text"), str) and isinstance(row.get("title"), str)]


def write_reviews(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def ingested(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(small_config(world, tmp_path_factory.mktemp("store")))
    make(run, run.plan.ingest)
    return run


def written(run: Run, step: Step, texts: list[str]) -> None:
    """Commit predictions with these texts."""

    def build(staging: Staging) -> dict[str, Any]:
        ids = [example.example_id for example in split_examples(run, step.settings["split"])]
        columns = {"method": "m", "decoding": "d", "text": "", "n_tokens": 1, "finish_reason": "stop"}
        rows = [{**columns, "example_id": one, "text": text} for one, text in zip(ids, texts, strict=True)]
        staging.write_table("predictions/0.parquet", pa.Table.from_pylist(rows, schema=PREDICTIONS))
        return {}

    run.make(step, build)


def choice(run: Run, **texts: list[str]) -> dict[str, Any]:
    """What is chosen as `sane` when the candidates have written these texts."""
    candidates = run.plan.evaluation.candidates["sane"]
    before = {step.name for writing in candidates.values() for step in writing.step.inputs}
    for step in every_step(run.plan):
        if step.name in before and run.store.find(step.kind, step.fingerprint) is None:
            run.make(step, table(1))
    for name, writing in candidates.items():
        written(run, writing.step, texts[name])
    run.make(run.plan.evaluation.choices["sane"])
    return chosen(run, "sane")


def references(run: Run, split: str = "val") -> list[str]:
    return [example.target.text for example in split_examples(run, split)]


def again(ingested: Run, **evaluate_settings: Any) -> Run:
    """The same store and data; `max_new_tokens` makes other steps of the candidates."""
    values = ingested.config.evaluate.model_dump(mode="json") | evaluate_settings
    return Run(ingested.config.model_copy(update={"evaluate": type(ingested.config.evaluate).model_validate(values)}))


def test_no_choice_among_zeros(ingested: Run) -> None:
    """The second candidate writes the references; the standard ROUGE gives 0 to both, and the first would stay."""
    run = again(ingested, max_new_tokens=11)
    found = choice(run, greedy=[EMPTY] * len(references(run)), sampled=references(run))
    assert (found["chosen"], found["by"], found["asked"]) == ("sampled", "rouge1_unicode", "rouge1")
    assert found["values"] == {"greedy": pytest.approx(0, abs=0.05), "sampled": 1.0}
    assert "rouge1 ignores 9" in found["why"] or "rouge1 ignores 100" in found["why"]
    (note,) = chosen_notes({"sane": found})
    assert "rouge1_unicode chose sampled" in note
    assert "because rouge1 ignores" in note


def test_a_metric_that_is_zero_for_all_gives_way(ingested: Run) -> None:
    run = again(ingested, max_new_tokens=12, choose_by="bleu")
    count = len(references(run))
    found = choice(run, greedy=["?"] * count, sampled=["?"] * count)
    assert found["chosen"] == "greedy"
    assert found["by"] == "rouge1_unicode"
    assert found["why"] == "bleu is 0 for every candidate; all candidates are equal, and the first is taken"


def test_english_reviews_are_chosen_by_the_standard_metric(small_world: Path, tmp_path: Path) -> None:
    run = Run(small_config(small_world, tmp_path))
    make(run, run.plan.ingest)
    found = choice(run, greedy=references(run), sampled=["nothing of the kind"] * len(references(run)))
    assert (found["chosen"], found["by"], found["asked"], found["why"]) == ("greedy", "rouge1", "rouge1", "")


def test_promotion_decides_by_the_metric_that_sees_the_letters(ingested: Run) -> None:
    run = val_run(again(ingested, max_new_tokens=13).config, "nextquill", open_with_adapter)
    *before, last = missing_steps(run, "nextquill", "rouge1")
    for step in before:
        if step.kind == "choice":
            run.make(step)
        else:
            written(run, step, references(run))
    written(run, last, references(run))
    verdict = decide(run, "nextquill", "nextquill", "rouge1")
    assert (verdict.metric, verdict.value) == ("rouge1_unicode", 1.0)
    assert "rouge1_unicode 1.0000 on val" in verdict.reason
    assert "; rouge1 ignores " in verdict.reason


def open_with_adapter(config: Any) -> Run:
    run = Run(config)
    for step in every_step(run.plan):
        if step.kind in ("model", "effects", "score", "train") and run.store.find(step.kind, step.fingerprint) is None:
            run.make(step, table(1))
    return run


def test_repeated_targets_are_left_out_where_asked(ingested: Run, world: Path, tmp_path: Path) -> None:
    examples, repeated = measured_examples(ingested)
    assert repeated == 0
    rows = reviews_of(world)
    target = examples[3]
    quoted = next(
        row for row in rows if row["user_id"] == target.user_id and clean(row["text"]) == target.history[0].text
    )
    quoted["text"] += " " + target.target.text
    shutil.copy(world / "items.jsonl", tmp_path)
    write_reviews(tmp_path, rows)
    run = Run(small_config(tmp_path, tmp_path / "store"))
    make(run, run.plan.ingest)
    kept, repeated = measured_examples(run)
    assert (len(kept), repeated) == (len(examples), 1)
    rest, repeated = measured_examples(again(run, repeated_targets="leave_out"))
    assert repeated == 1
    assert [one.example_id for one in rest] == [one.example_id for one in kept if one.example_id != target.example_id]
    assert run.artifact(run.plan.ingest).manifest.stats["repeated_targets"]["test"] == 1


def clean(text: str) -> str:
    return " ".join(text.split())


def test_nothing_left_is_one_line(ingested: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextquill_core.pipeline.methods.is_repeated", lambda text, earlier: True)
    with pytest.raises(DataError, match=r"evaluate\.repeated_targets: .*set it to keep"):
        measured_examples(again(ingested, repeated_targets="leave_out"))

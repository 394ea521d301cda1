"""All stages for real on a small world, without Prefect: what they leave, and that interruption changes no byte."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nextquill_core import schemas
from nextquill_core.pipeline import score
from nextquill_core.pipeline.evaluate import read_results, result_markdown
from nextquill_core.pipeline.run import Run
from tests.models import adapted_model
from tests.stages import make, ranks
from tests.world import small_config

pytestmark = pytest.mark.pipeline


def contents(run: Run) -> dict[str, str]:
    plan = run.plan
    steps = [plan.ingest, plan.model, plan.effects, plan.score, *plan.train.values(), *plan.evaluation.steps]
    return {step.name: run.artifact(step).manifest.content for step in steps if step}


def read(run: Run, step: Any, pattern: str) -> Any:
    return pq.read_table(sorted(run.artifact(step).folder.glob(pattern)))


def test_tables_have_the_promised_columns(whole: Run) -> None:
    plan = whole.plan
    for step, pattern, schema in (
        (plan.ingest, "sequences/*.parquet", schemas.SEQUENCES),
        (plan.ingest, "items/*.parquet", schemas.ITEMS),
        (plan.ingest, "examples/*.parquet", schemas.EXAMPLES),
        (plan.ingest, "quarantine/*.parquet", schemas.QUARANTINE),
        (plan.score, "effects/*.parquet", schemas.EFFECTS),
        (plan.score, "weights/*.parquet", schemas.WEIGHTS),
        (plan.evaluate, "predictions/*.parquet", schemas.PREDICTIONS),
        (plan.evaluate, "metrics.parquet", schemas.METRICS),
    ):
        assert read(whole, step, pattern).schema.equals(schema), pattern


def test_every_example_is_scored_weighted_and_has_predictions(whole: Run) -> None:
    examples = read(whole, whole.plan.ingest, "examples/*.parquet").to_pylist()
    ids = [row["example_id"] for row in examples]
    effects = read(whole, whole.plan.score, "effects/*.parquet").to_pylist()
    weights = read(whole, whole.plan.score, "weights/*.parquet").to_pylist()
    assert [row["example_id"] for row in effects] == [row["example_id"] for row in weights] == ids
    for effect, weight in zip(effects, weights, strict=True):
        assert len(effect["target_ids"]) == len(effect["effect"]) == len(weight["weight"])
        assert {round(value, 6) for value in weight["weight"]} <= {0.9, 0.1}
    predictions = read(whole, whole.plan.evaluate, "predictions/*.parquet").to_pylist()
    test = {row["example_id"] for row in examples if row["split"] == "test"}
    for method in ("qwen", "contextsft", "nextquill"):
        for decoding in ("paper", "sane"):
            chosen = [row for row in predictions if (row["method"], row["decoding"]) == (method, decoding)]
            assert {row["example_id"] for row in chosen} == test
            assert len(chosen) == len(test)


def test_metrics_cover_methods_presets_and_measures(whole: Run) -> None:
    folder = whole.artifact(whole.plan.evaluate).folder
    document = json.loads((folder / "metrics.json").read_text())
    names = {(row["method"], row["decoding"], row["metric"]) for row in document["rows"]}
    expected = {"rouge1", "rougeL", "meteor", "bleu", "length_ratio", "log_likelihood"}
    expected |= {"history_gain", "rouge1_cut", "rougeL_cut", "meteor_cut"}  # without a control, no personal gain
    on_preference_tokens = {"preference_log_likelihood", "preference_history_gain"}
    assert {metric for *_, metric in names} - on_preference_tokens == expected
    assert {method for method, _, metric in names if metric == "history_gain"} == {"contextsft", "nextquill"}
    assert {name[:2] for name in names} == {
        (name, mode) for name in ("qwen", "contextsft", "nextquill") for mode in ("paper", "sane")
    }
    rounding = 1e-9  # the interval of a single user has no width, and its ends have ten digits
    assert all(row["ci_low"] - rounding <= row["value"] <= row["ci_high"] + rounding for row in document["rows"])
    assert document["settings"]["rouge"]["ignored_letters"]["Small"] < 0.005
    (caution,) = document["cautions"]
    assert caution.startswith(
        "Preference log-likelihood and gains: measured on tokens that the effects of history under the init"
    )
    results = read_results(whole.artifact(whole.plan.evaluate))
    assert results.cautions == [caution]
    assert 1 <= len(results.verdict) <= 3
    assert "For these 20 users" in results.verdict[0]
    short = result_markdown(results, "report.html")
    assert caution in short
    assert short.index(results.verdict[0]) < short.index("sane decoding, n =") < short.index("paper decoding, n =")
    assert short.index("gain by history in nats a token") < short.index("paper decoding, n =")
    scored = read(whole, whole.plan.evaluate, "examples.parquet").to_pylist()
    assert all(row["rouge1_unicode"] == row["rouge1"] for row in scored if row["rouge1"] == 1)
    assert None not in {row["rougeL_unicode"] for row in scored}
    page = (folder / "report.html").read_text()
    assert "nextquill" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.index(html.escape(results.verdict[0])) < page.index("nextquill minus each reference, sane decoding")
    assert "Against the exact effects" in page, "this world has a ground truth"
    drawn = {path.stem for path in (folder / "figures").glob("*.png")}
    assert drawn >= {"differences-sane", "differences-paper", "history", "effects", "training", "exact-effects"}
    assert drawn == {path.stem for path in (folder / "figures").glob("*.parquet")}
    assert (folder / "figures" / "effects.png").read_bytes().startswith(b"\x89PNG")


def test_without_decoding_presets_only_likelihoods_are_measured(whole: Run, small_world: Path) -> None:
    settings = {"decoding": [], "control": "likelihood", "methods": ["contextsft", "nextquill"]}
    run = Run(small_config(small_world, whole.store.root, evaluate=settings))
    assert {step.kind for step in run.plan.evaluation.steps} == {"likelihood"}
    make(run, run.plan.evaluate)
    results = read_results(run.artifact(run.plan.evaluate))
    assert {row["decoding"] for row in results.rows} == {"no"}
    assert {row["metric"] for row in results.rows} >= {"log_likelihood"}
    with_texts = read_results(whole.artifact(whole.plan.evaluate)).rows
    of = {(row["method"], row["value"]) for row in results.rows if row["metric"] == "log_likelihood"}
    assert of < {(row["method"], row["value"]) for row in with_texts if row["metric"] == "log_likelihood"}
    assert "no decoding, n = 20" in result_markdown(results, "report.html")
    controlled = read(run, run.plan.evaluate, "slices.parquet").to_pylist()
    assert {row["method"] for row in controlled if row["slice"] == "control"} == {"contextsft", "nextquill"}
    page = (run.artifact(run.plan.evaluate).folder / "report.html").read_text()
    assert "What the methods wrote" not in page
    assert "Likelihood of the true reviews" in page


def test_the_control_by_likelihoods_generates_no_texts(whole: Run, small_world: Path) -> None:
    settings = {"control": "likelihood", "methods": ["nextquill"], "decoding": ["paper"]}
    run = Run(small_config(small_world, whole.store.root, evaluate=settings))
    assert run.plan.evaluation.controls == {}
    assert list(run.plan.evaluation.control_likelihoods) == ["nextquill"]
    make(run, run.plan.evaluate)
    rows = [row for row in read(run, run.plan.evaluate, "slices.parquet").to_pylist() if row["slice"] == "control"]
    differences = {row["metric"]: row["value"] for row in rows if row["bucket"] == "difference"}
    assert "log_likelihood" in differences
    assert "rouge1" not in differences


def test_the_adapter_opens_with_plain_peft_and_holds_no_pickle(whole: Run) -> None:
    folder = whole.artifact(whole.plan.train["nextquill"]).folder
    model = adapted_model(whole.model.name_or_path, folder / "adapter")
    trained = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert trained
    assert all(bool(parameter.abs().sum() > 0) for parameter in trained), "every LoRA matrix has moved"
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {
        ".json",
        ".jsonl",
        ".log",
        ".md",
        ".safetensors",
    }
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert (folder / "checkpoints").is_dir()


def test_changed_weights_never_score_again(whole: Run, small_world: Path) -> None:
    changed = Run(small_config(small_world, whole.store.root, weights={"delta": 0.0, "high": 0.7}))
    assert changed.make(changed.plan.effects).reused
    outcome = changed.make(changed.plan.score)
    assert not outcome.reused
    assert outcome.why == "weights.delta 0.05 → 0.0; weights.high 0.9 → 0.7"
    derived = read(changed, changed.plan.score, "weights/*.parquet")["weight"].combine_chunks().flatten().to_pylist()
    assert {round(value, 6) for value in derived} == {0.7, 0.1}


def test_a_second_run_reuses_everything(whole: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.store.root.rglob("manifest.json")}
    again = Run(whole.config)
    make(again, again.plan.evaluate)
    assert {path: path.stat().st_mtime_ns for path in whole.store.root.rglob("manifest.json")} == before


class Killed(BaseException):
    """Stands for the moment at which a process dies: nothing but `finally` runs after it."""


def dies_after(calls: int) -> Callable[..., None]:
    left = calls

    def progress(done: float, total: float, note: str = "", *, phase: str = "") -> None:
        nonlocal left
        left -= not phase  # what is loaded is no answer
        if left < 0:
            raise Killed

    return progress


def test_interrupted_equals_uninterrupted(small_world: Path, tmp_path: Path, monkeypatch: Any) -> None:
    order = score.score_order
    small = {"shard_examples": 16}  # several shards, so that there is a middle
    monkeypatch.setattr(score, "score_order", lambda *given: order(*given).model_copy(update=small))
    steady, broken = (Run(small_config(small_world, tmp_path / name)) for name in ("steady", "broken"))
    make(broken, broken.plan.model)
    make(steady, steady.plan.effects)
    for calls in (0, 24, 24):  # one an example, 16 of them a shard
        with pytest.raises(Killed):
            broken.make(broken.plan.effects, progress=dies_after(calls))
    finished = list((broken.store.root / "effects").glob(".staging-*/effects/*.parquet"))
    assert 0 < len(finished) < len(steady.artifact(steady.plan.effects).shards("effects/"))
    make(broken, broken.plan.score)
    make(steady, steady.plan.score)
    for step in (steady.plan.effects, steady.plan.score):
        assert steady.artifact(step).manifest.content == broken.artifact(step).manifest.content


@pytest.mark.ranks
@pytest.mark.slow
def test_a_training_killed_in_the_middle_resumes_to_the_same_bytes(
    prepared_store: Path, small_world: Path, tmp_path: Path
) -> None:
    from tests.tasks.processes import kill_in_the_middle

    run, steady = (
        Run(small_config(small_world, shutil.copytree(prepared_store, tmp_path / name))) for name in ("run", "steady")
    )
    make(steady, steady.plan.train["nextquill"], launch=ranks(2))
    staging = run.store.root / "train" / f".staging-{run.plan.train['nextquill'].fingerprint}"
    kill_in_the_middle(run.config, "nextquill", until=lambda: any((staging / "checkpoints").glob("step-*")))
    resumed_from = sorted(path.name for path in (staging / "checkpoints").glob("step-*"))
    assert resumed_from
    make(run, run.plan.train["nextquill"], launch=ranks(2))
    ours, theirs = (r.artifact(r.plan.train["nextquill"]) for r in (run, steady))
    assert ours.manifest.shards != (), "the adapter was committed"
    name = "adapter/adapter_model.safetensors"
    assert (ours.folder / name).read_bytes() == (theirs.folder / name).read_bytes()
    curves = [
        [json.loads(line)["loss"] for line in (artifact.folder / "metrics.jsonl").read_text().splitlines()]
        for artifact in (ours, theirs)
    ]
    assert curves[0] == curves[1]


def test_answers_of_a_killed_run_are_kept_and_change_no_byte(whole: Run, small_world: Path) -> None:
    config = small_config(small_world, whole.store.root, evaluate={"paper_max_new_tokens": 9})
    run = Run(config)
    step = run.plan.evaluation.predictions["nextquill", "paper"].step
    with pytest.raises(Killed):
        run.make(step, progress=dies_after(7))
    journal = next((run.store.root / "predictions").glob(f".staging-{step.fingerprint}/**/answers-*.jsonl"))
    kept = journal.read_text().splitlines()
    assert len(kept) >= 7
    resumed = run.make(step).artifact
    assert resumed.manifest.stats["usage"]["answers"] == resumed.manifest.stats["examples"] - len(kept)
    assert run.make(step, force=True).artifact.manifest.content == resumed.manifest.content

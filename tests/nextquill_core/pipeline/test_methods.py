"""Every method of the table for real on a small world: its prompts, its model, and what is chosen on val."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from nextquill_core.folds import fold_of
from nextquill_core.methods.registry import METHODS
from nextquill_core.pipeline.evaluation_plan import OWN, SANE, STEERING, STRANGER
from nextquill_core.pipeline.methods import method_encoder, shown_examples, split_examples
from nextquill_core.pipeline.predict import choice, chosen
from nextquill_core.pipeline.run import Run
from nextquill_core.prompts import HISTORY_HEADING, SUMMARY_HEADING, build_prompt
from nextquill_core.schemas import Example
from tests.stages import make, ranks
from tests.world import small_config

pytestmark = pytest.mark.ranks

UNTRAINED = ("qwen", "contriever", "bm25", "latestk", "llm-trsr", "cos")
TRAINED = ("oppu", "perce")


@pytest.fixture(scope="module")
def whole(small_world: Path, prepared_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    store = shutil.copytree(prepared_store, tmp_path_factory.mktemp("methods") / "store")
    evaluation = {
        "methods": [*UNTRAINED, *TRAINED],
        "control": "stranger",
        "retrieval": {"encoder": "base"},
        "summaries": {"newest": 1, "block": 2, "max_tokens": 6},
    }
    changes: dict[str, Any] = {"evaluate": evaluation, "train": {"method": "perce"}}
    run = Run(small_config(small_world, store, **changes))
    make(run, run.plan.evaluate, launch=ranks(1))
    return run


def prompt(run: Run, name: str, example: Example) -> str:
    encoder = method_encoder(run, METHODS[name])
    text: str = encoder.tokenizer.decode(encoder.encode([example])[0].factual)
    return text


def texts(run: Run, name: str, decoding: str) -> dict[str, str]:
    folder = run.artifact(run.plan.evaluate).folder / "predictions"
    rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return {row["example_id"]: row["text"] for row in rows if (row["method"], row["decoding"]) == (name, decoding)}


def test_each_method_generates_for_every_example_under_both_presets(whole: Run) -> None:
    examples = split_examples(whole, "test")
    for name in (*UNTRAINED, *TRAINED):
        for decoding in ("paper", "sane"):
            assert (
                list(texts(whole, name, decoding)) == [example.example_id for example in examples]
                or METHODS[name].personal
            )
            assert set(texts(whole, name, decoding)) == {example.example_id for example in examples}


def test_what_each_method_shows(whole: Run) -> None:
    """The prompts written out by hand, from the raw histories."""
    example = next(one for one in split_examples(whole, "test") if len(one.history) > 4)
    target = example.target
    shown = {
        name: next(
            one for one in shown_examples(whole, METHODS[name], "test", OWN) if one.example_id == example.example_id
        )
        for name in (*UNTRAINED, "oppu")
    }
    for name in ("qwen", "oppu"):
        assert prompt(whole, name, shown[name]) == build_prompt(target.item, target.rating, target.title, ())
    newest = build_prompt(target.item, target.rating, target.title, example.history[-2:])
    assert prompt(whole, "latestk", shown["latestk"]) == prompt(whole, "cos", shown["cos"])
    assert prompt(whole, "latestk", shown["latestk"]) == newest
    for name in ("contriever", "bm25"):
        past = shown[name].history
        assert len(past) == 2
        assert [review for review in example.history if review in past] == list(past), "still oldest first"
    summed = shown["llm-trsr"]
    assert summed.history == example.history[-1:]
    text = build_prompt(target.item, target.rating, target.title, example.history[-1:], summary=summed.summary)
    assert prompt(whole, "llm-trsr", summed) == text
    assert text.index(SUMMARY_HEADING) < text.index(HISTORY_HEADING)


def test_a_stranger_s_history_is_not_the_user_s_own(whole: Run) -> None:
    own = {one.example_id: one for one in shown_examples(whole, METHODS["latestk"], "test", OWN)}
    for one in shown_examples(whole, METHODS["latestk"], "test", STRANGER):
        assert one.history
        assert not set(one.history) & set(own[one.example_id].history)
    slices = pq.read_table(whole.artifact(whole.plan.evaluate).folder / "slices.parquet").to_pylist()
    compared = {row["method"] for row in slices if row["slice"] == "control"}
    assert compared == {name for name in (*UNTRAINED, *TRAINED) if METHODS[name].shown == "newest"}


def test_choices_are_made_on_val_alone(whole: Run) -> None:
    val = {example.example_id for example in split_examples(whole, "val")}
    for name, candidates in whole.plan.evaluation.candidates.items():
        values = chosen(whole, name)["values"]
        assert list(values) == list(candidates)
        assert choice(whole, name) == max(values, key=values.__getitem__)
        for candidate in candidates.values():
            folder = whole.artifact(candidate.step).folder / "predictions"
            ids = {name for path in folder.glob("*.parquet") for name in pq.read_table(path)["example_id"].to_pylist()}
            assert ids == val
    sane = whole.artifact(whole.plan.evaluation.predictions["latestk", "sane"].step).manifest.stats
    assert sane["sampler"] == choice(whole, SANE)
    steered = whole.artifact(whole.plan.evaluation.predictions["cos", "paper"].step).manifest.stats
    assert steered["strength"] == float(choice(whole, STEERING))


def test_personal_adapters_stand_on_models_that_have_not_seen_their_users(whole: Run) -> None:
    for fold in range(2):
        step = whole.plan.evaluation.tasks[f"task-{fold}"]
        assert step.settings["fold"] == {"leave_out": fold, "of": 2}
        assert step.settings["recipe"]["history"] is False
    assert whole.plan.evaluation.personal is not None
    folder = whole.artifact(whole.plan.evaluation.personal).folder / "personal"
    user_of = {example.example_id: example.user_id for example in split_examples(whole, "test")}
    found = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            keys = {key.split("/")[0] for key in file.keys()}  # noqa: SIM118 - a file is no mapping
        assert {fold_of(user_of[key], 2) for key in keys} == {int(path.name[0])}
        found |= keys
    assert found == set(user_of)


def test_perce_is_trained_on_weights_of_its_own_policy(whole: Run) -> None:
    assert whole.plan.weights["perce"] in whole.plan.train["perce"].inputs
    assert whole.plan.score not in whole.plan.train["perce"].inputs
    weights = pq.read_table(whole.artifact(whole.plan.weights["perce"]).folder / "weights")["weight"]
    values = weights.combine_chunks().flatten().to_pylist()
    assert 0.8 - 1e-6 <= min(values) < max(values) <= 5 + 1e-6


def test_the_untrained_methods_find_true_reviews_as_likely_as_the_effects_say(whole: Run) -> None:
    """Likelihoods of `qwen` and `latestk` are the two branches of the score stage."""
    effects = pq.read_table(whole.artifact(whole.plan.score).folder / "effects").to_pylist()
    branches = {row["example_id"]: row for row in effects}
    for name, branch in (("qwen", "logp_counterfactual"), ("latestk", "logp_factual")):
        folder = whole.artifact(whole.plan.evaluation.likelihoods[name]).folder / "likelihoods"
        for row in pq.read_table(folder).to_pylist():
            assert row["logp"] == pytest.approx(branches[row["example_id"]][branch], abs=1e-5)


def test_every_number_is_there_with_its_interval_test_and_cost(whole: Run) -> None:
    folder = whole.artifact(whole.plan.evaluate).folder
    document = json.loads((folder / "metrics.json").read_text())
    assert all(row["ci_low"] <= row["value"] <= row["ci_high"] for row in document["rows"])
    methods = len(UNTRAINED) + len(TRAINED)
    pairs = {(row["method"], row["reference"]) for row in document["comparisons"]}
    assert len(pairs) == methods * (methods - 1) / 2
    assert all(row["p_adjusted"] >= row["p_value"] for row in document["comparisons"])
    assert set(document["chosen_on_val"]) == {"sane", "steering"}
    costs = json.loads((folder / "costs.json").read_text())
    assert len(costs) == methods * 2
    assert all(row["tokens_per_second"] > 0 and row["first_token_ms"] > 0 for row in costs)
    scores = pq.read_table(folder / "examples.parquet")
    assert scores.num_rows == methods * 2 * len(split_examples(whole, "test"))
    assert "stranger" in (folder / "report.html").read_text()

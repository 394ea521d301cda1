"""Every method of the table for real on a small world: its prompts, its model, and what is chosen on val."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open

from nextquill_core.causal.shard_queue import split_into_shards
from nextquill_core.config import EvaluateConfig
from nextquill_core.errors import UserError
from nextquill_core.folds import fold_of
from nextquill_core.generation.decoding import GREEDY
from nextquill_core.methods.registry import METHODS
from nextquill_core.pipeline import methods as pipeline_methods
from nextquill_core.pipeline import predict
from nextquill_core.pipeline.evaluation_plan import NONE, OWN, SANE, STRANGER, steering_choice
from nextquill_core.pipeline.methods import (
    method_encoder,
    missing_shards,
    server_engine,
    shown_examples,
    split_examples,
)
from nextquill_core.pipeline.predict import choice, chosen, chosen_strength
from nextquill_core.pipeline.run import Run
from nextquill_core.prompts import REVIEW, build_prompt
from nextquill_core.schemas import Example, column_by_example
from nextquill_core.tokens import PairEncoder, TokenPair
from tests.models import adapted_model, oracle
from tests.stages import make
from tests.world import small_config

pytestmark = pytest.mark.pipeline

UNTRAINED = ("qwen", "contriever", "bm25", "latestk", "llm-trsr", "cos")
TRAINED = ("oppu", "cope", "perce", "nextquill-steered")
DELTA = 0.002  # the small model's effects are small


@pytest.fixture(scope="module")
def whole(small_world: Path, prepared_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    store = shutil.copytree(prepared_store, tmp_path_factory.mktemp("methods") / "store")
    evaluation = {
        "methods": [*UNTRAINED, *TRAINED],
        "control": "stranger",
        "preference_tokens": ["initial", "crossfit", "exact"],
        "retrieval": {"encoder": "base"},
        "summaries": {"newest": 1, "block": 2, "max_tokens": 6},
    }
    changes: dict[str, Any] = {"evaluate": evaluation, "train": {"method": "perce"}, "weights": {"delta": DELTA}}
    run = Run(small_config(small_world, store, **changes))
    make(run, run.plan.evaluate)
    return run


def prompt(run: Run, name: str, example: Example) -> str:
    encoder = method_encoder(run, METHODS[name])
    text: str = encoder.tokenizer.decode(encoder.encode([example])[0].factual)
    return text


def texts(run: Run, name: str, decoding: str) -> dict[str, str]:
    folder = run.artifact(run.plan.evaluate).folder / "predictions"
    rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return {row["example_id"]: row["text"] for row in rows if (row["method"], row["decoding"]) == (name, decoding)}


def test_an_interrupted_generation_counts_all_prompts_that_were_cut(
    small_world: Path, prepared_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every target counts as cut. The engine of the second shard fails, and the step is resumed."""

    def cutting(*of: Any) -> PairEncoder:
        encoder = method_encoder(*of)
        encode = encoder.encode

        def counted(examples: Sequence[Example]) -> list[TokenPair]:
            encoder.truncation["targets_cut"] += len(examples)
            return encode(examples)

        monkeypatch.setattr(encoder, "encode", counted)
        return encoder

    store = shutil.copytree(prepared_store, tmp_path / "store")
    run = Run(small_config(small_world, store, evaluate={"methods": ["latestk"], "decoding": ["paper"]}))
    step = run.plan.evaluation.predictions["latestk", "paper"].step
    monkeypatch.setattr(pipeline_methods, "split_into_shards", lambda examples: split_into_shards(examples, 4))
    monkeypatch.setattr(predict, "method_encoder", cutting)
    engines = iter([predict.local_engine])
    with monkeypatch.context() as broken, pytest.raises(StopIteration):
        broken.setattr(predict, "local_engine", lambda *options: next(engines)(*options))
        run.make(step)
    stats = run.make(step).artifact.manifest.stats
    assert stats["truncation"] == {"targets_cut": stats["examples"]}


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
        for name in (*UNTRAINED, "oppu", "cope")
    }
    for name in ("qwen", "oppu", "cope"):
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
    assert text.index(REVIEW.summary_heading) < text.index(REVIEW.history_heading)


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
    for method in ("cos", "nextquill-steered"):
        for preset in ("paper", "sane"):
            steered = whole.artifact(whole.plan.evaluation.predictions[method, preset].step).manifest.stats
            assert steered["strength"] == float(choice(whole, steering_choice(method)))


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


def branch_logits(model: Any, prompt: list[int], target: list[int]) -> torch.Tensor:
    """Log-probabilities of the whole vocabulary at each answer token, from one plain forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(1)


def of_tokens(logps: torch.Tensor, target: list[int]) -> list[float]:
    found: list[float] = logps.log_softmax(1).gather(1, torch.tensor(target)[:, None])[:, 0].tolist()
    return found


def likelihoods(run: Run, method: str) -> dict[str, list[float]]:
    rows = pq.read_table(run.artifact(run.plan.evaluation.likelihoods[method]).folder / "likelihoods").to_pylist()
    return {row["example_id"]: row["logp"] for row in rows}


def test_likelihoods_of_a_steered_adapter_are_those_of_the_distribution_that_is_sampled(whole: Run) -> None:
    adapter = whole.artifact(whole.plan.train["nextquill"]).folder / "adapter"
    model = adapted_model(whole.model.name_or_path, adapter)
    strength = chosen_strength(whole, METHODS["nextquill-steered"])
    stored = likelihoods(whole, "nextquill-steered")
    for pair in method_encoder(whole, METHODS["nextquill-steered"]).encode(split_examples(whole, "test")[:3]):
        assert pair.has_history
        ours, theirs = (branch_logits(model, prompt, pair.target) for prompt in (pair.factual, pair.counterfactual))
        expected = of_tokens(ours + strength * (ours - theirs), pair.target)
        assert stored[pair.example_id] == pytest.approx(expected, abs=1e-4)


def test_likelihood_chooses_the_strength_that_makes_val_likeliest(whole: Run) -> None:
    settings = whole.config.evaluate.model_copy(update={"choose_strength_by": "likelihood"})
    run = Run(whole.config.model_copy(update={"evaluate": settings}))
    name = steering_choice("nextquill-steered")
    make(run, run.plan.evaluation.choices[name])
    adapter = run.artifact(run.plan.train["nextquill"]).folder / "adapter"
    model = adapted_model(run.model.name_or_path, adapter)
    sums, tokens = dict.fromkeys((0.0, 0.5, 2.0), 0.0), 0
    for pair in method_encoder(run, METHODS["nextquill-steered"]).encode(split_examples(run, "val")):
        ours, theirs = (branch_logits(model, prompt, pair.target) for prompt in (pair.factual, pair.counterfactual))
        tokens += len(pair.target)
        for strength in sums:
            sums[strength] += sum(of_tokens(ours + strength * (ours - theirs), pair.target))
    found = chosen(run, name)
    assert {key: found["values"][f"{key:g}"] for key in sums} == pytest.approx(
        {key: value / tokens for key, value in sums.items()}, abs=1e-5
    )
    assert found["by"] == "log_likelihood"
    assert found["chosen"] == max(found["values"], key=found["values"].__getitem__)
    assert chosen_strength(run, METHODS["nextquill-steered"]) == float(found["chosen"])


def test_cope_contrasts_each_user_s_adapter_with_that_of_other_users(whole: Run) -> None:
    examples = {example.example_id: example for example in split_examples(whole, "test")}
    shards = missing_shards(whole, METHODS["cope"], list(examples.values()), lambda name: True)
    encoder, stored = method_encoder(whole, METHODS["cope"]), likelihoods(whole, "cope")
    for shard in shards:
        for pair in encoder.encode(shard.examples[:2]):
            shard.model.set_adapter(shard.adapters[pair.example_id])
            user = branch_logits(shard.model, pair.factual, pair.target)
            with shard.model.disable_adapter():
                task = branch_logits(shard.model, pair.factual, pair.target)
            expected = of_tokens(user - 0.1 * task, pair.target)
            assert stored[pair.example_id] == pytest.approx(expected, abs=1e-4)
            assert expected != pytest.approx(of_tokens(user, pair.target), abs=1e-4)
    ours, theirs = (
        whole.artifact(whole.plan.evaluation.predictions[name, "paper"].step).manifest.stats["usage"]["prompt_tokens"]
        for name in ("cope", "oppu")
    )
    assert ours == 2 * theirs, "both branches read the same prompts"


@pytest.mark.parametrize("decoding", ["paper", "sane"])
def test_a_steered_adapter_at_strength_0_is_the_adapter_token_for_token(whole: Run, decoding: str) -> None:
    """On val, where all strengths are tried, against the unsteered method measured there."""
    evaluate = {"methods": ["nextquill", "nextquill-steered"], "split": "val", "decoding": [decoding]}
    settings = EvaluateConfig.model_validate(whole.config.evaluate.model_dump() | evaluate)
    run = Run(whole.config.model_copy(update={"evaluate": settings}))
    candidates = run.plan.evaluation.candidates[steering_choice("nextquill-steered")]
    plain, *tried = (run.plan.evaluation.predictions["nextquill", decoding], *candidates.values())
    make(run, plain.step, *(one.step for one in tried))
    columns = ["example_id", "text", "n_tokens", "finish_reason"]
    texts = [pq.read_table(run.artifact(one.step).folder / "predictions", columns=columns) for one in (plain, *tried)]
    assert texts[1].equals(texts[0])
    assert any(not table.equals(texts[0]) for table in texts[2:]), "other strengths change some text"


@pytest.mark.parametrize("name", ["cos", "oppu", "cope", "nextquill-steered", "stylevector", "dep"])
def test_no_server_decodes_a_method_of_two_branches_or_parts_for_each_user(whole: Run, name: str) -> None:
    encoder = method_encoder(whole, METHODS[name])
    with pytest.raises(UserError, match=rf"evaluate\.engine: {name} decodes as no server does; set it to transformers"):
        server_engine(whole, METHODS[name], encoder, GREEDY, 8)


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


def gain_rows(run: Run) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of log-likelihoods and gains, by method and metric; they are the same under both presets."""
    document = json.loads((run.artifact(run.plan.evaluate).folder / "metrics.json").read_text())
    rows = [row for row in document["rows"] if "gain" in row["metric"] or "likelihood" in row["metric"]]
    by_preset = [
        {(row["method"], row["metric"]): {**row, "decoding": ""} for row in rows if row["decoding"] == decoding}
        for decoding in ("paper", "sane")
    ]
    assert by_preset[0] == by_preset[1]
    return by_preset[0]


def preferred_mean(logps: Mapping[str, Sequence[float]], effects: Mapping[str, Sequence[float]]) -> float:
    """The mean of the tokens with an effect above δ."""
    kept = [
        logp
        for example, tokens in logps.items()
        for logp, effect in zip(tokens, effects[example], strict=True)
        if effect > DELTA
    ]
    return sum(kept) / len(kept)


def test_gains_are_those_of_plain_forwards(whole: Run) -> None:
    """`perce` with own, a stranger's and no history, one example and one forward at a time, without our scorer."""
    model = adapted_model(whole.model.name_or_path, whole.artifact(whole.plan.train["perce"]).folder / "adapter")
    encoder = method_encoder(whole, METHODS["perce"])
    logps: dict[str, dict[str, list[float]]] = {OWN: {}, STRANGER: {}, NONE: {}}
    for history in (OWN, STRANGER):
        for example in shown_examples(whole, METHODS["perce"], "test", history):
            (pair,) = encoder.encode([example])
            logps[history][example.example_id] = oracle(model, pair.factual, pair.target).tolist()
            if history == OWN:
                logps[NONE][example.example_id] = oracle(model, pair.counterfactual, pair.target).tolist()
    crossfit = whole.plan.evaluation.crossfit
    assert crossfit is not None
    sets = [("", "", {example: [1.0] * len(tokens) for example, tokens in logps[OWN].items()})]
    for ending, step in (("", whole.plan.effects), ("_crossfit", crossfit)):
        sets.append(("preference_", ending, column_by_example(whole.artifact(step).folder / "effects", "effect")))
    found = gain_rows(whole)
    for start, ending, effects in sets:
        own = preferred_mean(logps[OWN], effects)
        for gain, other in (("personal_gain", STRANGER), ("history_gain", NONE)):
            row = found["perce", f"{start}{gain}{ending}"]
            assert row["value"] == pytest.approx(own - preferred_mean(logps[other], effects), abs=2e-5)
            assert row["ci_low"] <= row["value"] <= row["ci_high"]


def test_gains_exist_where_their_histories_were_measured(whole: Run) -> None:
    found = gain_rows(whole)
    shows = {name for name in (*UNTRAINED, *TRAINED) if METHODS[name].history}
    assert {method for method, metric in found if metric == "history_gain"} == shows
    newest = {name for name in shows if METHODS[name].shown == "newest"}
    assert {method for method, metric in found if metric == "personal_gain"} == newest
    assert found["latestk", "history_gain"]["value"] == (
        found["latestk", "log_likelihood"]["value"] - found["qwen", "log_likelihood"]["value"]
    )
    stranger = pq.read_table(whole.artifact(whole.plan.evaluate).folder / "slices.parquet").to_pylist()
    (other,) = [
        row["value"]
        for row in stranger
        if (row["bucket"], row["method"], row["metric"]) == ("a stranger's history", "perce", "log_likelihood")
    ]
    own = found["perce", "log_likelihood"]["value"]
    assert found["perce", "personal_gain"]["value"] == own - other
    page = (whole.artifact(whole.plan.evaluate).folder / "report.html").read_text()
    assert page.index('id="gain"') < page.index('id="results"') < page.index('id="length"')


def test_exact_preference_tokens_are_the_words_that_taste_drew(whole: Run, small_world: Path) -> None:
    """Counted from the raw truth: the tokens of words with an effect above δ in the texts that were not cut."""
    scored = pq.read_table(whole.artifact(whole.plan.evaluate).folder / "examples.parquet").to_pylist()
    counted = {row["example_id"]: row["preference_tokens_exact"] for row in scored if row["method"] == "qwen"}
    truth = [json.loads(line) for line in (small_world / "truth" / "tokens.jsonl").read_text().splitlines()]
    spans = {(row["user_id"], row["timestamp"]): row["spans"] for row in truth}
    tokenizer = method_encoder(whole, METHODS["qwen"]).tokenizer
    checked = 0
    for example in split_examples(whole, "test"):
        text, tokens = example.target.text, 0
        encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
        for span in spans[example.user_id, example.target.timestamp_ms]:
            if span["effect"] > DELTA:
                kept = encoded[: whole.config.prompt.max_target_tokens]
                tokens += sum(start < span["end"] and span["start"] < end for start, end in kept)
        assert counted[example.example_id] == tokens
        checked += tokens
    assert checked > 0
    assert ("qwen", "preference_log_likelihood_exact") in gain_rows(whole)


def test_every_number_is_there_with_its_interval_test_and_cost(whole: Run) -> None:
    folder = whole.artifact(whole.plan.evaluate).folder
    document = json.loads((folder / "metrics.json").read_text())
    assert all(row["ci_low"] <= row["value"] <= row["ci_high"] for row in document["rows"])
    methods = len(UNTRAINED) + len(TRAINED)
    pairs = {(row["method"], row["reference"]) for row in document["comparisons"]}
    assert len(pairs) == methods * (methods - 1) / 2
    assert all(row["p_adjusted"] >= row["p_value"] for row in document["comparisons"])
    assert set(document["chosen_on_val"]) == {"sane", "steering", "steering-nextquill-steered"}
    assert document["settings"]["contriever"] == {
        "encoder": "base",
        "max_tokens": 512,
        "vectors": "mean of the last hidden states",
        "similarity": "inner product",
    }
    costs = json.loads((folder / "costs.json").read_text())
    assert len(costs) == methods * 2
    assert all(row["tokens_per_second"] > 0 and row["first_token_ms"] > 0 for row in costs)
    steered = next(row for row in costs if row["method"] == "nextquill-steered")
    assert steered["training_seconds"] > 0, "of the adapter that it uses"
    assert set(steered["preparation"]) == {"effects of history"}
    contrasted = next(row for row in costs if row["method"] == "cope")
    assert set(contrasted["preparation"]) == {"adapter task-0", "adapter task-1", "personal adapters"}
    scores = pq.read_table(folder / "examples.parquet")
    assert scores.num_rows == methods * 2 * len(split_examples(whole, "test"))
    assert "stranger" in (folder / "report.html").read_text()

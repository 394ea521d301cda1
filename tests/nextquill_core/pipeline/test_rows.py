"""Rows of other papers for real on a small world: profiles, style vectors and soft tokens, each beside a plain loop."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from nextquill_core.generation.decoding import GREEDY
from nextquill_core.generation.engines import Request
from nextquill_core.ingest.peers import Peers
from nextquill_core.methods.differences import build_difference_prompt, build_profile_prompt, representatives
from nextquill_core.methods.registry import METHODS
from nextquill_core.methods.retrieval import bm25_scores, with_best
from nextquill_core.methods.soft_tokens import soft_tokens_of
from nextquill_core.methods.summaries import build_summary_prompt
from nextquill_core.model.checkpoint import Checkpoint
from nextquill_core.pipeline import soft_tokens
from nextquill_core.pipeline.evaluation_plan import OWN, STRANGER, steering_choice
from nextquill_core.pipeline.methods import (
    base_model,
    local_engine,
    method_encoder,
    shown_examples,
    split_examples,
)
from nextquill_core.pipeline.predict import chosen, chosen_style
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.soft_tokens import WEIGHTS, newest_train_examples
from nextquill_core.schemas import Example, column_by_example
from tests.stages import make
from tests.world import small_config

pytestmark = pytest.mark.pipeline

ROWS = ("pag", "dpl", "stylevector", "dep")


EVALUATION = {
    "methods": ["qwen", "latestk", *ROWS],
    "decoding": ["sane"],
    "control": "stranger",
    "peers": {"encoder": "base"},
    "profiles": {"reviews": 3, "max_tokens": 6, "compared": 2, "others": 2, "difference_tokens": 5},
    "style": {"newest": 3, "max_tokens": 5},
    "dep": {"epochs": 2, "learning_rate": 1e-3},
}


def opened(small_world: Path, store: Path) -> Run:
    return Run(small_config(small_world, store, evaluate=EVALUATION, train={"method": "contextsft"}))


@pytest.fixture(scope="module")
def whole(small_world: Path, prepared_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    store = shutil.copytree(prepared_store, tmp_path_factory.mktemp("rows") / "store")
    run = opened(small_world, store)
    make(run, run.plan.evaluate)
    return run


def made(run: Run, step: Any) -> Path:
    folder: Path = run.artifact(step).folder
    return folder


def answer(run: Run, prompt: str, limit: int) -> str | None:
    """What the base model writes for a prompt by itself; None for a prompt whose texts would be cut."""
    encoder = method_encoder(run, METHODS["qwen"])
    engine = local_engine(run, base_model(run.model), encoder, GREEDY, limit)
    ids = encoder.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if len(ids) > run.config.prompt.max_prompt_tokens:
        return None
    return " ".join(engine.generate([Request("alone", ids)])[0].text.split())


def vector(run: Run, text: str) -> torch.Tensor:
    """The mean of the base model's final states of a text alone."""
    tokenizer = method_encoder(run, METHODS["qwen"]).tokenizer
    with torch.no_grad():
        states = base_model(run.model).get_decoder()(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0]
    mean: torch.Tensor = states.mean(dim=0)
    return mean


def logps(logits: torch.Tensor, target: list[int]) -> list[float]:
    found: list[float] = logits.double().log_softmax(-1).gather(1, torch.tensor(target)[:, None])[:, 0].tolist()
    return found


def test_every_row_has_texts_intervals_and_costs(whole: Run) -> None:
    folder = made(whole, whole.plan.evaluate)
    document = json.loads((folder / "metrics.json").read_text())
    assert {row["method"] for row in document["rows"]} == {"qwen", "latestk", *ROWS}
    gains = {row["method"] for row in document["rows"] if row["metric"] == "personal_gain"}
    assert gains == {"latestk", "dep"}, "soft tokens are made from the stranger's reviews too"
    assert "steering-stylevector" in document["chosen_on_val"]
    costs = {row["method"]: set(row["preparation"]) for row in json.loads((folder / "costs.json").read_text())}
    assert {name: costs[name] for name in ROWS} == {
        "pag": {"profiles"},
        "dpl": {"profiles"},
        "stylevector": {"style vectors"},
        "dep": {"vectors of reviews", "soft tokens"},
    }
    assert "depth and strength of the style vectors of stylevector" in (folder / "report.html").read_text()


def test_a_profile_is_what_the_model_writes_about_the_newest_reviews(whole: Run) -> None:
    step = whole.plan.evaluation.profiles["profile"]
    profiles = column_by_example(made(whole, step) / "profiles", "summary")
    shown = {one.example_id: one for one in shown_examples(whole, METHODS["pag"], "test", OWN)}
    for example in split_examples(whole, "test")[:3]:
        expected = answer(whole, build_summary_prompt("", example.history[-3:]), 6)
        assert profiles[example.example_id] == shown[example.example_id].summary == expected
        assert len(shown[example.example_id].history) == 2, "prompt.max_history of those nearest by BM25"


def test_differences_are_to_reviews_of_the_same_item_that_were_known_before(whole: Run) -> None:
    step = whole.plan.evaluation.profiles["differences"]
    folder = made(whole, step)
    profiles = column_by_example(folder / "profiles", "summary")
    rows = [
        row for path in sorted((folder / "differences").glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]
    peers = Peers(made(whole, whole.plan.ingest))
    assert rows, "the small world has items with several reviewers"
    examples = {example.example_id: example for example in split_examples(whole, "test")}
    checked = 0
    for name, example in examples.items():
        mine = [row for row in rows if row["example_id"] == name]
        assert len(mine) <= 2
        known_differences = []
        for row in mine:
            place = peers.history(example)[row["position"]]
            known = peers.users_before(example, place)
            vectors = np.array([vector(whole, peers.review(one).text).double().numpy() for one in (place, *known)])
            others = [peers.review(known[chosen]) for chosen in representatives(vectors[0], vectors[1:], 2)]
            assert row["others"] == len(others)
            expected = answer(whole, build_difference_prompt(peers.review(place), others), 5)
            assert expected in (row["text"], None)
            checked += expected is not None
            known_differences += [(peers.review(place), row["text"])] if row["text"] else []
        nearest = with_best(example, bm25_scores(example), 3).history
        expected = answer(whole, build_profile_prompt(known_differences, nearest), 6)
        assert expected in (profiles[name], None)
        checked += expected is not None
        if checked > 3:
            break
    assert checked, "some prompt fits whole"
    stats = whole.artifact(step).manifest.stats
    assert stats["differences"] == len(rows)
    assert stats["without_comparison"] == len(examples) - len({row["example_id"] for row in rows})


def test_a_style_vector_is_the_mean_difference_of_last_states(whole: Run) -> None:
    """The reviews and the stored style-free texts, one after the other, without our passes."""
    step = whole.plan.evaluation.style
    folder = made(whole, step)
    texts = {
        row["review_id"]: row["text"]
        for path in (folder / "neutral").glob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    }
    stored = {key: value for path in (folder / "vectors").glob("*") for key, value in load_file(path).items()}
    splits = {split: split_examples(whole, split) for split in ("val", "test")}
    assert stored.keys() == {example.example_id for examples in splits.values() for example in examples}
    model, encoder = base_model(whole.model), method_encoder(whole, METHODS["stylevector"])
    (val,) = [one for one in splits["val"] if one.user_id == splits["test"][0].user_id]
    order = list(dict.fromkeys([*val.history[-3:], *splits["test"][0].history[-3:]]))
    for example in (val, splits["test"][0]):
        total = torch.zeros(32)
        for review in example.history[-3:]:
            (pair,) = encoder.encode([Example("x", "u", "Small", "test", review, ())])
            neutral = encoder.tokenizer(texts[f"Small:{example.user_id}#{order.index(review)}"])["input_ids"]
            with torch.no_grad():
                mine, other = (
                    model(torch.tensor([pair.factual + ids]), output_hidden_states=True).hidden_states[1][0, -1]
                    for ids in (pair.target[:-1], neutral)
                )
            total += (mine - other) / 3
        torch.testing.assert_close(stored[example.example_id][0], total, atol=1e-5, rtol=1e-4)


def test_the_style_that_is_best_on_val_decodes_test(whole: Run) -> None:
    method = METHODS["stylevector"]
    values = chosen(whole, steering_choice("stylevector"))["values"]
    assert list(values) == [style.label for style in method.styles]
    style = chosen_style(whole, method)
    assert values[style.label] == max(values.values())
    made_with = whole.artifact(whole.plan.evaluation.predictions["stylevector", "sane"].step).manifest.stats
    assert made_with["style"] == {"depth": style.depth, "strength": style.strength}
    assert "stylevector" not in whole.plan.evaluation.control_likelihoods
    assert "stylevector" not in whole.plan.evaluation.bare_likelihoods


def test_the_vectors_of_dep_are_those_of_a_loop_over_users(whole: Run) -> None:
    folder = made(whole, whole.plan.ingest)
    peers = Peers(folder)

    def unit(text: str) -> torch.Tensor:
        return torch.nn.functional.normalize(vector(whole, text), dim=0)

    group = made(whole, whole.plan.evaluation.peers)
    stored = {key: value for path in (group / "own").glob("*") for key, value in load_file(path).items()}
    example = next(one for one in split_examples(whole, "test") if stored[one.example_id].shape[1])
    own: list[torch.Tensor] = []
    differences: list[Any] = []
    mean = torch.stack([unit(past.text) for past in example.history]).mean(dim=0)
    for place, past in reversed(list(zip(peers.history(example), example.history, strict=True))):
        others = peers.known_before(example, place)
        if not others or len(own) == 8:
            continue
        weights, gaps = [], []
        for other in others:
            profile = [unit(peers.review(one).text) for one in peers.profile_before(example, other)]
            weights.append(float((mean - torch.stack(profile).mean(dim=0)).norm()))
            gaps.append(unit(past.text) - unit(peers.review(other).text))
        shares = torch.softmax(torch.tensor(weights) / sum(weights), dim=0)
        own.append(unit(past.text))
        differences.append(sum(share * gap for share, gap in zip(shares, gaps, strict=True)))
    found = stored[example.example_id]
    torch.testing.assert_close(found[0], torch.stack(own), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[1], torch.stack(differences), atol=1e-5, rtol=1e-3)
    trained = {key for path in (group / "train").glob("*") for key in load_file(path)}
    newest = newest_train_examples(folder)
    assert trained == {one.example_id for one in newest}
    assert len({one.user_id for one in newest}) == len(newest)


def test_an_interrupted_training_of_soft_tokens_resumes(
    whole: Run, small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = whole.plan.evaluation.soft
    assert step
    trained = whole.artifact(step)
    store = shutil.copytree(trained.folder.parents[1], tmp_path / "store")
    shutil.rmtree(store / step.kind)
    run = opened(small_world, store)
    monkeypatch.setattr(soft_tokens, "Checkpoint", partial(Checkpoint, every_s=0.0))
    first = 16  # examples in the first step

    def interrupted(done: float, total: float, note: str = "", *, phase: str = "") -> None:
        if done > first:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.make(step, progress=interrupted)
    shown: list[float] = []
    outcome = run.make(step, progress=lambda done, total, note="", *, phase="": shown.append(done))
    assert min(done for done in shown if done) == first, "the first step is not trained again"
    again = outcome.artifact
    assert (again.manifest.content, again.manifest.stats) == (trained.manifest.content, trained.manifest.stats)
    assert {path.name for path in again.folder.iterdir()} <= {"soft", "manifest.json", ".shards"}


@pytest.mark.parametrize("history", [OWN, STRANGER])
def test_likelihoods_of_dep_are_those_of_plain_forwards(whole: Run, history: str) -> None:
    plan, model = whole.plan.evaluation, base_model(whole.model)
    group = made(whole, plan.peers)
    inputs = {key: value for path in (group / history).glob("*") for key, value in load_file(path).items()}
    soft = soft_tokens_of(load_file(made(whole, plan.soft) / WEIGHTS), "the test")
    step = plan.likelihoods["dep"] if history == OWN else plan.control_likelihoods["dep"]
    stored = column_by_example(made(whole, step) / "likelihoods", "logp")
    examples = shown_examples(whole, METHODS["dep"], "test", history)
    plain = column_by_example(made(whole, plan.likelihoods["latestk"]) / "likelihoods", "logp")
    for pair in method_encoder(whole, METHODS["dep"]).encode(examples[:4]):
        vectors = inputs[pair.example_id]
        with torch.no_grad():
            tokens = soft(vectors)[0] if vectors.shape[1] else torch.zeros(0, 32)
            embedded = model.get_input_embeddings()(torch.tensor(pair.factual + pair.target[:-1]))
            logits = model(inputs_embeds=torch.cat([tokens, embedded])[None]).logits[0, -len(pair.target) :]
        assert stored[pair.example_id] == pytest.approx(logps(logits, pair.target), abs=1e-4)
        if vectors.shape[1] and history == OWN:
            assert stored[pair.example_id] != pytest.approx(plain[pair.example_id], abs=1e-4)


def test_without_history_dep_is_the_base_model(whole: Run) -> None:
    plan = whole.plan.evaluation
    assert plan.bare_likelihoods["dep"].fingerprint == plan.likelihoods["qwen"].fingerprint

"""Tests for the sentences on what a run does otherwise than the paper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nextquill_core.analysis.paper_differences import setting_differences
from nextquill_core.config import Config, load_config
from nextquill_core.methods.registry import METHODS
from tests.conftest import REPO


def differences(changes: Mapping[str, Any] | None = None, **arguments: Any) -> str:
    """Of the default configuration with some values changed, by dotted key."""
    config = Config().model_dump(mode="json")
    for key, value in (changes or {}).items():
        *sections, last = key.split(".")
        section = config
        for name in sections:
            section = section[name]
        section[last] = value
    return "\n".join(setting_differences(config, **arguments))


PAPER = {"evaluate.decoding": ["paper"], "train.global_batch": 64}
ALL = ["contriever", "llm-trsr", "cos", "oppu", "nextquill"]


def test_the_papers_setting_differs_from_the_code_alone() -> None:
    """What the paper's text states is kept, so only differences of the official code, and our seed, are reported."""
    found = differences(PAPER)
    for absent in ("base model", "computes in", "Not among", "Data protocol", "Weights:", "Training:", "Prompts:"):
        assert absent not in found
    assert "Evaluation:" not in found
    for told in (
        "LoRA commented out",
        "being trained",
        "unweighted",
        "Σω",
        "every sample twice",
        "“None”",
        "cuts the end",
    ):
        assert told in found
    assert "official test-set builder leaves it inside" in found
    assert "seed 42" in found


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("model.name_or_path", "Qwen/Qwen2.5-7B", "The base model is Qwen/Qwen2.5-7B; the paper's is Qwen/Qwen2.5-3B."),
        ("model.name_or_path", "tiny", "small offline one"),
        ("model.dtype", "float32", "computes in float32; the paper's in bfloat16"),
        ("ingest.inputs", [{"category": "Mine"}], "Not among the paper's categories: Mine."),
        ("ingest.inputs", [{"category": "Books"}, {"category": "CDs_and_Vinyl"}], "all 2 categories together"),
        ("ingest.source", "lamp", "read from lamp"),
        ("ingest.protocol.min_user_reviews", 5, "Data protocol: min_user_reviews 5 (published: 18)."),
        ("ingest.clean.html", "strip", "Cleaning of texts: html strip (published: keep)."),
        ("ingest.protocol.name", "global-time", "name global-time (published: dpl)"),
        ("prompt.max_history", 4, "Prompts: max_history 4 (published: 8)."),
        ("weights.delta", 0.1, "Weights: delta 0.1 (published: 0.05)."),
        ("train.learning_rate", 1e-4, "The learning rate is 0.0001; the paper's is 5e-06."),
        ("train.learning_rate", 5e-6, "moves little at it"),
        ("train.epochs", 1, "Training: epochs 1 (published: 5)."),
        ("train.lora.dropout", 0.0, "lora.dropout 0 (published: 0.05)"),
        ("train.lora.r", 8, "LoRA (r 8, alpha 32, all-linear)"),
        ("train.global_batch", 16, "A step is over 16 examples"),
        ("train.alpha", 0.1, "α = 0.1; the paper has α in 0.01, 0.05, 0.1"),
        ("train.causal_loss.target", "effect", "L_p has the target effect"),
        ("train.causal_loss.counterfactual_grad", "stop", "does not learn from L_p"),
        ("train.causal_loss.weighted", False, "L_p is unweighted with α"),
        ("train.normalization", "weight", "divided by the step's Σω, as in MIRROR's"),
        ("train.weights_from", "live", "come from the model that is being trained, as in the official code"),
        ("evaluate.methods", ["nextquill-official"], "L_p unweighted, α = 0.1"),
        ("evaluate.methods", ["mce-dce"], "every token counts 1 in L_n, and L_p is weighted"),
        ("score.effect_source", "adapter", "adapters cross-fitted by user"),
        ("score.effect_source", "trained", "it has seen the examples that it scores"),
        ("ingest.inputs", [{"category": "topic_writing_user"}], "the fourth data set of the paper's second version"),
        ("prompt.template", "plain", "Prompts are plain text"),
        ("evaluate.paper_max_new_tokens", 512, "Evaluation: paper_max_new_tokens 512 (published: 2048)."),
        ("evaluate.split", "val", "split val (published: test)"),
        ("evaluate.decoding", ["sane"], "The preset 'paper' was not run"),
        ("seed", 7, "One run, seed 7"),
    ],
)
def test_each_setting_is_told_where_it_differs(key: str, value: Any, told: str) -> None:
    assert told in differences({**PAPER, key: value})


def test_topic_writing_has_another_source_and_protocol_than_the_others() -> None:
    topics = {"ingest.inputs": [{"category": "topic_writing_user"}], "ingest.source": "lamp"}
    found = differences({**PAPER, **topics, "ingest.protocol.min_user_reviews": 5})
    assert "Not among the paper's" not in found
    assert "Amazon Reviews" not in found
    assert "Data protocol" not in found


def test_what_does_not_apply_is_not_told() -> None:
    untrained = differences({"evaluate.methods": ["qwen", "latestk", "cos"]})
    for absent in ("LoRA", "learning rate", "L_p", "ω", "epoch", "“None”"):
        assert absent not in untrained
    plain = differences({"evaluate.methods": ["sft", "contextsft"]})
    assert "LoRA" in plain
    assert "L_p" not in plain
    assert "Preference weights" not in plain
    assert "chat markup" not in differences({}, template="chat")
    assert "Σω" not in differences({"train.normalization": "sample_weight"})
    assert "divided by its number of tokens, as in PerCE" in differences({"train.normalization": "sample_tokens"})


def test_baselines() -> None:
    found = differences({**PAPER, "evaluate.methods": ALL})
    assert "retrieves with" not in found
    assert "Personal adapters:" not in found
    assert "blocks of 4 reviews, beside the 2 newest" in found
    assert "chosen on val" in found
    assert "learn from one user's reviews each" in found
    other = {"evaluate.methods": ALL, "evaluate.retrieval.encoder": "base", "evaluate.personal.r": 4}
    assert "the base model's own hidden states; the paper's with facebook/contriever" in differences(other)
    assert "Personal adapters: r 4 (published: 8)." in differences(other)
    assert "one user's reviews" not in differences({"evaluate.methods": ["nextquill"]})
    contrasted = differences({"evaluate.methods": ["cope"], "evaluate.personal.r": 4})
    assert "Personal adapters: r 4 (published: 8)." in contrasted
    assert "weight 0.1, plausibility 0.1); their stage of DPO is left out" in contrasted
    steered = differences({"evaluate.methods": ["nextquill-steered"]})
    assert "nextquill-steered is not the paper's" in steered
    assert "decodes the adapter of contextsft" in differences({"evaluate.methods": ["contextsft-steered"]})
    assert "L_p is weighted by ω" in steered, "the adapter that it uses was trained"


def test_sizes() -> None:
    assert "Books has 216 test users; the paper's has 317." in differences(PAPER, users={"Books": 216})
    assert "test users" not in differences(PAPER, users={"Books": 317})


@pytest.mark.parametrize("path", sorted((REPO / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_that_comes_along_can_be_told(path: Path) -> None:
    found = setting_differences(load_config(path).model_dump(mode="json"))
    assert len(found) == len(set(found)) > 3
    assert all(sentence.endswith(".") for sentence in found)


@pytest.mark.parametrize(
    "name", [name for name, row in METHODS.built_in.items() if row.training or row.personal or row.adapter]
)
def test_every_method_that_trains_has_sentences_on_training(name: str) -> None:
    assert "Training is LoRA" in differences({"evaluate.methods": [name]})
    assert "Training is LoRA" not in differences({"evaluate.methods": ["qwen", "latestk"]})

"""The model card: front matter that parses, text that stays in its table, the same bytes for the same facts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from nextquill_core.training.model_card import Card

CARD = Card(
    method="nextquill",
    summary="preference-weighted L_n + α·L_p",
    base="Qwen/Qwen2.5-3B",
    base_id="Qwen/Qwen2.5-3B",
    revision="main",
    rank=12,
    history=True,
    template="plain",
    fingerprint="0123456789abcdef",
    data=[("categories", "Books, A|B\nC"), ("users", "317")],
    settings=[("train.learning_rate", "5e-06")],
    training=[("step", "790"), ("loss", "1.5")],
)


def front(card: Card) -> dict[str, Any]:
    _, matter, _ = card.render().split("---\n", 2)
    parsed = yaml.safe_load(matter)
    assert isinstance(parsed, dict)
    return parsed


def test_front_matter_names_base_and_library_and_no_licence() -> None:
    assert front(CARD) == {
        "base_model": "Qwen/Qwen2.5-3B",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "nextquill", "peft", "personalization"],
    }
    merged = front(replace(CARD, merged=True))
    assert (merged["library_name"], merged["base_model_relation"]) == ("transformers", "finetune")


@pytest.mark.parametrize("name", ["no", "1e3", 'quo"te: #', "日本", "- a"])
def test_any_name_survives_yaml(name: str) -> None:
    assert front(replace(CARD, base_id=name))["base_model"] == name


def test_a_base_without_a_name_on_the_hub_is_not_claimed() -> None:
    assert "base_model" not in front(replace(CARD, base_id=None))


def test_the_same_facts_give_the_same_text_and_tables_keep_their_shape() -> None:
    text = CARD.render()
    assert text == replace(CARD).render()
    assert "| categories | Books, A\\|B C |" in text
    assert text.endswith("\n")
    assert "## Validation" not in text
    assert "| val.loss | 2 |" in replace(CARD, validation=[("val.loss", "2")]).render()


def test_how_to_load_it() -> None:
    text = CARD.render()
    assert 'AutoPeftModelForCausalLM.from_pretrained("ADAPTER_FOLDER")' in text
    assert "vllm serve Qwen/Qwen2.5-3B --enable-lora --max-lora-rank 16 " in text, "12 is none that vLLM takes"
    local = replace(CARD, base="my-base", base_id=None, base_files=[("model.safetensors", "0" * 64)])
    assert 'PeftModel.from_pretrained(base, "ADAPTER_FOLDER")' in local.render()
    assert f"| model.safetensors | `{'0' * 64}` |" in local.render()
    assert "vllm serve BASE_MODEL_FOLDER --enable-lora" in local.render()
    assert "BASE_MODEL_FOLDER" not in replace(local, merged=True).render()
    pinned = replace(CARD, revision="abc123").render()
    assert 'revision="abc123"' in pinned
    assert "--revision abc123" in pinned
    assert "vllm serve MODEL_FOLDER\n" in replace(CARD, merged=True).render()


def test_the_prompt_shown_is_the_prompt_built() -> None:
    assert "Past reviews by the same user" in CARD.render()
    assert "Past reviews by the same user" not in replace(CARD, history=False).render()
    assert "Title: Could not put it down\nReview:\n```" in CARD.render()


def test_the_card_says_what_is_written_and_from_what() -> None:
    def opening(**changes: Any) -> str:
        return replace(CARD, **changes).render().split("): it ")[1].partition(". ")[0]

    assert opening() == "writes a review of an item as one user would, from that user's past reviews"
    assert opening(writes="email") == "writes an email as one user would, from that user's past emails"
    assert opening(history=False) == "writes a review of an item without a user's history"
    assert "review" not in replace(CARD, writes="post").render()

"""The scorer against a slow oracle: plain forwards with full logits, one sample and one branch at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nextquill_core.causal import preference_weights, token_effects
from nextquill_core.causal.scorer import effects_table, score_batch, token_budget_batches, weights_table
from nextquill_core.schemas import EFFECTS, WEIGHTS, Example
from nextquill_core.tokens import PairEncoder, TokenPair


def oracle(model: Any, prompt: list[int], target: list[int]) -> torch.Tensor:
    """log p of each answer token from the model's own full logits."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + target])).logits[0].float()
    rows = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
    return torch.stack([row[token] for row, token in zip(rows, target, strict=True)])


@pytest.fixture
def pairs(tiny_tokenizer: Any, examples: list[Example]) -> list[TokenPair]:
    encoder = PairEncoder(tiny_tokenizer, max_history=4, max_prompt_tokens=1024, max_target_tokens=128)
    return encoder.encode(examples)


def tiny(kind: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape: dict[str, Any] = {"vocab_size": 400}
    if kind == "gpt2":
        shape |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 2048}
    else:
        shape |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        shape |= {"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": kind != "llama"}
    if kind == "gemma2":
        shape |= {"final_logit_softcapping": 0.5}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape)).eval()


@pytest.mark.parametrize("kind", ["qwen2", "llama", "mistral", "gemma2", "gpt2"])
def test_log_probabilities_equal_the_oracle(kind: str, pairs: list[TokenPair]) -> None:
    model = tiny(kind)
    for pair, (factual, counterfactual) in zip(pairs, score_batch(model, pairs), strict=True):
        torch.testing.assert_close(factual, oracle(model, pair.factual, pair.target), atol=1e-5, rtol=0)
        torch.testing.assert_close(counterfactual, oracle(model, pair.counterfactual, pair.target), atol=1e-5, rtol=0)


def test_bytes_do_not_depend_on_batches(tiny_model: Any, pairs: list[TokenPair]) -> None:
    whole = score_batch(tiny_model, pairs)
    for budget in (1, 300, 10**6):
        for batch in token_budget_batches(pairs, budget):
            for index, both in zip(batch, score_batch(tiny_model, [pairs[index] for index in batch]), strict=True):
                assert torch.equal(torch.stack(both), torch.stack(whole[index]))


def test_batches_hold_every_pair_once_within_budget(pairs: list[TokenPair]) -> None:
    batches = list(token_budget_batches(pairs, 500))
    assert sorted(index for batch in batches for index in batch) == list(range(len(pairs)))
    assert all(len(batch) == 1 or sum(pairs[index].tokens for index in batch) <= 500 for batch in batches)


def test_a_user_without_history_has_effect_exactly_zero(tiny_model: Any, pairs: list[TokenPair]) -> None:
    table = effects_table(pairs, score_batch(tiny_model, pairs))
    assert table.schema == EFFECTS
    for pair, effect in zip(pairs, table["effect"].to_pylist(), strict=True):
        assert len(effect) == len(pair.target)
        assert any(effect) == pair.has_history


def test_effects_and_weights_by_hand() -> None:
    """p = 0.5 against 0.25 is an effect of +0.25, a probability difference and not ln 2."""
    effect = token_effects(torch.tensor([0.5, 0.25, 0.05]).log(), torch.tensor([0.25, 0.5, 0.05]).log())
    torch.testing.assert_close(effect, torch.tensor([0.25, -0.25, 0.0]))
    weight = preference_weights(torch.tensor([0.06, 0.05, 0.04, -1.0]), delta=0.05, high=0.9, low=0.1)
    torch.testing.assert_close(weight, torch.tensor([0.9, 0.1, 0.1, 0.1]))


def test_weights_follow_effects_row_by_row(tiny_model: Any, pairs: list[TokenPair]) -> None:
    effects = effects_table(pairs, score_batch(tiny_model, pairs))
    for part in (effects, effects.slice(3, 4)):
        weights = weights_table(part, delta=0.0, high=2.0, low=1.0)
        assert weights.schema == WEIGHTS
        assert weights["example_id"].to_pylist() == part["example_id"].to_pylist()
        expected = [[2.0 if value > 0 else 1.0 for value in row] for row in part["effect"].to_pylist()]
        assert weights["weight"].to_pylist() == expected

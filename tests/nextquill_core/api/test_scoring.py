"""The numbers of one review are those of a plain forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import nextquill_core as nq
from nextquill_core.causal.weights import preference_weights
from nextquill_core.prompts import build_prompt
from tests.models import oracle
from tests.writers import tiny_writer

REVIEW = nq.Review(nq.Item("Book 1", "the plot"), 4.0, "title", "i loved this quiet book")
HISTORY = [nq.Review(nq.Item("Book 2", "rivers"), 5.0, "fine", "never dull, always bright")]
PROMPT = {"max_prompt_tokens": 1000, "max_target_tokens": 64}


def test_tokens_have_the_probabilities_of_plain_passes(tiny_model: Any, tiny_tokenizer: Any) -> None:
    scored = nq.score(tiny_model, REVIEW, HISTORY, tokenizer=tiny_tokenizer, prompt=PROMPT)
    target = [*tiny_tokenizer(REVIEW.text)["input_ids"], tiny_tokenizer.eos_token_id]
    assert [token.token_id for token in scored.scored] == target
    assert "".join(scored.tokens) == REVIEW.text
    for history, found in ((HISTORY, scored.logp_with), ([], scored.logp_without)):
        prompt = build_prompt(REVIEW.item, REVIEW.rating, REVIEW.title, history)
        expected = oracle(tiny_model, tiny_tokenizer(prompt)["input_ids"], target)
        torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=1e-5)
    effects = torch.tensor(scored.logp_with).exp() - torch.tensor(scored.logp_without).exp()
    torch.testing.assert_close(torch.tensor(scored.effects), effects, rtol=1e-4, atol=1e-6)
    weights = preference_weights(torch.tensor(scored.effects), delta=0.05, high=0.9, low=0.1)
    assert scored.weights == weights.tolist()
    assert scored.history_shown == tuple(HISTORY)
    assert scored.to_polars().height == len(target)


def test_weights_follow_the_policy_that_is_asked(tiny_model: Any, tiny_tokenizer: Any) -> None:
    options: dict[str, Any] = {"tokenizer": tiny_tokenizer, "prompt": PROMPT}
    always = nq.score(tiny_model, REVIEW, HISTORY, weights={"delta": -1.0, "high": 0.7}, **options)
    assert always.weights == pytest.approx([0.7] * len(always.tokens))
    grounded = nq.score(tiny_model, REVIEW, HISTORY, weights={"policy": "grounded"}, **options)
    assert len(grounded.weights) == len(grounded.tokens)
    assert nq.score(tiny_model, REVIEW, **options).effects == [0.0] * len(grounded.tokens)
    with pytest.raises(nq.UserError, match="`delt`"):
        nq.score(tiny_model, REVIEW, weights={"delt": 1}, **options)
    with pytest.raises(nq.UserError, match=r"history, review 1: `text`"):
        nq.score(tiny_model, REVIEW, [{"item": {}}], **options)
    with pytest.raises(nq.UserError, match="an item id needs a store"):
        nq.score(tiny_model, {"item": "B1", "text": "x"}, **options)


def test_a_writer_scores_with_its_own_prompts(tiny_model: Any, tiny_tokenizer: Any) -> None:
    writer = tiny_writer(tiny_model, tiny_tokenizer)
    ours = nq.score(writer, REVIEW, HISTORY)
    assert ours == nq.score(tiny_model, REVIEW, HISTORY, tokenizer=tiny_tokenizer, prompt=PROMPT)

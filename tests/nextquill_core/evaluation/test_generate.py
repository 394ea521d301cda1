"""Generation: neither batch nor padding changes a text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nextquill_core.evaluation.generate import CUT, DECODINGS, STOPPED, batches_by_length, generate
from nextquill_core.schemas import Example
from nextquill_core.tokens import PairEncoder


def greedy(model: Any, prompt: list[int], penalty: float, stop: int, limit: int) -> list[int]:
    """One token at a time, no cache, no padding: the definition."""
    ids = list(prompt)
    while len(ids) < len(prompt) + limit:
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0, -1]
        for token in set(ids):
            scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
        token = int(scores.argmax())
        if token == stop:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("preset", DECODINGS)
@pytest.mark.parametrize("pad_is_stop", [False, True])
def test_batched_generation_equals_the_definition(
    preset: str, pad_is_stop: bool, tiny_model: Any, tiny_folder: Any, examples: list[Example]
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    if pad_is_stop:
        tokenizer.pad_token = tokenizer.eos_token
    encoder = PairEncoder(tokenizer, max_history=2, max_prompt_tokens=1024, max_target_tokens=128)
    prompts = [pair.factual for pair in encoder.encode(examples)]
    decoding = DECODINGS[preset]
    for budget in (1, 500, 10**6):
        answers = generate(tiny_model, tokenizer, prompts, decoding, max_new_tokens=6, batch_tokens=budget)
        for prompt, answer in zip(prompts, answers, strict=True):
            expected = greedy(tiny_model, prompt, decoding.repetition_penalty, tokenizer.eos_token_id, 6)
            assert answer.text == tokenizer.decode(expected, skip_special_tokens=True).strip()
            assert answer.n_tokens == len(expected)
            assert answer.finish_reason == (STOPPED if len(expected) < 6 else CUT)


def test_a_model_that_stops_at_once_gives_an_empty_text(tiny_model: Any, tiny_tokenizer: Any) -> None:
    import copy

    model = copy.deepcopy(tiny_model)
    stop = tiny_tokenizer.eos_token_id
    model.set_output_embeddings(torch.nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=True))
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
        model.get_output_embeddings().bias.zero_()
        model.get_output_embeddings().bias[stop] = 1.0
    (answer,) = generate(model, tiny_tokenizer, [[5, 6, 7]], DECODINGS["sane"], max_new_tokens=4, batch_tokens=100)
    assert (answer.text, answer.n_tokens, answer.finish_reason) == ("", 0, STOPPED)


def test_batches_are_longest_first_and_within_budget() -> None:
    lengths = [3, 9, 1, 9, 4]
    batches = list(batches_by_length(lengths, 18))
    assert batches == [[1, 3], [4, 0, 2]]

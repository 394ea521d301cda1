"""The scorer against a slow oracle: plain forwards with full logits, one sample and one branch at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nextquill_core.causal.scorer import Scorer, effects_table, token_budget_batches
from nextquill_core.errors import ModelError
from nextquill_core.schemas import EFFECTS, Example
from nextquill_core.tokens import PairEncoder, TokenPair
from tests.models import FAMILIES, oracle, small_model


@pytest.fixture
def pairs(tiny_tokenizer: Any, examples: list[Example]) -> list[TokenPair]:
    encoder = PairEncoder(tiny_tokenizer, max_history=4, max_prompt_tokens=1024, max_target_tokens=128)
    return encoder.encode(examples)


def flat(scores: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.cat([branch for both in scores for branch in both])


def expected(model: Any, pairs: list[TokenPair]) -> Tensor:
    return flat([(oracle(model, p.factual, p.target), oracle(model, p.counterfactual, p.target)) for p in pairs])


@pytest.mark.parametrize("strategy", [None, "packed", "plain"])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_equal_the_oracle(family: str, strategy: Any, pairs: list[TokenPair]) -> None:
    model = small_model(family)
    got = flat(Scorer(model, 2000, strategy=strategy).score(pairs))
    torch.testing.assert_close(got, expected(model, pairs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_errs_no_more_than_plain_half_precision(family: str, pairs: list[TokenPair]) -> None:
    model = small_model(family).to(torch.bfloat16)
    naive = expected(model, pairs)
    got = flat(Scorer(model, 2000).score(pairs))
    exact = expected(model.float(), pairs)
    assert (got - exact).abs().max() <= (naive - exact).abs().max() + 0.01
    assert (got - exact).abs().mean() <= 1.1 * (naive - exact).abs().mean() + 1e-4


def test_bytes_do_not_depend_on_batches(tiny_model: Any, pairs: list[TokenPair]) -> None:
    whole = flat(Scorer(tiny_model, 10**6).score(pairs))
    for budget in (1, 300):
        assert torch.equal(flat(Scorer(tiny_model, budget).score(pairs)), whole)
    backwards = Scorer(tiny_model, 300).score(pairs[::-1])
    assert torch.equal(flat(backwards[::-1]), whole)


def test_bytes_do_not_depend_on_the_number_of_threads(tiny_model: Any, pairs: list[TokenPair]) -> None:
    threads = torch.get_num_threads()
    try:
        scored = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            scored.append(flat(Scorer(tiny_model, 1000).score(pairs)))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(scored[0], scored[1])
    assert torch.equal(scored[0], scored[2])


def test_batches_hold_everything_once_within_budget() -> None:
    tokens = [10, 500, 700, 20, 480, 1, 30]
    batches = list(token_budget_batches(tokens, 500))
    assert batches == [[2], [1], [4], [6, 3, 0, 5]]


def test_a_user_without_history_has_effect_exactly_zero(tiny_model: Any, pairs: list[TokenPair]) -> None:
    table = effects_table(pairs, Scorer(tiny_model, 1000).score(pairs))
    assert table.schema == EFFECTS
    assert not all(pair.has_history for pair in pairs)
    for pair, effect in zip(pairs, table["effect"].to_pylist(), strict=True):
        assert len(effect) == len(pair.target)
        assert any(effect) == pair.has_history


def limited(model: Any, most: int, error: Callable[[], Exception]) -> Any:
    # A model that runs out of memory above a number of tokens in one pass.
    forward = model.model.forward

    def limit(*args: Any, **others: Any) -> Any:
        if others["input_ids"].shape[1] > most:
            raise error()
        return forward(*args, **others)

    model.model.forward = limit
    return model


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory."),
        lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError,
    ],
)
def test_out_of_memory_halves_the_budget_and_goes_on(error: Callable[[], Exception], pairs: list[TokenPair]) -> None:
    model = small_model("qwen2")
    whole = flat(Scorer(model, 10**6, strategy="packed").score(pairs))
    told: list[tuple[int, int]] = []
    longest = max(pair.tokens for pair in pairs)
    scorer = Scorer(limited(model, longest + 10, error), 10**6, lambda *done: told.append(done), strategy="packed")
    torch.testing.assert_close(flat(scorer.score(pairs)), whole, atol=1e-5, rtol=0)
    assert scorer.batch_tokens <= 2 * longest
    assert sum(tokens for _, tokens in told) == sum(pair.tokens for pair in pairs)
    assert sum(examples for examples, _ in told) == len(pairs)


def test_out_of_memory_halves_the_examples_side_by_side(
    pairs: list[TokenPair], caplog: pytest.LogCaptureFixture
) -> None:
    model = small_model("qwen2")
    whole = flat(Scorer(model, 1000, strategy="plain").score(pairs))
    forward, room = model.model.forward, threading.Semaphore(1)

    def narrow(*args: Any, **others: Any) -> Any:
        if not room.acquire(blocking=False):
            raise MemoryError
        try:
            time.sleep(0.01)
            return forward(*args, **others)
        finally:
            room.release()

    model.model.forward = narrow
    scorer = Scorer(model, 1000, strategy="plain")
    scorer.side_by_side = 4
    assert torch.equal(flat(scorer.score(pairs)), whole)
    assert scorer.side_by_side == 1
    assert "continuing with 1 examples side by side" in caplog.text


def test_memory_for_not_even_one_example_is_told_plainly(pairs: list[TokenPair]) -> None:
    scorer = Scorer(limited(small_model("qwen2"), 50, MemoryError), 1000, strategy="packed")
    with pytest.raises(ModelError, match="out of memory with one example"):
        scorer.score(pairs)


def test_other_errors_pass(pairs: list[TokenPair]) -> None:
    scorer = Scorer(limited(small_model("qwen2"), 50, lambda: RuntimeError("shapes")), 1000, strategy="packed")
    with pytest.raises(RuntimeError, match="shapes"):
        scorer.score(pairs)

"""Qwen2.5-3B's shape with random weights in half precision, once: what is promised of small models holds for it."""

from __future__ import annotations

import resource
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from nextquill_core.causal.scorer import Scorer
from nextquill_core.model.forward import computed_tokens
from tests.real_shape import full_length, qwen_3b, wanted


@torch.inference_mode()
def plain(model: Any, prompt: list[int], target: list[int]) -> Tensor:
    # One forward pass of the model as it is; logits at the answer only, since all would take a gigabyte.
    ids = torch.tensor([[*prompt, *target]])
    logits = model(ids, use_cache=False, logits_to_keep=len(target) + 1).logits[0, :-1].float()
    return logits.log_softmax(dim=1).gather(1, torch.tensor(target)[:, None]).squeeze(1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@wanted("a quarter of an hour")
def test_two_examples_of_full_length_equal_plain_forward_passes() -> None:
    model = qwen_3b()
    pairs = [full_length(1), full_length(2)]
    scorer = Scorer(model, 16_384)
    assert scorer.strategy == "reuse"
    started = time.perf_counter()
    scored = scorer.score(pairs)
    seconds = time.perf_counter() - started
    print(
        f"\n{seconds:.0f} s for {sum(map(computed_tokens, pairs)):,} tokens, "
        f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB"
    )
    started = time.perf_counter()
    for pair, (factual, counterfactual) in zip(pairs, scored, strict=True):
        for prompt, got in ((pair.factual, factual), (pair.counterfactual, counterfactual)):
            expected = plain(model, prompt, pair.target)
            assert (got - expected).abs().max() < 0.1  # nats; half precision has three digits, logits are near 10
            assert (got - expected).abs().mean() < 0.02
    print(f"{time.perf_counter() - started:.0f} s for plain forward passes")

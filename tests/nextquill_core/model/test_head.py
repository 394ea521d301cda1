"""The head in blocks against the whole one."""

from __future__ import annotations

import pytest
import torch

from nextquill_core.errors import ModelError
from nextquill_core.model import head as heads
from nextquill_core.model.head import Head, head_of, target_logprobs
from tests.models import FAMILIES, small_model


def whole(head: Head, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return head.logits(hidden).log_softmax(dim=1).gather(1, target[:, None]).squeeze(1)


@pytest.mark.parametrize("block", [(512, 8192), (3, 7), (1, 1), (4, 100)])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("biased", [False, True])
def test_blocks_give_the_same_log_probabilities(
    block: tuple[int, int], softcap: float | None, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    bias = torch.randn(100) if biased else None
    head = Head(torch.randn(100, 16), bias, softcap, scale=0.5)
    hidden, target = torch.randn(10, 16) * 4, torch.arange(0, 100, 10)
    monkeypatch.setitem(heads.BLOCK, "cpu", block)
    torch.testing.assert_close(target_logprobs(head, hidden, target), whole(head, hidden, target), atol=1e-5, rtol=0)


def test_logits_far_apart_neither_overflow_nor_vanish() -> None:
    head = Head(torch.tensor([[300.0], [-300.0], [299.0]]))
    got = target_logprobs(head, torch.ones(3, 1), torch.tensor([0, 1, 2]))
    expected = torch.tensor([0.0, -600.0, -1.0]) - torch.tensor(1 + 2.718281828**-1).log()
    torch.testing.assert_close(got, expected)


def test_no_answer_token_no_number() -> None:
    assert target_logprobs(Head(torch.randn(5, 2)), torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)).shape == (0,)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_gives_the_models_own_logits(family: str) -> None:
    model = small_model(family)
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        expected = model(ids).logits[0].float()
        got = head_of(model).logits(model.get_decoder()(ids).last_hidden_state[0])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert head_of(model).is_linear == (family != "gemma2")


def test_a_head_that_is_not_linear_is_refused() -> None:
    model = small_model("qwen2")
    model.lm_head = torch.nn.Sequential(torch.nn.Linear(32, 400))
    with pytest.raises(ModelError, match="Sequential, not linear"):
        head_of(model)

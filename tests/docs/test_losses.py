"""The code in docs/explanation/losses.md computes what the product computes."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nextquill_core.causal import preference_weights, token_effects
from nextquill_core.training.losses import nextquill_loss
from tests.conftest import REPO

PAGE = (REPO / "docs" / "explanation" / "losses.md").read_text(encoding="utf-8")


def page_functions() -> dict[str, Any]:
    """Return the functions that the page defines, by name."""
    found: dict[str, Any] = {"Tensor": Tensor, "cross_entropy": cross_entropy}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, found)  # noqa: S102 - a page of this repository
    return found


def test_effects_and_weights_of_the_page_are_the_product_s() -> None:
    page = page_functions()
    factual, counterfactual = torch.rand(2, 50, generator=torch.Generator().manual_seed(1)).log()
    effect = token_effects(factual, counterfactual)
    settings = {"delta": 0.05, "high": 0.9, "low": 0.1}
    assert torch.equal(page["token_effects"](factual, counterfactual), effect)
    assert torch.equal(page["preference_weights"](effect, **settings), preference_weights(effect, **settings))


def test_the_loss_of_the_page_has_the_product_s_value_and_gradients() -> None:
    draw = torch.Generator().manual_seed(2)
    hidden_ND, hidden_null_ND = (torch.randn(12, 8, generator=draw, requires_grad=True) for _ in range(2))
    head_VD = torch.randn(30, 8, generator=draw)
    target_N, weight_N = torch.randint(30, (12,), generator=draw), torch.rand(12, generator=draw)
    sequence_N = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
    states = (hidden_ND, hidden_null_ND)
    plain = page_functions()["paper_loss"](*states, head_VD, target_N, weight_N, samples=3, alpha=0.3)
    ours = nextquill_loss(*states, head_VD, target_N, weight_N, sequence_N, alpha=0.3).loss
    torch.testing.assert_close(ours, plain)
    gradients = zip(torch.autograd.grad(ours, states), torch.autograd.grad(plain, states), strict=True)
    for found, expected in gradients:
        torch.testing.assert_close(found, expected)

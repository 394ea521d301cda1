"""Half-precision products by way of single precision: the same numbers, and no copies kept for the backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from nextquill_core.model.cpu import half
from tests.models import small_model

GENERATOR = torch.Generator().manual_seed(3)
ROWS = torch.randn(2, 5, 48, generator=GENERATOR).bfloat16()
WEIGHT = torch.randn(32, 48, generator=GENERATOR).bfloat16()
BIAS = torch.randn(32, generator=GENERATOR).bfloat16()


@pytest.fixture(autouse=True)
def a_cpu_without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half, "half_is_slow", lambda: True)


@pytest.mark.parametrize("bias", [None, BIAS])
def test_a_product_is_the_exact_one_rounded_once(bias: torch.Tensor | None) -> None:
    exact = functional.linear(ROWS.double(), WEIGHT.double()).bfloat16()
    expected = exact if bias is None else exact + bias
    torch.testing.assert_close(half.linear(ROWS, WEIGHT, bias), expected, rtol=2**-7, atol=1e-5)


def test_blocks_of_a_weight_make_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half, "FEATURES", 5)  # of 32: six blocks and a rest
    exact = functional.linear(ROWS.double(), WEIGHT.double()).bfloat16()
    torch.testing.assert_close(half.linear(ROWS, WEIGHT), exact, rtol=2**-7, atol=1e-5)
    back = (exact.double() @ WEIGHT.double()).bfloat16()
    torch.testing.assert_close(half.product(exact, WEIGHT), back, rtol=2**-7, atol=1e-4)


def test_a_weight_that_could_learn_does_not_while_nothing_does(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: list[torch.Tensor] = []
    plain = half._converted
    monkeypatch.setattr(half, "_converted", lambda weight: blocks.append(weight) or plain(weight))
    weight = WEIGHT.clone().requires_grad_()
    half.linear(ROWS, weight)
    assert not blocks
    with torch.inference_mode():
        half.linear(ROWS, weight)
    assert len(blocks) == 1


def test_its_gradient_is_the_exact_one_rounded_once() -> None:
    rows = ROWS.clone().requires_grad_()
    weights = torch.randn(2, 5, 32, generator=GENERATOR).bfloat16()
    half.linear(rows, WEIGHT).backward(weights)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(rows.grad, (weights.double() @ WEIGHT.double()).bfloat16(), rtol=2**-7, atol=1e-5)


def test_nothing_but_the_weight_itself_is_kept() -> None:
    kept: list[int] = []
    rows = ROWS.clone().requires_grad_()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        half.linear(rows, WEIGHT)
    assert kept == [WEIGHT.data_ptr()]


def test_a_weight_that_learns_is_multiplied_as_ever() -> None:
    weight = WEIGHT.clone().requires_grad_()
    half.linear(ROWS, weight).float().sum().backward()  # type: ignore[no-untyped-call]
    expected = ROWS.double().sum(dim=(0, 1)).expand(32, 48)
    torch.testing.assert_close(weight.grad, expected.bfloat16(), rtol=2e-2, atol=2e-2)


def test_a_model_goes_through_it_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = small_model("qwen2").to(torch.bfloat16).requires_grad_(False)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        expected = model(ids).logits
        half.use_fast_products(model)
        products = 0
        plain = half.linear

        def counted(*operands: Any) -> torch.Tensor:
            nonlocal products
            products += 1
            return plain(*operands)

        monkeypatch.setattr(half, "linear", counted)
        found = model(ids).logits
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    assert products == len(layers)
    assert (found - expected).float().abs().mean() < 0.01 * expected.float().abs().mean()


def test_layers_of_single_precision_are_left_alone() -> None:
    model = small_model("qwen2")
    half.use_fast_products(model)
    assert not any("forward" in vars(layer) for layer in model.modules())

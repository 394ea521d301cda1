"""Gated feed-forward parts: the same values and gradients, and the wide tensors made again instead of kept."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from nextquill_core.model.cpu.feed_forward import PartForward, own_forward
from nextquill_core.model.cpu.gated import gated_forward
from nextquill_core.model.cpu.lora_dropout import spare_dropout
from tests.models import small_model
from tests.nextquill_core.model.cpu.test_lora_dropout import adapted

STATES = torch.randn(1, 9, 48, generator=torch.Generator().manual_seed(0))


def feed_forward(dropout: float = 0.0) -> Any:
    model = adapted(dropout).train()
    spare_dropout(model)
    return model.get_base_model().get_decoder().layers[0].mlp


def value_and_gradients(part: Any, forward: PartForward) -> list[Tensor]:
    states = STATES[..., : part.gate_proj.in_features].clone().requires_grad_()
    trained = [states, *(weight for weight in part.parameters() if weight.requires_grad)]
    torch.manual_seed(1)
    result = forward(part, states)
    return [result.detach(), *torch.autograd.grad(result.square().sum(), trained)]


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_value_and_every_gradient_are_those_of_the_models_own_code(dropout: float) -> None:
    part = feed_forward(dropout)
    expected = value_and_gradients(part, own_forward)
    assert len(expected) == 2 + 6  # two matrices for each of three layers
    torch.testing.assert_close(value_and_gradients(part, gated_forward), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("forward", "kept"), [(own_forward, True), (gated_forward, False)])
def test_what_the_last_product_reads_is_not_kept(forward: PartForward, kept: bool) -> None:
    part = feed_forward(dropout=0.25)
    seen: list[Any] = []
    part.down_proj.register_forward_pre_hook(lambda _layer, inputs: seen.append(weakref.ref(inputs[0])))
    result = forward(part, STATES[..., : part.gate_proj.in_features])
    assert (seen[0]() is not None) == kept
    assert result.requires_grad


def test_a_part_that_is_built_otherwise_does_it_its_own_way() -> None:
    part = small_model("gpt2").get_decoder().h[0].mlp
    states = STATES[..., : part.c_fc.nx]
    torch.testing.assert_close(gated_forward(part, states), part(states), rtol=0, atol=0)

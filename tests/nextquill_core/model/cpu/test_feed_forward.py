"""Feed-forward parts: the same states and gradients, less computed, and wide tensors not kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nextquill_core.model.cpu import feed_forward, make_fast
from nextquill_core.model.cpu.feed_forward import (
    PartForward,
    fast_feed_forward,
    feed_forward_parts,
    gated_forward,
    own_forward,
)
from nextquill_core.model.cpu.recomputed import recomputing
from nextquill_core.model.forward import decoder_of, last_rows_read
from tests.models import FAMILIES, small_model
from tests.nextquill_core.model.cpu.test_lora_dropout import adapted


@torch.inference_mode()
def states(model: Any) -> Tensor:
    ids = torch.arange(40)[None]
    found: Tensor = decoder_of(model)(input_ids=ids, use_cache=False).last_hidden_state
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_are_read_are_the_same_in_blocks(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_forward, "ROWS", 7)
    model = small_model(family)
    expected = states(model)
    parts = feed_forward_parts(model)
    assert len(parts) == 2
    with fast_feed_forward(parts):
        torch.testing.assert_close(states(model), expected)
        with last_rows_read(11):
            found = states(model)
    torch.testing.assert_close(found[:, -11:], expected[:, -11:])
    assert not torch.allclose(found[:, :-11], expected[:, :-11]), "the rest was not computed"
    torch.testing.assert_close(states(model), expected, rtol=0, atol=0)


def test_only_the_last_layer_leaves_rows_out() -> None:
    model = small_model("qwen2")
    parts = feed_forward_parts(model)
    rows: list[int] = []
    for part in parts:
        part.down_proj.register_forward_pre_hook(lambda _part, inputs: rows.append(inputs[0].shape[1]))
    with fast_feed_forward(parts), last_rows_read(3):
        states(model)
    assert rows == [40, 3]


def test_a_model_whose_rows_depend_on_each_other_is_left_as_it_is() -> None:
    class Mixing(nn.Module):
        def forward(self, states_BTD: Tensor) -> Tensor:
            return states_BTD + states_BTD.mean(dim=1, keepdim=True)

    model = small_model("qwen2")
    model.model.layers[-1].mlp = Mixing()
    assert feed_forward_parts(model) == []
    assert feed_forward_parts(small_model("mamba")) == []


STATES = torch.randn(1, 9, 48, generator=torch.Generator().manual_seed(0))


def gated_part(dropout: float = 0.0) -> Any:
    model = adapted(dropout).train()
    make_fast(model)
    return model.get_base_model().get_decoder().layers[0].mlp


def value_and_gradients(part: Any, forward: PartForward) -> list[Tensor]:
    states = STATES[..., : part.gate_proj.in_features].clone().requires_grad_()
    trained = [states, *(weight for weight in part.parameters() if weight.requires_grad)]
    torch.manual_seed(1)
    with recomputing():
        result = forward(part, states)
    return [result.detach(), *torch.autograd.grad(result.square().sum(), trained)]


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_value_and_every_gradient_are_those_of_the_models_own_code(dropout: float) -> None:
    part = gated_part(dropout)
    expected = value_and_gradients(part, own_forward)
    assert len(expected) == 2 + 6  # two matrices for each of three layers
    torch.testing.assert_close(value_and_gradients(part, gated_forward), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("forward", "kept"), [(own_forward, True), (gated_forward, False)])
def test_the_input_of_the_last_product_is_not_kept(forward: PartForward, kept: bool) -> None:
    part = gated_part(dropout=0.25)
    seen: list[int] = []
    part.down_proj.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0].data_ptr()))
    with recomputing() as found:
        result = forward(part, STATES[..., : part.gate_proj.in_features])
    assert (seen[0] in found.kept_bytes) == kept
    wide = 4 * STATES.shape[1] * part.gate_proj.out_features
    assert list(found.kept_bytes.values()).count(wide) == (4 if kept else 2), "g and u, and a(g) and a(g) · u if kept"
    assert result.requires_grad


def test_a_part_of_another_structure_uses_its_own_forward() -> None:
    part = small_model("gpt2").get_decoder().h[0].mlp
    states = STATES[..., : part.c_fc.nx]
    torch.testing.assert_close(gated_forward(part, states), part(states), rtol=0, atol=0)

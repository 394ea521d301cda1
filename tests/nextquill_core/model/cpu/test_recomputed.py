"""Recomputed tensors: the same gradients to the last bit, less kept, and nothing confused with anything else."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nextquill_core.model.cpu import fast_feed_forward, feed_forward_parts, gated_forward, make_fast
from nextquill_core.model.cpu.recomputed import norms_of, note_recomputed, recomputing
from nextquill_core.model.forward import decoder_of
from tests.nextquill_core.model.cpu.test_lora_dropout import adapted

IDS = torch.arange(40)[None]


def gradients(model: Any, *, lean: bool) -> tuple[list[Tensor], int]:
    """The gradients of a forward pass with dropout, and the bytes it kept."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parts = feed_forward_parts(model.eval(), gated_forward)
    model.train()
    torch.manual_seed(1)
    with recomputing(norms_of(model) if lean else []) as kept, fast_feed_forward(parts if lean else [], gated_forward):
        states = decoder_of(model)(input_ids=IDS, use_cache=False).last_hidden_state
    return list(torch.autograd.grad(states.square().sum(), trained)), sum(kept.kept_bytes.values())


def test_every_gradient_is_equal_to_the_last_bit_and_a_quarter_less_is_kept() -> None:
    model = make_fast(adapted(0.25))
    assert len(norms_of(model)) == 4, "two in each of two layers, without the last one"
    (expected, whole), (got, rest) = gradients(model, lean=False), gradients(model, lean=True)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert rest < 0.75 * whole


def test_layers_with_the_same_input_share_what_is_computed_again() -> None:
    times = 0
    weights = [nn.Parameter(torch.eye(8)) for _ in range(3)]

    class Counted(nn.LayerNorm):
        def forward(self, states: Tensor) -> Tensor:
            nonlocal times
            times += 1
            return super().forward(states)

    norm = Counted(8)
    states = torch.randn(5, 8, requires_grad=True)
    with recomputing([norm]):
        normed = norm(states)
        total = torch.stack([normed @ weight for weight in weights]).sum()
    total.backward()
    assert times == 2, "once forwards, once backwards"


def test_a_view_a_changed_tensor_and_a_later_one_at_the_same_address_are_kept() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    with recomputing() as kept:
        for change in ("view", "in place", "later"):
            tensor = torch.arange(16.0).view(4, 4)
            note_recomputed(tensor, lambda: torch.full((4, 4), float("nan")))
            if change == "view":
                used = tensor.T
            elif change == "in place":
                used = tensor.add_(1)
            else:
                address = tensor.data_ptr()
                del tensor
                used = torch.arange(16.0).view(4, 4)
                assert used.data_ptr() == address or not kept._recipes
            (gradient,) = torch.autograd.grad((used @ weight).sum(), weight)
            assert torch.isfinite(gradient).all(), change


def test_a_pass_without_a_backward_pass_leaves_nothing() -> None:
    weight = nn.Parameter(torch.eye(8))
    gc.disable()
    try:
        with recomputing():
            result = (torch.ones(8, 8) @ weight).exp()  # keeps its own result
        seen = weakref.ref(result)
        del result
        assert seen() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("block", [False, True])
def test_outside_a_block_nothing_is_noted(block: bool) -> None:
    tensor = torch.ones(3)
    note_recomputed(tensor, lambda: tensor)
    if block:
        with recomputing() as kept:
            pass
        note_recomputed(tensor, lambda: tensor)
        assert not kept._recipes

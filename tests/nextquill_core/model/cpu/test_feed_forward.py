"""Feed-forward parts in blocks and for the rows that are read: the same states, less computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nextquill_core.model.cpu import feed_forward
from nextquill_core.model.cpu.feed_forward import feed_forward_parts, sparing
from nextquill_core.model.forward import decoder_of, last_rows_read
from tests.models import FAMILIES, small_model


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
    with sparing(parts):
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
    with sparing(parts), last_rows_read(3):
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

"""LoRA's dropout: the same function and gradients as written out, less kept for the backward pass."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nextquill_core.model.cpu.lora_dropout import DroppedLinear, dropped_positions, use_lean_dropout
from tests.models import lora_model, small_model

RATE = 0.25


def written_out(x: Tensor, weight: Tensor) -> Tensor:
    kept = torch.ones(x.numel())
    kept[dropped_positions(x.numel(), RATE, int(torch.randint(2**63 - 1, ())))] = 0
    return (x * kept.view(x.shape) / (1 - RATE)) @ weight.T


@pytest.mark.parametrize("shape", [(7, 5), (2, 7, 5)])
def test_values_and_gradients_are_those_of_dropout_written_out(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, above = (torch.randn(size, generator=generator) for size in (shape, (3, 5), (*shape[:-1], 3)))
    found = []
    for function in (lambda x, weight: DroppedLinear.apply(x, weight, RATE), written_out):
        leaves = [value.clone().requires_grad_() for value in (x, weight)]
        torch.manual_seed(1)
        out = function(*leaves)
        out.backward(above)
        found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(found[0], found[1])


def test_a_quarter_is_dropped_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    out = DroppedLinear.apply(torch.ones(100_000, 1), torch.ones(1, 1), RATE)
    assert float((out == 0).float().mean()) == pytest.approx(RATE, abs=0.01)
    assert float(out.mean()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("rate", [0.001, 0.05, 0.5, 0.95])
def test_each_element_is_drawn_on_its_own(rate: float) -> None:
    positions = dropped_positions(1000 * 401, rate, seed=0)
    assert torch.equal(positions, positions.unique()), "they ascend, and none occurs twice"
    rows = torch.zeros(1000 * 401).index_fill_(0, positions, 1.0).view(1000, 401)
    assert float(rows.mean()) == pytest.approx(rate, abs=0.003)
    assert rows.mean(dim=0).sub(rate).abs().max() <= 5 * (rate * (1 - rate) / 1000) ** 0.5 + 0.001
    for distance in (1, 2, 40):
        together = (rows[:, distance:] * rows[:, :-distance]).mean()
        assert float(together) == pytest.approx(rate**2, abs=0.003)


def test_positions_depend_on_the_seed_alone_and_more_are_drawn_if_the_first_do_not_suffice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = dropped_positions(10_000, RATE, seed=1)
    torch.manual_seed(5)
    assert torch.equal(dropped_positions(10_000, RATE, seed=1), expected)
    assert not torch.equal(dropped_positions(10_000, RATE, seed=2)[:100], expected[:100])
    monkeypatch.setattr(math, "sqrt", lambda value: -value / 8)  # 16 draws at a time
    few = dropped_positions(10_000, RATE, seed=1)
    assert int(few[-1]) > 9_900
    assert len(few) / 10_000 == pytest.approx(RATE, abs=0.02)


def adapted(dropout: float) -> Any:
    return lora_model(small_model("qwen2"), lora_dropout=dropout)


def kept_bytes(model: Any) -> int:
    """What a forward pass keeps for the backward pass, tensors that are kept twice counted once."""
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    alive: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.arange(64)[None]).logits.sum()
    return sum(held.values()) - sum(p.untyped_storage().nbytes() for p in model.parameters())


def test_a_model_is_the_same_in_evaluation_and_keeps_less_in_training() -> None:
    ids = torch.arange(20)[None]
    plain, spared = adapted(RATE), adapted(RATE)
    names = list(spared.state_dict())
    use_lean_dropout(spared)
    assert list(spared.state_dict()) == names
    torch.testing.assert_close(spared.eval()(ids).logits, plain.eval()(ids).logits, rtol=0, atol=0)
    torch.manual_seed(0)
    first = spared.train()(ids).logits
    assert not torch.allclose(spared(ids).logits, first), "another draw, another result"
    torch.manual_seed(0)
    torch.testing.assert_close(spared(ids).logits, first, rtol=0, atol=0)
    assert kept_bytes(spared) < 0.7 * kept_bytes(plain.train())

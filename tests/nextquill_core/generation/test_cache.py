"""Room for keys and values; prefill in parallel and in groups, against one pass of the unchanged model per prompt."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from nextquill_core.generation import cache
from nextquill_core.generation.cache import Prefiller, together
from tests.models import FAMILIES, VOCABULARY, small_model


@pytest.mark.parametrize(("free", "room"), [(10_000, 13), (0, 1), (10**12, cache.MOST)])
def test_half_of_the_free_memory_holds_keys_and_values(free: int, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("qwen2", num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, hidden_size=32)
    position = 2 * 3 * 2 * (32 // 4) * 4  # keys and values, layers, heads, numbers each, bytes
    assert position == 384
    monkeypatch.setattr(cache, "free_memory", lambda device: free)
    assert cache.room_in_memory(model) == room


DRAW = random.Random(1)
PROMPTS = [[DRAW.randrange(VOCABULARY) for _ in range(length)] for length in (9, 30, 30, 1, 4, 17, 2)]


def no_options(_group: slice) -> dict[str, Any]:
    return {}


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_states_and_logits_are_those_of_a_pass_of_its_own(
    family: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "TOGETHER", 40)
    model = small_model(family)
    expected = [model(torch.tensor([prompt]), use_cache=True) for prompt in PROMPTS]
    prefiller = Prefiller(model)
    prefiller.at_once = at_once
    found = prefiller(PROMPTS, no_options)
    assert len(found) == 5
    rows = [(group, row) for group in found for row in range(len(group[0].lengths))]
    assert [group[0].lengths[row] for group, row in rows] == [len(prompt) for prompt in PROMPTS]
    for (group, row), whole in zip(rows, expected, strict=True):
        torch.testing.assert_close(group[1][row], whole.logits[0, -1], rtol=1e-4, atol=1e-5)
        width = whole.logits.shape[1]
        for mine, theirs in zip(group[0].cache.layers, whole.past_key_values.layers, strict=True):
            torch.testing.assert_close(mine.keys[row, :, -width:], theirs.keys[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(mine.values[row, :, -width:], theirs.values[0], rtol=1e-4, atol=1e-5)


def test_the_last_feed_forward_part_is_spared_all_but_the_last_token() -> None:
    model = small_model("llama")
    computed: list[int] = []
    model.model.layers[-1].mlp.gate_proj.register_forward_hook(lambda *call: computed.append(call[1][0].shape[1]))
    prefiller = Prefiller(model)
    computed.clear()
    prefiller(PROMPTS, no_options)
    assert set(computed) == {1}


def test_what_peft_is_told_by_hooks_goes_through_the_model_alone(two_threads: None) -> None:
    heard: list[tuple[int, int]] = []

    class Told:
        def __init__(self, model: Any) -> None:
            self.inner = model

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def __call__(self, *, names: list[str], **options: Any) -> Any:
            heard.append((torch.get_num_threads(), len(names)))
            return self.inner(**options)

    prefiller = Prefiller(small_model("qwen2"))
    prefiller.model = Told(prefiller.model)
    prefiller.at_once = 2
    prefiller(PROMPTS, lambda group: {"names": ["a"] * len(PROMPTS[group])})
    assert heard == [(torch.get_num_threads(), len(PROMPTS))]


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([], []),
        ([600], [1]),
        ([600, 600], [1, 1]),
        ([256, 256, 1], [2, 1]),  # 3 x 256 positions with padding
        ([200, 300, 2, 2], [1, 1, 2]),
        ([1] * 600, [512, 88]),
    ],
)
def test_neighbours_are_read_in_one_pass_up_to_512_positions(lengths: list[int], groups: list[int]) -> None:
    prompts = [[0] * length for length in lengths]
    assert [len(prompts[group]) for group in together(prompts)] == groups

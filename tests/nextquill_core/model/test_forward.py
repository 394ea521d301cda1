"""Both branches, what they share computed once: against plain forward passes, for every family of models."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nextquill_core.model.forward import Strategy, best_strategy, branch_states, computed_tokens, shared_prefix
from nextquill_core.tokens import TokenPair
from tests.models import FAMILIES, VOCABULARY, small_model


def pair(shared: int, history: int, rest: int, answer: int, seed: int = 0) -> TokenPair:
    # Random ids; the branches differ in `history` tokens, and no further by accident.
    draw = random.Random(seed)
    opening, past, end, target = (
        [draw.randrange(2, VOCABULARY) for _ in range(n)] for n in (shared, history, rest, answer)
    )
    past[:1] = [1] * bool(history)  # and `end` starts with another token
    return TokenPair(str(seed), opening + past + end, opening + end, target)


PAIRS = [
    pair(30, 100, 20, 17, seed=1),
    pair(60, 40, 3, 1, seed=2),
    pair(5, 60, 20, 9, seed=3),  # too little in common to share
    pair(40, 0, 20, 12, seed=4),  # no history
    pair(0, 90, 1, 30, seed=5),
    pair(50, 1, 1, 2, seed=6),
]


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """Flex attention without a compiler."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def largest_difference(model: Any, strategy: Strategy) -> float:
    with torch.inference_mode():
        expected = [branch_states(model, [one], "plain")[0] for one in PAIRS]
        got = branch_states(model, PAIRS, strategy)
    return max(
        float((one - other).abs().max())
        for both, others in zip(got, expected, strict=True)
        for one, other in zip(both, others, strict=True)
    )


@pytest.mark.parametrize("strategy", ["reuse", "packed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_equal_those_of_plain_passes(family: str, strategy: Strategy) -> None:
    assert largest_difference(small_model(family), strategy) < 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_many_examples_as_trees_in_one_row(family: str, uncompiled: None) -> None:
    model = small_model(family)
    model.set_attn_implementation("flex_attention")
    assert largest_difference(model, "tree") < 1e-5


def test_windows_that_drop_the_beginning_are_noticed_example_by_example() -> None:
    assert largest_difference(small_model("mistral", sliding_window=48), "reuse") < 1e-5
    assert largest_difference(small_model("gemma2", sliding_window=48), "reuse") < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_on_a_cpu_the_beginning_is_reused(family: str) -> None:
    assert best_strategy(small_model(family)) == "reuse"


def test_a_model_without_keys_and_values_goes_the_plain_way_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert best_strategy(small_model("mamba")) == "plain"
    assert "the shared prefix cannot be computed once" in caplog.text


def test_a_model_whose_cache_lies_goes_the_plain_way(caplog: pytest.LogCaptureFixture) -> None:
    """A model that ignores what it is given to remember: every later token would see too little."""
    model = small_model("qwen2")
    forward = model.model.forward

    def forgetful(*args: Any, past_key_values: Any = None, **others: Any) -> Any:
        return forward(*args, **others)

    model.model.forward = forgetful
    assert best_strategy(model) == "plain"
    assert "differ from those of plain forward passes" in caplog.text


@pytest.mark.parametrize("through", [True, False])
@pytest.mark.parametrize("strategy", ["reuse", "packed", "plain"])
def test_gradients_equal_those_of_plain_passes(strategy: Strategy, through: bool) -> None:
    """Through both branches and the beginning that they share, or through the factual one alone."""
    model = small_model("qwen2")
    gradients = []
    for how in ("plain", strategy):
        both = branch_states(model, PAIRS, how, through=through)
        loss = sum((factual * 2 - other).square().sum() for factual, other in both)
        gradients.append(torch.autograd.grad(loss, list(model.model.layers.parameters())))
        assert all(other.requires_grad == through for _, other in both)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_layers_with_windows_do_not_go_into_a_tree(uncompiled: None) -> None:
    model = small_model("mistral", sliding_window=48)
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match="window"), torch.inference_mode():
        branch_states(model, PAIRS, "tree")


def test_the_beginning_never_holds_a_token_that_predicts_an_answer() -> None:
    assert shared_prefix(pair(30, 10, 5, 3)) == 30
    assert shared_prefix(pair(30, 0, 0, 3)) == 29
    assert shared_prefix(pair(15, 10, 5, 3)) == 0  # not worth it
    assert shared_prefix(pair(30, 10, 0, 3)) == 29  # the prompt without history is the beginning of the other


def test_computed_tokens_by_hand() -> None:
    one = pair(30, 100, 20, 17)  # reads 16 answer tokens
    assert computed_tokens(one, "plain") == (150 + 16) + (50 + 16)
    assert computed_tokens(one, "reuse") == (150 + 16) + (20 + 16)
    assert computed_tokens(pair(40, 0, 20, 12)) == 60 + 11


@pytest.mark.filterwarnings("ignore")
def test_a_tree_gives_the_states_of_plain_passes_on_each_device(device: str, request: pytest.FixtureRequest) -> None:
    """On an accelerator the attention of the tree is compiled; without a compiler it would need the whole matrix."""
    if device == "cpu":
        request.getfixturevalue("uncompiled")
    model = small_model("qwen2").to(device)
    model.set_attn_implementation("flex_attention")
    assert largest_difference(model, "tree") < (1e-5 if device == "cpu" else 1e-3)

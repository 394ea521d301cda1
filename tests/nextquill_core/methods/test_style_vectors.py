"""Style vectors: by hand, beside a model that is cut open after a layer, in batches, and in decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nextquill_core.errors import ModelError
from nextquill_core.evaluation.likelihood import individual_logps
from nextquill_core.generation.decoding import GREEDY
from nextquill_core.generation.engines import Request
from nextquill_core.generation.local_engine import TransformersEngine
from nextquill_core.methods.style_vectors import (
    blocks_of,
    last_states,
    layer_at,
    style_differences,
    style_vector,
    styled,
    without_stop,
)
from nextquill_core.tokens import TokenPair
from tests.models import VOCABULARY, small_model
from tests.nextquill_core.generation.spelling import Numbers
from tests.nextquill_core.model.test_forward import pair

FAMILIES = ("qwen2", "llama", "gpt2")
SIZE = 32


def vector(seed: int) -> Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))


def alone(text: str, target: list[int]) -> TokenPair:
    return TokenPair(text, [5, 9, 2], [5, 9, 2], target)


def upper_half(model: Any) -> Any:
    """A model of one layer: the second of two, with the same norm and head."""
    upper = small_model("qwen2", num_hidden_layers=1)
    upper.model.layers[0].load_state_dict(model.model.layers[1].state_dict())
    upper.model.norm.load_state_dict(model.model.norm.state_dict())
    upper.lm_head.weight = model.lm_head.weight
    return upper


def cut_open(model: Any, prompt: list[int], answer: list[int], added: Tensor) -> Tensor:
    """Logits of prompt and answer, of which those that predict the answer have the vector after the first layer."""
    with torch.no_grad():
        states = model(torch.tensor([prompt + answer]), output_hidden_states=True).hidden_states[1]
        states[:, len(prompt) - 1 :] += added
        logits: Tensor = upper_half(model)(inputs_embeds=states).logits[0]
    return logits


@pytest.mark.parametrize(
    ("depth", "layers", "layer"), [(0.5, 2, 1), (0.75, 2, 2), (0.5, 36, 18), (0.75, 30, 23), (1.0, 3, 3), (0.01, 3, 1)]
)
def test_a_depth_is_a_layer(depth: float, layers: int, layer: int) -> None:
    assert layer_at(depth, layers) == layer


def test_the_vector_is_the_mean_of_what_is_known() -> None:
    one, other = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -2.0]])
    assert style_vector([one, None, other], (1, 2)).tolist() == [[2.0, 0.0]]
    assert style_vector([None], (1, 2)).tolist() == [[0.0, 0.0]]
    assert style_vector([], (2, 3)).shape == (2, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_the_last_token_after_each_layer(family: str) -> None:
    model, pairs = small_model(family), [pair(12, 0, 3, 6, seed=1), pair(7, 0, 2, 3, seed=2)]
    found = [states.clone() for states in last_states(model, pairs, [1, 2])]
    assert not any(block._forward_hooks for block in blocks_of(model))
    for one, states in zip(pairs, found, strict=True):
        with torch.no_grad():
            whole = model(torch.tensor([one.factual + one.target]), output_hidden_states=True)
            assert torch.equal(states[0], whole.hidden_states[1][0, -1])
            norm = model.model.norm if family != "gpt2" else model.transformer.ln_f
            torch.testing.assert_close(norm(states[1]), whole.hidden_states[2][0, -1], atol=1e-6, rtol=0)


def test_differences_by_hand_and_without_empty_texts() -> None:
    model = small_model("qwen2")
    own, neutral = (
        [alone("a", [4, 7]), alone("b", []), alone("c", [3])],
        [alone("a", [8]), alone("b", [1]), alone("c", [])],
    )
    found = style_differences(model, own, neutral, [1])
    with torch.no_grad():
        mine, other = (
            model(torch.tensor([[5, 9, 2, *ids]]), output_hidden_states=True).hidden_states[1][0, -1]
            for ids in ([4, 7], [8])
        )
    assert found[0] is not None
    torch.testing.assert_close(found[0], (mine - other)[None], atol=1e-6, rtol=0)
    assert found[1:] == [None, None]
    assert without_stop(alone("a", [4, 0]), 0).target == [4]
    assert without_stop(alone("a", [4, 7]), 0).target == [4, 7], "an answer that was cut has none"


def test_a_row_has_its_own_vector_in_any_batch() -> None:
    model, ids = small_model("qwen2"), torch.arange(30).reshape(3, 10) * 7 % VOCABULARY
    vectors = {"ann": vector(1), "bob": vector(2)}
    with torch.inference_mode():
        plain = model(ids).logits
        with styled(model, 1, vectors) as adding:
            assert torch.equal(adding(ids).logits, plain), "no vector is selected"
            mixed = adding(input_ids=ids, adapter_names=["ann", "__base__", "bob"]).logits
            assert not any(value.requires_grad for value in vectors.values())
        assert torch.equal(model(ids).logits, plain), "the base model is as before"
    for row, name in enumerate(("ann", None, "bob")):
        prompt, added = ids[row].tolist(), vectors[name] if name else torch.zeros(SIZE)
        expected = cut_open(model, prompt, [], added)
        torch.testing.assert_close(mixed[row, -1], expected[-1], atol=1e-5, rtol=0)
        torch.testing.assert_close(mixed[row, :-1], plain[row, :-1], atol=1e-5, rtol=0)


def test_after_the_last_layer_it_is_the_head_of_the_sum() -> None:
    model, ids, added = small_model("qwen2"), torch.tensor([[5, 9, 2, 4]]), vector(3)
    (states,) = last_states(model, [TokenPair("a", ids[0].tolist(), [], [])], [2])
    with torch.inference_mode(), styled(model, 2, {"ann": added}) as adding:
        found = adding(input_ids=ids, adapter_names=["ann"]).logits[0, -1]
        expected = model.lm_head(model.model.norm(states[0] + added))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_decoding_adds_the_vector_at_every_token() -> None:
    """Three answers in one batch, against a loop that runs prompt and answer from the start for each token."""
    model, tokenizer = small_model("qwen2"), Numbers()
    vectors = {"ann": 2 * vector(1), "bob": 2 * vector(2)}
    prompts = {"ann": [5, 9, 2, 44, 8], "bob": [7, 3], "": [5, 9, 2, 44, 8]}
    with styled(model, 1, vectors) as adding:
        engine = TransformersEngine(adding, tokenizer, GREEDY, max_new_tokens=6, batch_tokens=1000)
        answers = engine.generate(
            [Request(name or "none", prompt, adapter=name or None) for name, prompt in prompts.items()]
        )
    texts = []
    for name, prompt in prompts.items():
        written: list[int] = []
        while len(written) < 6:
            token = int(cut_open(model, prompt, written, vectors.get(name, torch.zeros(SIZE)))[-1].argmax())
            if token == 0:
                break
            written.append(token)
        texts.append(tokenizer.decode(written))
    assert [answer.text for answer in answers] == texts
    assert texts[0] != texts[2], "the vector changes the answer"


def test_likelihoods_are_those_of_the_distribution_that_decodes() -> None:
    model, pairs = small_model("qwen2"), [pair(12, 0, 3, 6, seed=1), pair(7, 0, 2, 3, seed=2), pair(9, 0, 2, 4, seed=3)]
    vectors = {one.example_id: vector(place % 2) for place, one in enumerate(pairs)}
    with styled(model, 1, vectors) as adding:
        found = individual_logps(adding, pairs, 64)
    for one, logps in zip(pairs, found, strict=True):
        logits = cut_open(model, one.factual, one.target[:-1], vectors[one.example_id])[len(one.factual) - 1 :]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(one.target)[:, None])[:, 0]
        torch.testing.assert_close(logps, expected, atol=1e-5, rtol=0)


def test_a_model_without_a_list_of_layers_is_refused() -> None:
    model = small_model("qwen2")
    model.config.num_hidden_layers = 5
    with pytest.raises(ModelError, match="no list of layers to add a style vector to; leave out `stylevector`"):
        blocks_of(model)

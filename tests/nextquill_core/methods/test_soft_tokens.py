"""Soft tokens: the difference by hand, the losses written out, one training step, and where the tokens stand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from nextquill_core.errors import ModelError
from nextquill_core.evaluation.likelihood import individual_logps
from nextquill_core.generation.decoding import GREEDY, PAPER
from nextquill_core.generation.engines import Request
from nextquill_core.generation.local_engine import TransformersEngine
from nextquill_core.methods import soft_tokens as soft_tokens_module
from nextquill_core.methods.soft_tokens import (
    SoftModel,
    SoftTokens,
    SoftTraining,
    _optimizer,
    difference,
    place_of,
    soft_tokens_of,
    train_soft_tokens,
    with_placeholders,
)
from nextquill_core.model.checkpoint import Checkpoint
from nextquill_core.tokens import TokenPair
from tests.models import small_model
from tests.nextquill_core.generation.spelling import Numbers
from tests.nextquill_core.model.test_forward import pair

SIZE, HIDDEN, PLACE = 6, 32, 2
LARGE: dict[str, Any] = {"initializer_range": 0.3, "tie_word_embeddings": False}
"""Weights with which a prompt matters: a tied head with small ones repeats the last token."""
PAIRS = [pair(12, 0, 3, 6, seed=1), pair(7, 0, 2, 3, seed=2), pair(5, 0, 2, 3, seed=4)]
SETTINGS = SoftTraining(epochs=1, learning_rate=1e-3, seed=3)


def vectors(seed: int, reviews: int = 2, size: int = SIZE) -> Tensor:
    return torch.randn(2, reviews, size, generator=torch.Generator().manual_seed(seed))


def test_the_difference_by_hand() -> None:
    """Profiles at the distances 1 and 3: the weights are softmax(1/4, 3/4), which is 1 and √e to their sum."""
    own, others = torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    found = difference(own, others, torch.tensor([0.0, 0.0]), torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    far = math.sqrt(math.e) / (1 + math.sqrt(math.e))
    assert found.tolist() == pytest.approx([1 - far, -2 * far])
    equal = difference(own, others, torch.zeros(2), torch.zeros(2, 2))
    assert equal.tolist() == pytest.approx([0.5, -1.0]), "users at the same distance count the same"
    assert difference(own, others[:1], torch.zeros(2), torch.ones(1, 2)).tolist() == [1.0, 0.0]


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def test_tokens_and_losses_are_the_formulas_written_out() -> None:
    soft, inputs = SoftTokens(SIZE, HIDDEN, seed=5), vectors(1, 3)
    state = {name: value.double() for name, value in soft.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in state.items() if name.startswith(("enc", "dec", "of_r"))} == {
        "encoder.0.weight": (3, 6), "encoder.0.bias": (3,), "decoder.0.weight": (6, 3), "decoder.0.bias": (6,),
        "of_review.0.weight": (32, 3), "of_review.0.bias": (32,), "of_review.2.weight": (32, 32),
        "of_review.2.bias": (32,),
    }  # fmt: skip
    assert all(not value.any() for name, value in state.items() if name.endswith("bias"))

    def layer(name: str, x: list[float]) -> list[float]:
        weight, bias = state[f"{name}.weight"].tolist(), state[f"{name}.bias"].tolist()
        return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]

    features, errors, tokens = [], [], []
    for row in inputs.double().flatten(0, 1).tolist():
        z = [gelu(value) for value in layer("encoder.0", row)]
        restored = [gelu(value) for value in layer("decoder.0", z)]
        features.append(z)
        for one, other in zip(row, restored, strict=True):
            gap = abs(one - other)
            errors.append(0.5 * gap**2 if gap < 1 else gap - 0.5)
        part = "of_review" if len(features) <= 3 else "of_difference"
        tokens.append(layer(f"{part}.2", [gelu(value) for value in layer(f"{part}.0", z)]))
    means = [min(max(sum(column) / 6, 1e-6), 1 - 1e-6) for column in zip(*features, strict=True)]
    kl = [0.05 * math.log(0.05 / mean) + 0.95 * math.log(0.95 / (1 - mean)) for mean in means]
    found, loss = soft(inputs)
    torch.testing.assert_close(found, torch.tensor(tokens).float(), atol=1e-5, rtol=0)
    assert loss.item() == pytest.approx(sum(errors) / len(errors) + 1e-3 * sum(kl) / len(kl), abs=1e-5)


def test_where_soft_tokens_stand() -> None:
    assert place_of([7, 8, 5, 1], [7, 8, 6, 1]) == 2
    assert place_of([5], [6]) == 0
    one = TokenPair("a", [7, 8, 5, 9], [7, 9], [1])
    assert with_placeholders(one, 2, 3) == TokenPair("a", [7, 8, 9, 9, 9, 5, 9], [7, 9], [1])
    assert with_placeholders(one, 2, 0) == one


def logits_with(model: Any, ids: list[int], tokens: Tensor, place: int = PLACE) -> Tensor:
    """Logits of a prompt with soft tokens, from one pass over embeddings that are put together here."""
    with torch.no_grad():
        embedded = model.get_input_embeddings()(torch.tensor(ids))
        whole = torch.cat([embedded[:place], tokens, embedded[place:]])
        logits: Tensor = model(inputs_embeds=whole[None]).logits[0]
    return logits


def soft_tokens(seed: int, count: int = 4) -> Tensor:
    return 0.5 * torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("preset", [GREEDY, PAPER])
def test_decoding_reads_each_user_s_tokens(preset: Any) -> None:
    """Prompts of different lengths in one batch, against a loop that begins again for each token."""
    model, tokenizer = small_model("qwen2", **LARGE), Numbers()
    tokens = {"ann": soft_tokens(1), "bob": soft_tokens(2, 6), "new": torch.zeros(0, HIDDEN)}
    prompts = {"ann": [5, 9, 2, 44, 8, 17, 3], "bob": [7, 3, 31], "new": [5, 9, 2, 44, 8, 17, 3]}
    soft = SoftModel(model, tokens, PLACE).eval()
    pairs = {name: soft.prepared(TokenPair(name, prompt, prompt, [1])) for name, prompt in prompts.items()}
    engine = TransformersEngine(soft, tokenizer, preset, max_new_tokens=5, batch_tokens=1000)
    answers = engine.generate([Request(name, one.factual, adapter=name) for name, one in pairs.items()])
    texts = []
    for name, prompt in prompts.items():
        written: list[int] = []
        while len(written) < 5:
            scores = logits_with(model, prompt + written, tokens[name])[-1]
            for seen in {*prompt, *written}:
                penalty = preset.repetition_penalty
                scores[seen] = scores[seen] * penalty if scores[seen] < 0 else scores[seen] / penalty
            token = int(scores.argmax())
            if token == 0:
                break
            written.append(token)
        texts.append(tokenizer.decode(written))
    assert [answer.text for answer in answers] == texts
    assert texts[0] != texts[2], "soft tokens change the answer"


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_likelihoods_are_those_of_the_distribution_that_decodes(family: str) -> None:
    """The positions of GPT-2 are learned, and read the soft tokens too."""
    model, pairs = small_model(family), [pair(12, 0, 3, 6, seed=1), pair(7, 0, 2, 3, seed=2), pair(9, 0, 2, 4, seed=3)]
    tokens = {one.example_id: soft_tokens(place, 2 * place) for place, one in enumerate(pairs)}
    soft = SoftModel(model, tokens, PLACE).eval()
    found = individual_logps(soft, [soft.prepared(one) for one in pairs], 64)
    for one, logps in zip(pairs, found, strict=True):
        logits = logits_with(model, one.factual + one.target[:-1], tokens[one.example_id])[-len(one.target) :]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(one.target)[:, None])[:, 0]
        torch.testing.assert_close(logps, expected, atol=1e-5, rtol=0)


def test_one_step_beside_a_loop_written_out() -> None:
    model, pairs = small_model("qwen2"), [pair(12, 0, 3, 6, seed=1), pair(7, 0, 2, 3, seed=2)]
    inputs = {one.example_id: vectors(place, 1 + place) for place, one in enumerate(pairs)}
    soft, curve = train_soft_tokens(model, pairs, inputs, PLACE, SETTINGS)
    assert len(curve) == 1
    other = SoftTokens(SIZE, HIDDEN, seed=3)
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-3, weight_decay=0.0)
    answers, autoencoders = [], []
    for one in pairs:
        tokens, autoencoder = other(inputs[one.example_id])
        embedded = model.get_input_embeddings()(torch.tensor(one.factual + one.target[:-1])).detach()
        whole = torch.cat([embedded[:PLACE], tokens, embedded[PLACE:]])
        logits = model(inputs_embeds=whole[None]).logits[0, -len(one.target) :]
        answers.append(F.cross_entropy(logits, torch.tensor(one.target)))
        autoencoders.append(autoencoder)
    loss = sum(answers) / 2 + 100 * sum(autoencoders) / 2
    loss.backward()
    norm = torch.stack([value.grad.norm() for value in other.parameters() if value.grad is not None]).norm()
    for value in other.parameters():
        assert value.grad is not None
        value.grad *= min(1.0, float(1.0 / norm))
    optimizer.param_groups[0]["lr"] = 1e-3 / 2  # one step of warm-up, which is the whole run
    with torch.no_grad():
        for name, value in other.named_parameters():
            value *= 1 if name.endswith("bias") else 1 - 1e-3 / 2 * 0.025
    optimizer.step()
    assert curve[0]["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert curve[0]["answer"] == pytest.approx(float(sum(answers) / 2), rel=1e-5)
    for (name, ours), theirs in zip(soft.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-3, msg=name)


def test_weights_decay_and_biases_do_not() -> None:
    """A step without gradients is the decay alone: w ← w · (1 − 0.1 · 0.025), and biases stay."""
    soft = SoftTokens(SIZE, HIDDEN, seed=5)
    with torch.no_grad():
        for value in soft.parameters():
            value.fill_(1.0)
            value.grad = torch.zeros_like(value)
    _optimizer(soft, 0.1).step()
    decayed = {name: value.unique().tolist() for name, value in soft.named_parameters()}
    assert len(decayed) == 12
    assert all(found == pytest.approx([1.0 if "bias" in name else 0.9975]) for name, found in decayed.items())


@pytest.mark.parametrize(("killed_at", "kept"), [(1, 0), (3, 2), (4, 3), (9, 8), (12, 11), (13, 12)])
def test_an_interrupted_training_resumes_and_ends_in_the_same_bytes(
    killed_at: int, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four epochs of two steps, of two examples and one: 2, 3, 5, 6, 8, 9, 11 and 12 examples are whole steps."""
    monkeypatch.setattr(soft_tokens_module, "GLOBAL_BATCH", 2)
    model = small_model("qwen2", **LARGE)
    inputs = {one.example_id: vectors(place, 1 + place) for place, one in enumerate(PAIRS)}
    settings = SoftTraining(epochs=4, learning_rate=5e-3, seed=1)

    def train(name: str, advance: Callable[[int], None]) -> tuple[bytes, list[dict[str, float]]]:
        checkpoint = Checkpoint(tmp_path / name, every_s=0.0)
        soft, curve = train_soft_tokens(model, PAIRS, inputs, PLACE, settings, advance=advance, checkpoint=checkpoint)
        return save(soft.state_dict()), curve

    seen: list[int] = []

    def interrupt(count: int) -> None:
        seen.append(count)
        if sum(seen) == killed_at:
            raise KeyboardInterrupt

    whole = train("whole", lambda count: None)
    with pytest.raises(KeyboardInterrupt):
        train("parts", interrupt)
        raise KeyboardInterrupt  # after the last step, before the artifact is written
    torch.manual_seed(99)  # another process has other random numbers
    heard: list[int] = []
    assert train("parts", heard.append) == whole
    assert len(whole[1]) == 8
    assert (heard[0], sum(heard)) == (kept, 12), "steps that the checkpoint holds are not trained again"


def test_training_learns_the_answers_and_leaves_the_model_as_it_was() -> None:
    model, pairs = small_model("qwen2", **LARGE), PAIRS
    next(model.parameters()).requires_grad_(False)
    before = [(name, value.clone(), value.requires_grad) for name, value in model.named_parameters()]
    inputs = {one.example_id: vectors(place, place % 2 + place // 2) for place, one in enumerate(pairs)}
    heard: list[int] = []
    settings = SoftTraining(epochs=30, learning_rate=5e-3, seed=1)
    soft, curve = train_soft_tokens(model, pairs, inputs, PLACE, settings, advance=heard.append)
    assert sum(heard) == 60, "the first example has no compared review"
    assert curve[-1]["answer"] < curve[0]["answer"] - 0.1
    assert curve[-1]["autoencoder"] < curve[0]["autoencoder"]
    after = list(model.named_parameters())
    for (name, value, grad), (_, now) in zip(before, after, strict=True):
        assert torch.equal(value, now), name
        assert (now.requires_grad, now.grad) == (grad, None)
    again, _ = train_soft_tokens(model, pairs, inputs, PLACE, settings)
    assert all(torch.equal(one, other) for one, other in zip(soft.parameters(), again.parameters(), strict=True))
    loaded = soft_tokens_of(soft.state_dict(), "the test")
    assert torch.equal(loaded(inputs[pairs[1].example_id])[0], soft(inputs[pairs[1].example_id])[0])
    assert loaded.no_tokens().shape == (0, HIDDEN)


def test_what_cannot_be_trained_says_so() -> None:
    model, one = small_model("qwen2"), pair(12, 0, 3, 6, seed=1)
    with pytest.raises(ModelError, match="method dep: no train example has a past review whose item another user"):
        train_soft_tokens(model, [one], {one.example_id: torch.zeros(2, 0, SIZE)}, PLACE, SETTINGS)
    with pytest.raises(ModelError, match=r"model\.dtype: soft tokens are not trained in float16"):
        train_soft_tokens(small_model("qwen2").half(), [one], {one.example_id: vectors(1)}, PLACE, SETTINGS)
    broken = {one.example_id: vectors(1) * math.nan}
    with pytest.raises(ModelError, match="the loss or gradient of step 1 is not finite"):
        train_soft_tokens(model, [one], broken, PLACE, SETTINGS)
    with pytest.raises(ModelError, match="it: holds no soft tokens"):
        soft_tokens_of({"a": torch.zeros(1)}, "it")

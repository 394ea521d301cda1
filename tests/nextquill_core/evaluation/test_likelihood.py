"""Likelihoods of the true answers against full logits, one sample alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from nextquill_core.evaluation.likelihood import (
    SteeredScorer,
    answer_logps,
    contrasted_logps,
    personal_logps,
    steered_logps,
)
from nextquill_core.generation.decoding import COPE, Contrast
from nextquill_core.methods.personal_adapters import (
    PersonalTraining,
    adapter_name,
    train_personal,
    with_personal_adapters,
)
from nextquill_core.model import head as heads
from nextquill_core.model.head import Head, head_of
from nextquill_core.tokens import TokenPair
from tests.models import FAMILIES, VOCABULARY, oracle, small_model
from tests.nextquill_core.model.test_forward import PAIRS, pair

WITHOUT_HISTORY = pair(40, 0, 20, 12, seed=4)


def close(got: list[Tensor], expected: list[Tensor], atol: float = 1e-5) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=atol, rtol=0)


def family_model(family: str) -> Any:
    """One of the families, or a Qwen2 whose head has a bias, or one that scales its logits."""
    if family == "biased":
        model = small_model("qwen2", tie_word_embeddings=False)
        model.lm_head = torch.nn.Linear(32, VOCABULARY)
        return model
    return small_model(family, logit_scale=0.25) if family == "cohere" else small_model(family)


def steered(model: Any, pairs: Sequence[TokenPair], strength: float) -> list[Tensor]:
    return [found[0] for found in steered_logps(model, pairs, [strength], 300)]


def steered_oracle(model: Any, one: TokenPair, strength: float) -> Tensor:
    """Distributions of both branches from whole logits, combined and normalised again."""
    with torch.no_grad():
        with_history, without = (
            model(torch.tensor([prompt + one.target])).logits[0, len(prompt) - 1 : -1].double().log_softmax(1)
            for prompt in (one.factual, one.counterfactual)
        )
    steered = (with_history + strength * (with_history - without)).log_softmax(1)
    return steered.gather(1, torch.tensor(one.target)[:, None]).squeeze(1).float()


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_behind_the_history(family: str) -> None:
    model = small_model(family)
    done: list[int] = []
    close(answer_logps(model, PAIRS, 300, done.append), [oracle(model, one.factual, one.target) for one in PAIRS])
    assert sum(done) == len(PAIRS)
    assert len(done) > 1  # it counts pass by pass


@pytest.mark.parametrize("strength", [-1.0, 0.0, 0.5, 3.0])
@pytest.mark.parametrize("family", [*FAMILIES, "biased", "cohere"])
def test_steering_against_whole_distributions(family: str, strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(heads.BLOCK, "cpu", (7, 90))
    model = family_model(family)
    head = head_of(model)
    assert (head.softcap, head.bias_V is None, head.scale) == {
        "gemma2": (0.5, True, 1.0), "biased": (None, False, 1.0), "cohere": (None, True, 0.25)
    }.get(family, (None, True, 1.0))  # fmt: skip
    close(steered(model, PAIRS, strength), [steered_oracle(model, one, strength) for one in PAIRS])


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_at_0_the_model_with_history_and_at_minus_1_the_one_without(family: str) -> None:
    model = small_model(family)
    turned = [TokenPair(one.example_id, one.counterfactual, one.factual, one.target) for one in PAIRS]
    close(steered(model, PAIRS, 0.0), answer_logps(model, PAIRS, 300), atol=1e-6)
    close(steered(model, PAIRS, -1.0), answer_logps(model, turned, 300), atol=1e-6)
    stronger, plain = torch.cat(steered(model, PAIRS, 2.0)), torch.cat(answer_logps(model, PAIRS, 300))
    assert (stronger - plain).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_strengths_of_one_pass_change_nothing_in_each_other(family: str) -> None:
    model = small_model(family)
    together = steered_logps(model, PAIRS, [2.0, 0.0, 0.5], 300)
    for place, strength in enumerate([2.0, 0.0, 0.5]):
        assert all(
            torch.equal(found[place], alone)
            for found, alone in zip(together, steered(model, PAIRS, strength), strict=True)
        )


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_passes_change_nothing_that_those_beside_them_use(family: str) -> None:
    """A soft cap needs another head for each strength, and passes run in several threads."""
    scorer = SteeredScorer(small_model(family), 300, [2.0, 0.0])
    before = {name: id(value) for name, value in vars(scorer).items()}
    scorer.score(PAIRS)
    assert {name: id(value) for name, value in vars(scorer).items()} == before


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_a_user_without_history_is_not_steered(family: str) -> None:
    model = small_model(family)
    expected = [oracle(model, WITHOUT_HISTORY.factual, WITHOUT_HISTORY.target)]
    close(steered(model, [WITHOUT_HISTORY], 3.0), expected)


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_probabilities_of_all_tokens_add_up_to_one(family: str) -> None:
    with_history, without = [*range(2, 20), 1, *range(30, 35)], [*range(2, 20), *range(30, 35)]
    pairs = [TokenPair(str(token), with_history, without, [token]) for token in range(40)]
    model = small_model(family, vocab_size=40)
    total = torch.cat(steered(model, pairs, 2.0)).double().exp().sum()
    assert abs(float(total) - 1) < 1e-5


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_no_logits_of_the_whole_vocabulary(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(heads.BLOCK, "cpu", (5, 64))
    seen: list[torch.Size] = []
    logits = Head.logits

    def spy(*args: Any) -> Tensor:
        found = logits(*args)
        seen.append(found.shape)
        return found

    monkeypatch.setattr(Head, "logits", spy)
    steered(small_model(family), PAIRS, 1.0)
    assert seen
    assert max(rows for rows, _ in seen) == 5
    assert max(columns for _, columns in seen) == 64


@contextmanager
def of_two_users(model: Any) -> Iterator[Any]:
    """Yield the model with trained adapters of the users a and b."""
    spec = PersonalTraining(learning_rate=2e-2)
    adapters = train_personal(model, {"a": PAIRS[:2], "b": PAIRS[2:4]}, spec, batch_tokens=500)
    with with_personal_adapters(model, adapters, spec) as adapted:
        yield adapted


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_each_example_with_its_own_adapter(family: str) -> None:
    model = small_model(family)
    base = [oracle(model, one.factual, one.target) for one in PAIRS]
    owners = ["a", None, "b", "a", "b", None]
    with of_two_users(model) as adapted:
        expected = []
        for one, owner in zip(PAIRS, owners, strict=True):
            adapted.set_adapter(adapter_name(owner) if owner else "empty")
            expected.append(oracle(adapted, one.factual, one.target))
        adapted.set_adapter(adapter_name("a"))
        names = [adapter_name(owner) if owner else None for owner in owners]
        close(personal_logps(adapted, PAIRS, names, 300), expected)
        assert adapted.active_adapter == adapter_name("a")
        close(answer_logps(adapted, PAIRS[3:4], 300), expected[3:4])
    changed = [float((one - other).abs().max()) > 1e-3 for one, other in zip(expected, base, strict=True)]
    assert changed == [owner is not None for owner in owners]


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "gpt2", "biased"])
def test_an_adapter_contrasted_with_the_base_against_whole_distributions(family: str) -> None:
    owners = ["a", "a", "b", "a", "b", "b"]
    expected, plain = [], []
    with of_two_users(family_model(family)) as adapted:
        for one, owner in zip(PAIRS, owners, strict=True):
            adapted.set_adapter(adapter_name(owner))
            with torch.no_grad():
                ids, span = torch.tensor([one.factual + one.target]), slice(len(one.factual) - 1, -1)
                user = adapted(ids).logits[0, span].double().log_softmax(1)
                with adapted.disable_adapter():
                    task = adapted(ids).logits[0, span].double().log_softmax(1)
            target = torch.tensor(one.target)[:, None]
            expected.append((user - 0.1 * task).log_softmax(1).gather(1, target).squeeze(1).float())
            plain.append(user.gather(1, target).squeeze(1).float())
        adapted.set_adapter(adapter_name("b"))
        names = [adapter_name(owner) for owner in owners]
        close(contrasted_logps(adapted, PAIRS, names, COPE, 300), expected)
        close(contrasted_logps(adapted, PAIRS, names, Contrast(1.0, 0.0), 300), plain)
        assert adapted.active_adapter == adapter_name("b")
        assert not any(parameter.requires_grad for parameter in adapted.parameters())
    assert (torch.cat(expected) - torch.cat(plain)).abs().max() > 1e-2


def test_the_attention_of_the_model_is_restored() -> None:
    model = small_model("qwen2", attn_implementation="eager")
    changed: list[str] = []

    def change(*_: object) -> None:
        model.set_attn_implementation("sdpa")  # as the scorer does with another one on a GPU
        changed.append(model.config._attn_implementation)

    model.model.register_forward_hook(change)
    answer_logps(model, PAIRS, 300)
    assert model.config._attn_implementation == "eager"
    assert set(changed) == {"sdpa"}


def test_attention_kernels_agree_to_rounding() -> None:
    """`model.attention` decides how the sums are computed, and no fingerprint holds it."""
    eager, sdpa = (small_model("qwen2", attn_implementation=kernel) for kernel in ("eager", "sdpa"))
    sdpa.load_state_dict(eager.state_dict())
    close(answer_logps(sdpa, PAIRS, 300), answer_logps(eager, PAIRS, 300))

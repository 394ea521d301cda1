"""Personal adapters: each user alone and from scratch, the base untouched, many users in one batch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nextquill_core.errors import ModelError
from nextquill_core.methods import personal_adapters as personal
from nextquill_core.methods.personal_adapters import (
    PersonalTraining,
    adapter_name,
    check_stored,
    load_adapters,
    merge_adapter,
    review_examples,
    save_adapters,
    train_personal,
    with_personal_adapters,
)
from nextquill_core.schemas import Example
from nextquill_core.tokens import PairEncoder, TokenPair
from tests.conftest import review
from tests.models import VOCABULARY, lora_model, oracle, small_model
from tests.nextquill_core.model.test_forward import pair

SPEC = PersonalTraining(r=4, alpha=8, learning_rate=2e-2, epochs=2, global_batch=3)
IDS = torch.arange(40).reshape(4, 10) * 7 % VOCABULARY


def past(user: int, reviews: int = 5) -> list[TokenPair]:
    """A user's own reviews as random ids, without history."""
    return [pair(12 + number, 0, 3, 6 + 3 * number, seed=100 * user + number) for number in range(reviews)]


USERS = {"a@x.org": past(1), "keys": past(2, 2), "C:b/2:7": past(3)}


def train(model: Any, users: Mapping[str, list[TokenPair]], spec: PersonalTraining = SPEC, tokens: int = 60) -> Any:
    return train_personal(model, users, spec, batch_tokens=tokens)


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_past_reviews_become_something_to_write() -> None:
    example = Example("C:u1:7", "u1", "C", "test", review(7), (review(1), review(2)))
    first, second = review_examples(example)
    assert first == Example("C:u1:7#0", "u1", "C", "test", review(1), ())
    assert (second.example_id, second.target, second.history) == ("C:u1:7#1", review(2), ())
    assert review_examples(replace(example, history=())) == []


def test_a_user_depends_on_nobody_and_two_runs_give_the_same_bytes() -> None:
    model = small_model("qwen2")
    first = train(model, USERS)
    backwards = train(model, dict(reversed(USERS.items())))
    alone = train(small_model("qwen2"), {"keys": USERS["keys"]})
    assert list(first) == list(USERS)
    assert all(same(first[key], backwards[key]) for key in USERS)
    assert same(first["keys"], alone["keys"])
    assert not same(first["keys"], first["a@x.org"])


def test_the_seed_and_the_user_decide_where_an_adapter_starts() -> None:
    model, unmoved = small_model("qwen2"), SPEC.model_copy(update={"epochs": 0})
    start = train(model, {"a": past(1), "b": past(1)}, unmoved)
    other = train(model, {"a": past(1)}, unmoved.model_copy(update={"seed": 1}))
    assert {name: tensor.shape for name, tensor in start["a"].items()} == {
        f"base_model.model.model.layers.{layer}.self_attn.{part}.weight": shape
        for layer in range(2)
        for part, shape in {
            "q_proj.lora_A": (4, 32),
            "q_proj.lora_B": (32, 4),
            "v_proj.lora_A": (4, 32),
            "v_proj.lora_B": (16, 4),
        }.items()
    }
    for name, tensor in start["a"].items():
        if "lora_B" in name:
            assert not tensor.any()
            continue
        assert not torch.equal(tensor, start["b"][name])
        assert not torch.equal(tensor, other["a"][name])
        assert 0.8 * 32**-0.5 < tensor.abs().max() <= 32**-0.5


def fingerprint(model: Any) -> Any:
    """Everything about a model that wrapping it could change."""
    return (
        [(name, type(module), module.training) for name, module in model.named_modules()],
        [(name, value.requires_grad, value.grad) for name, value in model.named_parameters()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        sorted(set(vars(model)) - {"_modules", "_parameters"}),
    )


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_the_base_is_left_as_it_was(family: str) -> None:
    model = small_model(family)
    next(model.parameters()).requires_grad_(False)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before, draws = fingerprint(model), torch.get_rng_state()

    @contextmanager
    def unchanged() -> Iterator[None]:
        yield
        assert fingerprint(model) == before
        assert same(weights, model.state_dict())
        assert torch.equal(torch.get_rng_state(), draws)

    with unchanged():
        adapters = train(model, USERS)
    with unchanged(), with_personal_adapters(model, adapters, SPEC):
        pass

    def stop(finished: int) -> None:
        raise InterruptedError

    with unchanged(), pytest.raises(InterruptedError):
        train_personal(model, USERS, SPEC, batch_tokens=60, advance=stop)
    with unchanged(), pytest.raises(InterruptedError), with_personal_adapters(model, adapters, SPEC):
        raise InterruptedError


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_training_against_a_loop_written_out(family: str) -> None:
    """Three steps over all five reviews at rates 1/2, 1 and 1/2 of the peak: one step of warm-up, then down to 0."""
    spec = SPEC.model_copy(update={"dropout": 0.0, "epochs": 3, "global_batch": 5, "weight_decay": 0.1})
    reviews, name = past(1), adapter_name("a")
    start = train(small_model(family), {"a": reviews}, spec.model_copy(update={"epochs": 0}))
    trained = train(small_model(family), {"a": reviews}, spec)["a"]

    with with_personal_adapters(small_model(family), start, spec) as model:
        model.set_adapter(name)
        loras = [(place, value) for place, value in model.named_parameters() if name in place]
        optimizer = torch.optim.AdamW([value for _, value in loras], weight_decay=0.1)
        for share in (0.5, 1.0, 0.5):
            logits = [model(torch.tensor([[*one.factual, *one.target]])).logits[0] for one in reviews]
            answers = torch.cat([row[-len(one.target) - 1 : -1] for row, one in zip(logits, reviews, strict=True)])
            loss = F.cross_entropy(answers, torch.tensor([token for one in reviews for token in one.target]))
            loss.backward()
            norm = torch.stack([value.grad.norm() for _, value in loras]).norm()
            for _, value in loras:
                value.grad *= min(1.0, float(0.3 / norm))
            optimizer.param_groups[0]["lr"] = share * spec.learning_rate
            optimizer.step()
            optimizer.zero_grad()
        for place, value in loras:
            ours = trained[place.replace(f".{name}.", ".")]
            torch.testing.assert_close(ours, value.detach(), atol=2e-5, rtol=1e-3)
            assert not torch.equal(ours, start["a"][place.replace(f".{name}.", ".")])


def test_micro_batches_change_nothing_but_rounding() -> None:
    model = small_model("qwen2")
    small, large = (train(model, {"a": past(1)}, SPEC, tokens)["a"] for tokens in (1, 10_000))
    for name, tensor in small.items():
        torch.testing.assert_close(tensor, large[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma2", "gpt2"])
def test_a_user_learns_to_write_the_own_reviews(family: str) -> None:
    model, reviews = small_model(family), past(1, 3)
    adapters = train(model, {"a": reviews}, SPEC.model_copy(update={"epochs": 8, "max_grad_norm": 10.0}))
    before = sum(float(oracle(model, one.factual, one.target).sum()) for one in reviews)
    with with_personal_adapters(model, adapters, SPEC) as adapted:
        adapted.set_adapter(adapter_name("a"))
        after = sum(float(oracle(adapted, one.factual, one.target).sum()) for one in reviews)
    assert after > before + 1.0


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_a_row_of_a_mixed_batch_is_what_its_own_adapter_gives(family: str) -> None:
    model = small_model(family)
    adapters = train(model, USERS)
    with torch.inference_mode():
        base = model(IDS).logits
        alone = []
        for key in USERS:
            with with_personal_adapters(model, {key: adapters[key]}, SPEC) as adapted:
                assert torch.equal(adapted(IDS).logits, base)  # no adapter is selected
                adapted.set_adapter(adapter_name(key))
                alone.append(adapted(IDS).logits)
        names = [*(adapter_name(key) for key in USERS), "__base__"]
        with with_personal_adapters(model, adapters, SPEC) as adapted:
            together = adapted(IDS, adapter_names=names).logits
            texts = adapted.generate(IDS, adapter_names=names, max_new_tokens=5, do_sample=False)
        assert texts.shape == (4, 15)
    for row, expected in enumerate([*alone, base]):
        torch.testing.assert_close(together[row], expected[row], atol=1e-5, rtol=0)
    assert min(float((own[row] - base[row]).abs().max()) for row, own in enumerate(alone)) > 1e-3


def test_a_user_without_past_reviews_is_served_by_the_base() -> None:
    model = small_model("qwen2")
    adapters = train(model, {"new": [], "a": past(1)})
    assert same(adapters["a"], train(model, {"a": past(1)})["a"])
    assert not any(tensor.any() for name, tensor in adapters["new"].items() if "lora_B" in name)
    with torch.inference_mode(), with_personal_adapters(model, adapters, SPEC) as adapted:
        adapted.set_adapter(adapter_name("new"))
        assert torch.equal(adapted(IDS).logits, small_model("qwen2")(IDS).logits)
    assert train(model, {}) == {}
    with with_personal_adapters(model, {}, SPEC) as untouched:
        assert untouched is model


def test_many_users_share_one_base() -> None:
    model = small_model("qwen2")
    addresses = {value.data_ptr() for value in model.parameters()}
    adapter = train(model, {"a": []})["a"]
    with with_personal_adapters(model, {f"user {number}": adapter for number in range(256)}, SPEC) as adapted:
        loras = [value for name, value in adapted.named_parameters() if ".lora_" in name and "empty" not in name]
        others = {value.data_ptr() for name, value in adapted.named_parameters() if ".lora_" not in name}
        assert others == addresses
        assert sum(value.numel() for value in loras) == 256 * sum(value.numel() for value in adapter.values())
        assert not any(value.requires_grad for value in adapted.parameters())


def test_adapters_come_back_from_one_file(tmp_path: Path) -> None:
    model = small_model("qwen2")
    adapters = train(model, USERS)
    for name in ("one", "two"):
        save_adapters(tmp_path / name, adapters, SPEC)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    loaded, spec = load_adapters(tmp_path / "one")
    assert spec == SPEC
    assert loaded.keys() == USERS.keys()
    assert all(same(loaded[key], adapters[key]) for key in USERS)
    with safe_open(tmp_path / "one", framework="pt") as file:
        assert "keys/base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in file.keys()  # noqa: SIM118
        assert json.loads(file.metadata()["personal"])["targets"] == ["q_proj", "v_proj"]


def test_a_file_of_something_else_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not tensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "bare")
    for name in ("absent", "text", "bare"):
        with pytest.raises(ModelError, match=rf"{name}: holds no personal adapters \(.+\); train them again") as error:
            load_adapters(tmp_path / name)
        assert "\n" not in str(error.value)


def test_what_cannot_be_adapted_says_so() -> None:
    with pytest.raises(
        ModelError, match=r"no layers named q_proj and v_proj .* its linear layers are dt_proj, in_proj"
    ):
        train(small_model("mamba"), USERS)
    with pytest.raises(ModelError, match="no layers named c_attn and x"):
        train(small_model("gpt2"), USERS, SPEC.model_copy(update={"targets": ("c_attn", "x")}))
    with pytest.raises(ModelError, match=r"model\.dtype: personal adapters are not trained in float16"):
        train(small_model("qwen2").half(), USERS)
    adapters = train(small_model("qwen2"), {"a": []})
    for model in (small_model("gpt2"), small_model("qwen2", hidden_size=64), small_model("qwen2", num_hidden_layers=1)):
        with (
            pytest.raises(ModelError, match="the adapter of a is damaged or for another model"),
            with_personal_adapters(model, adapters, SPEC),
        ):
            pass


def test_a_gradient_that_is_not_finite_names_the_user() -> None:
    model = small_model("qwen2", tie_word_embeddings=False)
    model.model.embed_tokens.weight.data[1, 0] = float("inf")
    broken = TokenPair("b#0", [2, 1, 3], [2, 1, 3], [4, 5])
    with pytest.raises(ModelError, match="a gradient of bob is not finite"):
        train(model, {"ann": past(1), "bob": [broken]})


def test_half_precision_trains_in_single(tiny_tokenizer: Any, examples: list[Example]) -> None:
    encoder = PairEncoder(tiny_tokenizer, max_history=0, max_prompt_tokens=512, max_target_tokens=64)
    pairs = encoder.encode(review_examples(examples[5]))
    assert len(pairs) == 5
    model = small_model("qwen2", vocab_size=len(tiny_tokenizer)).bfloat16()
    adapter = train(model, {"a": pairs}, SPEC.model_copy(update={"learning_rate": 1e-5}))["a"]
    b = torch.cat([tensor.flatten() for name, tensor in adapter.items() if "lora_B" in name])
    assert b.dtype == torch.float32
    assert 0 < b.abs().max() < 1e-4
    assert (b.bfloat16().float() != b).any()
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}


def test_the_tasks_adapter_is_merged(tmp_path: Path) -> None:
    adapted = lora_model(small_model("qwen2")).eval()
    adapted.save_pretrained(tmp_path)
    base = small_model("qwen2")
    with torch.no_grad():
        plain, expected = base(IDS).logits, adapted(IDS).logits
        model = merge_adapter(base, tmp_path)
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=0)
    assert (expected - plain).abs().max() > 0.1
    assert not [name for name, _ in model.named_modules() if "lora" in name]
    assert len(train(model, USERS)) == 3
    with pytest.raises(ModelError, match="for another base model"):
        merge_adapter(small_model("qwen2", hidden_size=64), tmp_path)
    with pytest.raises(ModelError, match=r"there is no adapter_model\.safetensors"):
        merge_adapter(base, tmp_path / "absent")


class Bare:
    """A model that leaves every adapter out: what a wrong way of putting them in could do."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def set_adapter(self, name: str) -> None:
        """Change nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_adapters_are_read_back_before_they_count(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = {"no past": [], **USERS}
    model, path = small_model(family), tmp_path / "it.safetensors"
    adapters = train(model, users)
    before = fingerprint(model)
    save_adapters(path, adapters, SPEC)
    check_stored(model, path, adapters, users, SPEC)
    assert fingerprint(model) == before
    monkeypatch.setattr(personal, "with_personal_adapters", lambda model, adapters, spec: nullcontext(Bare(model)))
    with pytest.raises(ModelError, match=r"after loading, the adapter of a@x\.org gives log-likelihood -[\d.]+; in tr"):
        check_stored(model, path, adapters, users, SPEC)
    monkeypatch.undo()
    for change in (lambda t: t.add_(1e-4), lambda t: t.resize_(0)):
        changed = {key: {name: tensor.clone() for name, tensor in one.items()} for key, one in adapters.items()}
        change(next(iter(changed["keys"].values())))
        save_adapters(path, changed, SPEC)
        with pytest.raises(ModelError, match="the stored adapter of keys is not the trained one"):
            check_stored(model, path, adapters, users, SPEC)

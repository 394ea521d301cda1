"""The memory of micro-batches: what a token keeps, what fits, and a decision that a resumed run finds again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from nextquill_core.errors import ModelError, UserError
from nextquill_core.model.cpu import make_fast
from nextquill_core.tokens import TokenPair
from nextquill_core.training import budget, trainer
from nextquill_core.training.budget import Cost, loss_within_memory, measured_cost
from nextquill_core.training.data import TrainExample, micro_batches
from nextquill_core.training.losses import Denominators, PreferenceLoss, denominators, training_strategy
from nextquill_core.training.ranks import BUDGET, Budget, Writer, store_budget, stored_budget
from tests.models import lora_model, small_model
from tests.orders import changed, train_order

GB = 10**9


pytestmark = pytest.mark.usefixtures("alone")


def lora(family: str = "llama", dropout: float = 0.1, **settings: Any) -> Any:
    return make_fast(lora_model(small_model(family, **settings), seed=0, lora_dropout=dropout)).train()


def example(number: int, shared: int, history: int, answer: int) -> TrainExample:
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(400, (shared + history + answer + 8,), generator=generator).tolist()
    start, past, rest, target = ids[:shared], ids[shared : shared + history], ids[-answer - 8 : -answer], ids[-answer:]
    return TrainExample(TokenPair(f"e{number}", start + past + rest, start + rest, target), [0.5] * answer)


EXAMPLES = [example(1, 30, 200, 40), example(2, 20, 300, 90), example(3, 60, 10, 20), example(4, 25, 150, 60)]
ORDER = train_order(Path("nowhere"), alpha=0.05, batch_tokens=8192, gradient_checkpointing="auto")


def module(model: Any, **changes: Any) -> PreferenceLoss:
    order = changed(ORDER, **changes)
    return PreferenceLoss(model, order, training_strategy(model, order))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("changes", [{}, {"alpha": 0.0}, {"deepspeed": {"zero_stage": 3}}], ids=str)
def test_the_cost_of_real_examples_is_foretold_from_short_ones(family: str, changes: dict[str, Any]) -> None:
    loss = module(lora(family), **changes)
    state = torch.get_rng_state()
    cost = measured_cost(loss)
    assert torch.equal(torch.get_rng_state(), state)
    for one in EXAMPLES:
        kept = loss.kept_bytes(one)
        assert 0.8 * kept < cost.of(budget._computed(one.pair, loss)) < 1.3 * kept


def test_attention_that_keeps_its_square_is_counted() -> None:
    loss = module(lora(attn_implementation="eager"))
    cost = measured_cost(loss)
    kept = loss.kept_bytes(EXAMPLES[1])
    assert cost.square > 10
    assert 0.7 * kept < cost.of(budget._computed(EXAMPLES[1].pair, loss)) < 1.5 * kept


def test_costs_by_hand() -> None:
    cost = Cost.through([(10, 5_200), (20, 5_800), (40, 8_200)])
    assert (cost.fixed, cost.linear, cost.square) == pytest.approx((5_000, 0 + 1, 2), abs=2)
    square = Cost(100, 10, 2)
    assert square.of(5) == 100 + 50 + 50
    assert square.tokens_within(200) == 5
    assert square.tokens_within(199) == 4
    assert square.tokens_within(100) == 0
    assert Cost(0, 8, 0).tokens_within(80) == 10


def decided(folder: Path, model: Any, monkeypatch: pytest.MonkeyPatch, memory: float, **changes: Any) -> PreferenceLoss:
    monkeypatch.setattr(budget, "total_memory", lambda device: memory)
    order = changed(ORDER, output=folder, **changes)
    return loss_within_memory(model, order, EXAMPLES, Writer(order.output, "cpu"))


def test_a_small_model_keeps_the_micro_batches_that_are_asked_for(tmp_path: Path) -> None:
    order = changed(ORDER, output=tmp_path)
    loss = loss_within_memory(lora(), order, EXAMPLES, Writer(tmp_path, "cpu"))
    assert loss.order.train.batch_tokens == 8192
    assert loss.order.train.gradient_checkpointing is False
    found = stored_budget(tmp_path)
    assert found is not None
    assert found.tokens > 8192
    assert found.account.startswith("micro-batches of up to 8,192 tokens; a token keeps 0.00")


def test_a_micro_batch_keeps_no_more_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lora()
    monkeypatch.setattr(budget, "CPU_BYTES", 3_500_000)
    loss = decided(tmp_path, model, monkeypatch, 100 * GB)
    tokens = loss.order.train.batch_tokens
    assert 300 < tokens < 1500
    batches = micro_batches(EXAMPLES, tokens, ranks=1)
    assert 1 < len(batches) < len(EXAMPLES)
    for batch in batches:
        assert sum(loss.kept_bytes(one) for one in batch.examples) < 3_500_000 or len(batch.examples) == 1
    monkeypatch.setattr(budget, "CPU_BYTES", 10)
    alone = decided(tmp_path / "alone", model, monkeypatch, 100 * GB)
    assert len(micro_batches(EXAMPLES, alone.order.train.batch_tokens, ranks=1)) == len(EXAMPLES)
    assert "micro-batches of one example" in stored_budget(tmp_path / "alone").account  # type: ignore[union-attr]


@pytest.mark.parametrize(("asked", "memory", "switched"), [
    ("auto", 100, False), ("auto", 1, True), (True, 100, True), (False, 1, False),
])  # fmt: skip
def test_checkpointing_is_switched_on_where_one_example_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Any, memory: float, switched: bool
) -> None:
    model = lora()
    loss = decided(tmp_path, model, monkeypatch, memory * GB, gradient_checkpointing=asked)
    assert loss.order.train.checkpoints_activations is switched
    assert bool(model.get_base_model().get_decoder().gradient_checkpointing) is switched
    account = stored_budget(tmp_path).account  # type: ignore[union-attr]
    assert ("with gradient checkpointing" in account) is switched
    assert ("without which one example needs" in account) is (switched and asked == "auto")


def test_a_resumed_run_finds_its_budget_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = decided(tmp_path, lora(), monkeypatch, 1 * GB)
    assert first.order.train.gradient_checkpointing is True
    monkeypatch.setattr(budget, "CPU_BYTES", 10)
    again = decided(tmp_path, lora(), monkeypatch, 100 * GB)
    assert again.order == first.order
    store_budget(tmp_path, Budget(tokens=50, gradient_checkpointing=True, account=""))
    lower = decided(tmp_path, lora(), monkeypatch, 100 * GB, batch_tokens=5, gradient_checkpointing=False)
    assert (lower.order.train.batch_tokens, lower.order.train.gradient_checkpointing) == (5, False)
    (tmp_path / BUDGET).write_text("{}")
    assert stored_budget(tmp_path) is None


def gradients(loss: PreferenceLoss, batches: Sequence[Sequence[TrainExample]]) -> list[torch.Tensor]:
    whole = denominators(EXAMPLES, loss.order)
    total = torch.stack([loss(batch, whole, 7).loss for batch in batches]).sum()
    return list(torch.autograd.grad(total, [value for value in loss.parameters() if value.requires_grad]))


@pytest.mark.parametrize("changes", [{}, {"alpha": 0.0}, {"gradient_checkpointing": True}], ids=str)
def test_any_budget_gives_the_same_gradients_with_dropout_too(changes: dict[str, Any]) -> None:
    """On a CPU, masks follow from the step and the example, in whatever order and company it is computed."""
    loss = module(lora(dropout=0.5), **changes)
    together = gradients(loss, [EXAMPLES])
    alone = gradients(loss, [[one] for one in reversed(EXAMPLES)])
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=1e-4)
    loss_of = [float(loss([EXAMPLES[0]], Denominators(1.0, 1.0), seed).loss.detach()) for seed in (7, 7, 8)]
    assert loss_of[0] == loss_of[1] != loss_of[2]


class Crowded:
    """A device on which a micro-batch of more than so many tokens does not fit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.sizes: list[int] = []
        own = PreferenceLoss.forward

        def forward(loss: PreferenceLoss, examples: Sequence[TrainExample], *rest: Any) -> Any:
            self.sizes.append(sum(one.pair.tokens for one in examples))
            if self.sizes[-1] > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return own(loss, examples, *rest)

        monkeypatch.setattr(PreferenceLoss, "forward", forward)


def test_a_trial_halves_what_does_not_fit_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = module(lora(), global_batch=8)
    device = Crowded(monkeypatch, 900)
    found = budget._tried(loss, EXAMPLES, Budget(tokens=8192, gradient_checkpointing=False, account="as planned"))
    sizes = [one.pair.tokens for one in EXAMPLES]
    assert device.sizes[0] == sum(sizes)
    assert device.sizes == sorted(device.sizes, reverse=True)
    assert found.tokens <= sum(sizes) // 2
    assert f"after a trial, micro-batches of up to {found.tokens:,} tokens" in found.account
    assert all(value.grad is None for value in loss.parameters())
    assert budget._tried(loss, EXAMPLES, found) == found


def test_an_example_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = module(lora(), global_batch=8)
    Crowded(monkeypatch, 10)
    with pytest.raises(
        ModelError,
        match=r"^e2: out of memory in a trial before the first step with a micro-batch of \d+ tokens; set "
        r"train.gradient_checkpointing true; or lower prompt.max_prompt_tokens or prompt.max_target_tokens, or use",
    ):
        budget._tried(loss, EXAMPLES, Budget(tokens=8192, gradient_checkpointing=False, account=""))


def test_a_step_that_does_not_fit_ends_in_one_line_and_the_next_run_takes_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nextquill_core.training.engines import PlainEngine

    loss = decided(tmp_path, lora(), monkeypatch, 100 * GB, global_batch=4)
    engine = PlainEngine(loss, torch.optim.AdamW([p for p in loss.parameters() if p.requires_grad], lr=1e-3), 1.0)
    Crowded(monkeypatch, 1000)
    total = sum(one.pair.tokens for one in EXAMPLES)
    run = trainer.Trainer(loss.order, engine, EXAMPLES, {})
    with pytest.raises(UserError) as caught:
        run.run()
    assert str(caught.value) == (
        f"train.batch_tokens: out of memory in step 1 with a micro-batch of {total:,} tokens; run the same command "
        f"again, which then takes {total // 2:,} tokens"
    )
    found = stored_budget(tmp_path)
    assert found is not None
    assert found.tokens == total // 2

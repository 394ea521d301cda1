"""What a rank trains on: all users, or all but one fold of them; how a step is cut never changes what is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextquill_core.errors import UserError
from nextquill_core.orders import TrainOrder
from nextquill_core.tokens import TokenPair
from nextquill_core.training.data import (
    TrainExample,
    micro_batches,
    step_examples,
    steps_per_epoch,
    train_split,
    training_examples,
)
from tasks.ranks.launch import run_ranks
from tests.nextquill_core.training.runs import sequences
from tests.orders import train_order

# Four users with one train example each; of two folds, u0, u1 and u3 are in the first and u2 in the second.


@pytest.mark.parametrize(
    ("leave_out", "users", "counts"),
    [
        (None, ["u0", "u1", "u2", "u3"], {}),
        ((0, 2), ["u2"], {"left_out_users": 3, "left_out_examples": 3}),
        ((1, 2), ["u0", "u1", "u3"], {"left_out_users": 1, "left_out_examples": 1}),
    ],
)
def test_only_train_examples_of_users_outside_the_fold(
    tmp_path: Path, leave_out: tuple[int, int] | None, users: list[str], counts: dict[str, int]
) -> None:
    examples, left_out = train_split(train_order(tmp_path, sequences=sequences(tmp_path / "all"), leave_out=leave_out))
    assert [example.example_id for example in examples] == [f"C:{user}:3" for user in users]
    assert left_out == counts


def test_every_example_is_token_pairs_with_weight_one_without_effects(tmp_path: Path, tiny_tokenizer: Any) -> None:
    examples, _ = training_examples(
        train_order(tmp_path, sequences=sequences(tmp_path / "all"), leave_out=(1, 2)), tiny_tokenizer
    )
    assert [example.pair.example_id for example in examples] == ["C:u0:3", "C:u1:3", "C:u3:3"]
    assert all(example.weights == [1.0] * len(example.pair.target) for example in examples)


@pytest.mark.parametrize("fold", [0, 1, 2])
def test_an_empty_fold_is_refused_before_any_is_trained(tmp_path: Path, fold: int) -> None:
    """Of three folds, the four users fill the first two."""
    source = sequences(tmp_path / "all")
    with pytest.raises(UserError) as caught:
        train_split(train_order(tmp_path, sequences=source, leave_out=(fold, 3)))
    assert str(caught.value) == (
        f"{source}: fold 2 of 3 holds no user with train examples; set fewer score.folds (2 at least) or ingest more "
        "users"
    )


def test_the_order_keeps_the_fold(tmp_path: Path) -> None:
    ordered = train_order(tmp_path, leave_out=(1, 2))
    ordered.save(tmp_path / "again.json")
    assert TrainOrder.load(tmp_path / "again.json") == ordered


@pytest.mark.slow
@pytest.mark.ranks
def test_an_adapter_knows_nothing_of_the_users_it_leaves_out(tmp_path: Path, tiny_folder: Path) -> None:
    """Had u2 written other things, the adapter that leaves u2 out would have the same bytes, the other would not."""

    def rewrite(row: dict[str, Any]) -> None:
        if row["user_id"] == "u2":
            row["text"] = f"quite another opinion of {row['parent_asin']}"

    sources = {"as it is": sequences(tmp_path / "a"), "u2 rewritten": sequences(tmp_path / "b", rewrite)}
    adapters: dict[tuple[str, int], bytes] = {}
    for name, source in sources.items():
        for fold in (0, 1):
            out = tmp_path / f"{name}-{fold}"
            out.mkdir()
            train_order(out, str(tiny_folder), source, leave_out=(fold, 2)).save(out / "order.json")
            run_ranks(out / "order.json", out / "log", ranks=1, on_step=lambda metrics: None)
            adapters[name, fold] = (out / "adapter" / "adapter_model.safetensors").read_bytes()
            (line,) = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
            assert (line["left_out_users"], line["left_out_examples"]) == ((3, 3), (1, 1))[fold]
    assert adapters["as it is", 1] == adapters["u2 rewritten", 1]
    assert adapters["as it is", 0] != adapters["u2 rewritten", 0]
    assert adapters["as it is", 0] != adapters["as it is", 1]


lengths = st.lists(st.integers(1, 60), min_size=1, max_size=20)


def make(sizes: list[int]) -> list[TrainExample]:
    return [TrainExample(TokenPair(f"e{index:02d}", [1] * size, [1], [2]), [1.0]) for index, size in enumerate(sizes)]


@given(lengths, st.integers(1, 8), st.integers(0, 3))
def test_an_epoch_sees_every_example_once(sizes: list[int], batch: int, seed: int) -> None:
    examples = make(sizes)
    steps = steps_per_epoch(len(examples), batch)
    for epoch in (0, 1):
        seen = [e for step in range(steps) for e in step_examples(examples, batch, seed, epoch * steps + step)]
        assert sorted(e.pair.example_id for e in seen) == [e.pair.example_id for e in examples]


def test_epochs_and_seeds_differ_in_order() -> None:
    examples = make([1] * 20)
    orders = {
        (seed, epoch): tuple(e.pair.example_id for e in step_examples(examples, 20, seed, epoch))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 4


@given(lengths, st.integers(1, 200), st.integers(1, 4))
def test_micro_batches_are_level_over_ranks_and_lose_nothing(sizes: list[int], budget: int, ranks: int) -> None:
    step = make(sizes)
    micros = micro_batches(step, budget, ranks)
    assert len(micros) % ranks == 0
    real = [example.pair.example_id for micro in micros if micro.scale for example in micro.examples]
    assert sorted(real) == [example.pair.example_id for example in step]
    for micro in micros:
        assert len(micro.examples) == 1 or sum(example.pair.tokens for example in micro.examples) <= budget

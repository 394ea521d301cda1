"""How a step falls into micro-batches never changes what is in it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nextquill_core.tokens import TokenPair
from nextquill_core.training.batches import TrainExample, micro_batches, step_examples, steps_per_epoch

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

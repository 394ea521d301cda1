"""Which examples make a step, and how a step falls into micro-batches and ranks.

A step is decided by seed, epoch and `global_batch` alone. How it is then cut up changes no loss and no gradient beyond
rounding, because every micro-batch is scaled by the denominator of the whole step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from nextquill_core.tokens import TokenPair


@dataclass(frozen=True, slots=True)
class TrainExample:
    """A token pair with the weight ω of each answer token, and its stored causal effect where the loss asks for it."""

    pair: TokenPair
    weights: list[float]
    effects: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Examples that go through the model together.

    Attributes:
        scale: 1, or 0 for a stand-in that keeps ranks in step when there are fewer micro-batches than ranks.
    """

    index: int
    examples: tuple[TrainExample, ...]
    scale: float = 1.0


def steps_per_epoch(examples: int, global_batch: int) -> int:
    """Optimizer steps an epoch; the last may be smaller."""
    return -(-examples // global_batch)


def epoch_order(examples: int, seed: int, epoch: int) -> list[int]:
    """The examples of an epoch in a seeded random order."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return [int(index) for index in torch.randperm(examples, generator=generator)]


def step_examples(examples: Sequence[TrainExample], global_batch: int, seed: int, step: int) -> list[TrainExample]:
    """The examples of optimizer step `step`, counted from 0 over all epochs."""
    epoch, within = divmod(step, steps_per_epoch(len(examples), global_batch))
    order = epoch_order(len(examples), seed, epoch)
    return [examples[index] for index in order[within * global_batch : (within + 1) * global_batch]]


def micro_batches(step: Sequence[TrainExample], batch_tokens: int, ranks: int) -> list[MicroBatch]:
    """Cut a step into micro-batches of at most `batch_tokens` positions, as many on each rank.

    Micro-batch i belongs to rank i mod `ranks`. One example may exceed the budget on its own.
    """
    batches = list(_by_budget(step, batch_tokens, at_least=min(ranks, len(step))))
    micros = [MicroBatch(index, tuple(batch)) for index, batch in enumerate(batches)]
    missing = -len(micros) % ranks
    shortest = min(step, key=lambda example: example.pair.tokens)
    return micros + [MicroBatch(len(micros) + extra, (shortest,), scale=0.0) for extra in range(missing)]


def _by_budget(step: Sequence[TrainExample], batch_tokens: int, at_least: int) -> Iterator[list[TrainExample]]:
    ordered = sorted(step, key=lambda example: (-example.pair.tokens, example.pair.example_id))
    budget = min(batch_tokens, -(-sum(example.pair.tokens for example in ordered) // at_least))
    batch: list[TrainExample] = []
    used = 0
    for example in ordered:
        if batch and used + example.pair.tokens > budget:
            yield batch
            batch, used = [], 0
        batch.append(example)
        used += example.pair.tokens
    if batch:
        yield batch

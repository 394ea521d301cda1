"""Training data: examples with their weights and effects, which of them make a step, and how the ranks share a step.

A step is decided by seed, epoch and `global_batch` alone. How it is cut into micro-batches changes no loss and no
gradient beyond rounding, because every micro-batch is scaled by the denominator of the whole step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from nextquill_core.errors import DataError, ModelError, UserError
from nextquill_core.folds import fold_of
from nextquill_core.ingest.reader import read_examples
from nextquill_core.model.forward import token_budget_batches
from nextquill_core.model.loading import encoder_for
from nextquill_core.orders import TrainOrder
from nextquill_core.schemas import Example, column_by_example
from nextquill_core.tokens import TokenPair

T = TypeVar("T")


def training_examples(order: TrainOrder, tokenizer: Any) -> tuple[list[TrainExample], dict[str, int]]:
    """Return the examples to train on, with preference weights, or weights of 1 where the order asks for none.

    Returns:
        The examples, and the counts of what was left out, as `train_split` returns them.

    Raises:
        ModelError: The stored weights were derived for other tokens.
        UserError: As for `train_split`.
    """
    examples, left_out = train_split(order)
    return _with_weights(order, tokenizer, examples), left_out


def validation_examples(order: TrainOrder, tokenizer: Any) -> list[TrainExample]:
    """Return the val examples to measure, with their weights, without the users of the fold that is left out.

    Raises:
        DataError: The best adapter on the val split is asked for, and there is no val example.
        ModelError: As for `training_examples`.
    """
    settings = order.train
    if settings.val_every == 0:
        return []
    examples = list(read_examples(order.sequences, ("val",)))
    if order.leave_out is not None:
        fold, folds = order.leave_out
        examples = [example for example in examples if fold_of(example.user_id, folds) != fold]
    if not examples and settings.keep == "best":
        raise DataError(
            "there is no val example to choose the best adapter by", str(order.sequences), "set train.keep last"
        )
    return _with_weights(order, tokenizer, validation_subset(examples, settings.val_examples, order.seed))


def validation_subset(examples: Iterable[Example], count: int, seed: int) -> list[Example]:
    """Return the `count` examples with the smallest hash of seed and id, in the order of their ids.

    Whether an example is chosen depends on the other examples only through the size of the subset.

    Args:
        examples: All examples, in any order.
        count: Maximum number of examples to return.
        seed: Seed of the hash.
    """

    def draw(example: Example) -> bytes:
        return hashlib.sha256(f"{seed}:{example.example_id}".encode()).digest()

    return sorted(sorted(examples, key=draw)[:count], key=lambda example: example.example_id)


def train_split(order: TrainOrder) -> tuple[list[Example], dict[str, int]]:
    """Return the train examples of all users outside the fold that the order leaves out.

    Returns:
        The examples, and `left_out_users` and `left_out_examples`; no counts where the order has no fold.

    Raises:
        DataError: There is no train example.
        UserError: A fold has no user. Its adapter would score nothing, and of two folds the other would learn nothing.
    """
    where = str(order.sequences)
    examples = list(read_examples(order.sequences, ("train",)))
    if not examples:
        raise DataError("there is no train example", where, "ingest again; check ingest.protocol.n_targets")
    if order.leave_out is None:
        return examples, {}
    fold, folds = order.leave_out
    fold_by_user = {example.user_id: fold_of(example.user_id, folds) for example in examples}
    if empty := set(range(folds)) - set(fold_by_user.values()):
        raise UserError(
            f"fold {min(empty)} of {folds} holds no user with train examples",
            where,
            "set fewer score.folds (2 at least) or ingest more users",
        )
    rest = [example for example in examples if fold_by_user[example.user_id] != fold]
    users = list(fold_by_user.values()).count(fold)
    return rest, {"left_out_users": users, "left_out_examples": len(examples) - len(rest)}


def _with_weights(order: TrainOrder, tokenizer: Any, examples: Sequence[Example]) -> list[TrainExample]:
    pairs = encoder_for(order.model, order.prompt, tokenizer).encode(examples)
    settings = order.train
    has_stored_weights = order.weighted and order.live_weights is None
    needs_effects = settings.alpha > 0 and settings.causal_loss.target == "effect"
    weights = _stored(order, "weights", "weight", pairs) if has_stored_weights else {}
    effects = _stored(order, "effects", "effect", pairs) if needs_effects else {}
    return [
        TrainExample(pair, weights.get(pair.example_id, [1.0] * len(pair.target)), effects.get(pair.example_id, []))
        for pair in pairs
    ]


def _stored(order: TrainOrder, table: str, column: str, pairs: Sequence[TokenPair]) -> dict[str, list[float]]:
    """Return one number per token of every example, from a table of the score artifact."""
    if order.effects is None:
        raise ValueError(f"the order asks for stored {table} and names no score artifact")
    found: dict[str, list[float]] = column_by_example(order.effects / table, column)
    for pair in pairs:
        if len(found.get(pair.example_id, [])) != len(pair.target):
            raise ModelError(
                f"the {table} of {pair.example_id} do not fit its {len(pair.target)} tokens",
                str(order.effects),
                "score again with the same model and prompt settings",
            )
    return found


@dataclass(frozen=True, slots=True)
class TrainExample:
    """A token pair with what the loss needs for each of its T answer tokens.

    Attributes:
        pair: Token ids of both branches.
        weights: Preference weights ω, T numbers.
        effects: Stored causal effects, T numbers, or none where the loss does not need them.
    """

    pair: TokenPair
    weights: list[float]
    effects: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Examples that go through the model together.

    Attributes:
        scale: 1, or 0 for a filler that keeps ranks in step when there are fewer micro-batches than ranks.
    """

    index: int
    examples: tuple[TrainExample, ...]
    scale: float = 1.0


def steps_per_epoch(examples: int, global_batch: int) -> int:
    """Return the number of optimizer steps in an epoch, of which the last may be smaller."""
    return -(-examples // global_batch)


def epoch_order(examples: int, seed: int, epoch: int) -> list[int]:
    """Return the indices of the examples in the seeded random order of an epoch.

    Args:
        examples: Number of examples.
        seed: Seed of the run.
        epoch: Epoch, counted from 0.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return [int(index) for index in torch.randperm(examples, generator=generator)]


def step_examples(examples: Sequence[T], global_batch: int, seed: int, step: int) -> list[T]:
    """Return the examples of one optimizer step.

    Args:
        examples: All training examples.
        global_batch: Examples in a step, over all ranks.
        seed: Seed of the run.
        step: Step, counted from 0 over all epochs.
    """
    epoch, within = divmod(step, steps_per_epoch(len(examples), global_batch))
    order = epoch_order(len(examples), seed, epoch)
    return [examples[index] for index in order[within * global_batch : (within + 1) * global_batch]]


def micro_batches(step: Sequence[TrainExample], batch_tokens: int, ranks: int) -> list[MicroBatch]:
    """Cut a step into micro-batches, the same number for each rank.

    Args:
        step: Examples of the step.
        batch_tokens: Token positions of a micro-batch, both branches counted; a single example may exceed them.
        ranks: Number of ranks. Micro-batch i belongs to rank i mod `ranks`.
    """
    ordered = sorted(step, key=lambda example: example.pair.example_id)
    tokens = [example.pair.tokens for example in ordered]
    budget = min(batch_tokens, -(-sum(tokens) // min(ranks, len(step))))  # enough batches for all ranks, if possible
    batches = [tuple(ordered[index] for index in batch) for batch in token_budget_batches(tokens, budget)]
    micros = [MicroBatch(index, batch) for index, batch in enumerate(batches)]
    missing = -len(micros) % ranks
    shortest = min(step, key=lambda example: example.pair.tokens)
    return micros + [MicroBatch(len(micros) + extra, (shortest,), scale=0.0) for extra in range(missing)]

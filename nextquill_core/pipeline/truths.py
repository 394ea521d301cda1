"""The ground truth of a run on a synthetic world: the words that taste drew, beside the effects that were estimated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nextquill_core.analysis.exact_effects import word_effects
from nextquill_core.errors import DataError
from nextquill_core.model.loading import load_tokenizer
from nextquill_core.pipeline.methods import measured_examples
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.score import Effects
from nextquill_core.schemas import Example
from nextquill_core.synthetic.truth import TrueWord, Truth, exact_effects, truth_file
from nextquill_core.tokens import token_texts

Pairs = list[tuple[float, float]]
"""The estimated and the exact effect of each word."""


def truths_of(run: Run) -> dict[str, Truth]:
    """Return the ground truth of each category of a synthetic world.

    Raises:
        DataError: There is none, or it cannot be read.
    """
    return {raw.category: Truth(truth_file(raw.category, raw.reviews)) for raw in run.plan.files}


def words_of(truths: Mapping[str, Truth], example: Example) -> tuple[TrueWord, ...]:
    """Return the words that taste drew for the true review of an example.

    Raises:
        DataError: The ground truth is not that of this review.
    """
    return truths[example.category].words(example.target.text, example.target.timestamp_ms)


def exact_token_effects(
    run: Run, examples: Sequence[Example], effects: Effects, truths: Mapping[str, Truth]
) -> list[list[float]]:
    """Return the exact effect of each token of the true reviews.

    Args:
        run: The run; the base model's tokenizer is in its store.
        examples: The examples.
        effects: As `read_effects` returns them.
        truths: As `truths_of` returns them.

    Raises:
        DataError: The ground truth is not that of these reviews.
    """
    tokenizer = load_tokenizer(run.model)
    return [
        exact_effects(
            words_of(truths, example),
            example.target.text,
            token_texts(tokenizer, effects[example.example_id].target_ids),
        )
        for example in examples
    ]


def exact_word_effects(run: Run, examples: Sequence[Example], effects: Effects, truths: Mapping[str, Truth]) -> Pairs:
    """Return the estimated and the exact effect of each word that taste drew.

    Args:
        run: As for `exact_token_effects`, as are the others.
        examples: The examples.
        effects: The stored effects.
        truths: The ground truth.

    Raises:
        DataError: The ground truth is not that of these reviews.
    """
    tokenizer = load_tokenizer(run.model)
    found: Pairs = []
    for example in examples:
        answer = effects[example.example_id]
        tokens = token_texts(tokenizer, answer.target_ids)
        found += word_effects(words_of(truths, example), tokens, answer.logp_factual, answer.logp_counterfactual)
    return found


def clearest(examples: Sequence[Example], truths: Mapping[str, Truth]) -> Example:
    """Return the example whose true review shows its writer's taste most: that of the largest exact effects.

    Args:
        examples: The examples, at least one.
        truths: As `truths_of` returns them.

    Raises:
        DataError: The ground truth is not that of these reviews.
    """
    return max(examples, key=lambda one: (sum(word.effect for word in words_of(truths, one)), one.example_id))


def clearest_example(run: Run) -> Example:
    """Return the `clearest` of the measured examples.

    Args:
        run: The run; the sequences are in its store.

    Raises:
        DataError: There is no ground truth, or it is not that of these reviews.
    """
    return clearest(measured_examples(run)[0], truths_of(run))


def shown_user(run: Run) -> str:
    """Return the id of a measured user to look at: the writer of `clearest_example`, or the first one of other data."""
    try:
        return clearest_example(run).user_id
    except DataError:
        return measured_examples(run)[0][0].user_id

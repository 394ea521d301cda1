"""The ground truth of a run on a synthetic world: the words that taste drew, beside the effects that were estimated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nextquill_core.analysis.exact_effects import word_effects
from nextquill_core.errors import DataError
from nextquill_core.model.loading import load_tokenizer
from nextquill_core.pipeline.methods import measured_examples
from nextquill_core.pipeline.run import Run
from nextquill_core.schemas import Example, column_by_example
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


def effect_pairs(run: Run, examples: Sequence[Example], truths: Mapping[str, Truth]) -> tuple[Pairs, Pairs]:
    """Return the estimated and the exact effect of each word that taste drew, and of each token.

    Args:
        run: The run; its effects are in the store.
        examples: The examples whose true reviews are compared.
        truths: As `truths_of` returns them.

    Raises:
        DataError: The ground truth is not that of these reviews.
    """
    folder = run.artifact(run.plan.effects).folder / "effects"
    names = ("target_ids", "effect", "logp_factual", "logp_counterfactual")
    ids, effects, factual, counterfactual = (column_by_example(folder, name) for name in names)
    tokenizer = load_tokenizer(run.model)
    by_word: Pairs = []
    by_token: Pairs = []
    for example in examples:
        name, text = example.example_id, example.target.text
        words = words_of(truths, example)
        tokens = token_texts(tokenizer, ids[name])
        by_token += zip(effects[name], exact_effects(words, text, tokens), strict=True)
        by_word += word_effects(words, tokens, factual[name], counterfactual[name])
    return by_word, by_token


def words_of(truths: Mapping[str, Truth], example: Example) -> tuple[TrueWord, ...]:
    """Return the words that taste drew for the true review of an example.

    Raises:
        DataError: The ground truth is not that of this review.
    """
    return truths[example.category].words(example.target.text, example.target.timestamp_ms)


def clearest_example(run: Run) -> Example:
    """Return the measured example whose true review shows its writer's taste most: that of the largest exact effects.

    Args:
        run: The run; the sequences are in its store.

    Raises:
        DataError: There is no ground truth, or it is not that of these reviews.
    """
    truths = truths_of(run)
    examples, _ = measured_examples(run)
    return max(examples, key=lambda one: (sum(word.effect for word in words_of(truths, one)), one.example_id))


def shown_user(run: Run) -> str:
    """Return the id of a measured user to look at: the writer of `clearest_example`, or the first one of other data."""
    try:
        return clearest_example(run).user_id
    except DataError:
        return measured_examples(run)[0][0].user_id

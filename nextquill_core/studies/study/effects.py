"""Question 1: how exact the effects are that a model measures, where the data come with the exact ones."""

from __future__ import annotations

from typing import Any

from nextquill_core.analysis.exact_effects import agreement
from nextquill_core.errors import DataError
from nextquill_core.pipeline.methods import split_examples
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.score import effects_source, read_effects
from nextquill_core.pipeline.truths import exact_token_effects, exact_word_effects, truths_of


def effect_rows(run: Run) -> list[dict[str, Any]]:
    """Return the rows of the table of question 1, for one base configuration.

    There are none where the data come without exact effects. Each row compares the effects of one model with the exact
    ones: `model` (in words), `words` (number compared), `pearson`, `auc` (for an exact effect above δ) and `note`.

    Args:
        run: The run of a study's base configuration; its effects are in the store.

    Raises:
        DataError: The ground truth cannot be read, or is not that of these reviews.
    """
    try:
        truths = truths_of(run)
    except DataError:
        return []
    examples = split_examples(run, run.config.evaluate.split)
    effects = read_effects(run.artifact(run.plan.effects).folder, examples)
    by_word = exact_word_effects(run, examples, effects, truths)
    by_token = [
        pair
        for example, exact in zip(examples, exact_token_effects(run, examples, effects, truths), strict=True)
        for pair in zip(effects[example.example_id].effect, exact, strict=True)
    ]
    model, delta = effects_source(run.plan.effects), run.config.weights.delta
    notes = {"words that taste drew": by_word, "every token; the exact effect of the others is 0": by_token}
    return [{"model": model, "note": note, **agreement(pairs, delta)} for note, pairs in notes.items() if pairs]

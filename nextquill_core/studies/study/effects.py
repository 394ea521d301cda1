"""Question 1: how exact the effects are that a model measures, where the data come with the exact ones.

A word can be several tokens, so its measured effect is the difference of the products of their probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nextquill_core.errors import DataError
from nextquill_core.model.loading import load_tokenizer
from nextquill_core.pipeline.methods import split_examples
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.score import effects_source
from nextquill_core.schemas import column_by_example
from nextquill_core.synthetic.truth import TrueWord, Truth, exact_effects, token_spans, truth_file
from nextquill_core.tokens import token_texts


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
        files = {raw.category: truth_file(raw.category, raw.reviews) for raw in run.plan.files}
    except DataError:
        return []
    truths = {category: Truth(file) for category, file in files.items()}
    folder = run.artifact(run.plan.effects).folder / "effects"
    names = ("target_ids", "effect", "logp_factual", "logp_counterfactual")
    ids, effects, factual, counterfactual = (column_by_example(folder, name) for name in names)
    tokenizer = load_tokenizer(run.model)
    by_word: list[tuple[float, float]] = []
    by_token: list[tuple[float, float]] = []
    for example in split_examples(run, run.config.evaluate.split):
        name, text = example.example_id, example.target.text
        words = truths[example.category].words(text, example.target.timestamp_ms)
        tokens = token_texts(tokenizer, ids[name])
        by_token += zip(effects[name], exact_effects(words, text, tokens), strict=True)
        by_word += word_effects(words, tokens, factual[name], counterfactual[name])
    model, delta = effects_source(run.plan.effects), run.config.weights.delta
    notes = {"words that taste drew": by_word, "every token; the exact effect of the others is 0": by_token}
    return [{"model": model, "note": note, **agreement(pairs, delta)} for note, pairs in notes.items() if pairs]


def word_effects(
    words: Sequence[TrueWord], tokens: Sequence[str], factual: Sequence[float], counterfactual: Sequence[float]
) -> Iterator[tuple[float, float]]:
    """Yield the measured and the exact effect of each word whose tokens are all there.

    Args:
        words: The words that taste drew, with their places in the text.
        tokens: The text that each token adds.
        factual: Log-probability of each token with the history, nats.
        counterfactual: The same without.
    """
    starts, ends = np.array(token_spans(tokens), dtype=np.int64).reshape(-1, 2).T
    for word in words:
        inside = np.flatnonzero((starts < word.end) & (ends > word.start))
        if len(inside) and ends[inside[-1]] >= word.end:
            with_history, without = (float(np.sum(np.take(logps, inside))) for logps in (factual, counterfactual))
            yield float(np.exp(with_history) - np.exp(without)), word.effect


def agreement(pairs: Sequence[tuple[float, float]], delta: float) -> dict[str, Any]:
    """Return how well measured effects agree with exact ones: `words`, `pearson` and `auc`.

    Args:
        pairs: (measured, exact).
        delta: Exact effects above it are to be found; AUC is the share of pairs of one such and one other that the
            measured effects order right, a tie counting one half. 0.5 where there are not both.
    """
    measured, exact = np.array(pairs, dtype=np.float64).T
    varies = measured.std() > 0 and exact.std() > 0
    pearson = float(np.corrcoef(measured, exact)[0, 1]) if varies else 0.0
    return {"words": len(measured), "pearson": pearson, "auc": _auc(measured, exact > delta)}


def _auc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Return the area under the ROC curve, by the ranks of the scores."""
    _, place, counts = np.unique(np.asarray(scores), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    wanted = np.asarray(positive, dtype=bool)
    count, others = int(wanted.sum()), int((~wanted).sum())
    if not count or not others:
        return 0.5
    return float((ranks[wanted].sum() - count * (count + 1) / 2) / (count * others))

"""Estimated against exact effects of history, and the words of a person's own style, in a synthetic world.

A word can be several tokens, so its measured effect is the difference of the products of their probabilities.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nextquill_core.evaluation.significance import bootstrap_interval
from nextquill_core.synthetic.lexicon import STYLES
from nextquill_core.synthetic.truth import TrueWord, token_spans

STYLE_OF: Mapping[str, str] = {word: style.name for style in STYLES for word in (*style.praise, *style.complaint)}
"""The style of each taste word; no word belongs to two."""
CHANCE = 1 / len(STYLES)
"""The share of taste words in a person's own style if the writer knows nothing of the person."""


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


def slope(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the line through the exact effects over the measured ones, by least squares.

    1: the measured effects have the right size; below 1: they are too large; 0 where they do not vary.

    Args:
        pairs: (measured, exact).
    """
    measured, exact = np.array(pairs, dtype=np.float64).T
    spread = float(np.mean((measured - measured.mean()) ** 2))
    return float(np.mean((measured - measured.mean()) * (exact - exact.mean()))) / spread if spread else 0.0


def _auc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Return the area under the ROC curve, by the ranks of the scores."""
    _, place, counts = np.unique(np.asarray(scores), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    wanted = np.asarray(positive, dtype=bool)
    count, others = int(wanted.sum()), int((~wanted).sum())
    if not count or not others:
        return 0.5
    return float((ranks[wanted].sum() - count * (count + 1) / 2) / (count * others))


def calibration(pairs: Sequence[tuple[float, float]], groups: int = 10) -> list[tuple[float, float, int]]:
    """Return the mean estimated and the mean exact effect of groups of words, and the number of words in each.

    Args:
        pairs: (estimated, exact) of each word.
        groups: Number of groups of about equal number, by estimated effect.
    """
    ordered = np.array(sorted(pairs), dtype=np.float64).reshape(-1, 2)
    parts = np.array_split(ordered, min(groups, len(ordered))) if len(ordered) else []
    return [(float(part[:, 0].mean()), float(part[:, 1].mean()), len(part)) for part in parts]


def own_style_share(
    texts: Sequence[str], styles: Sequence[str], users: Sequence[str], *, samples: int, seed: int
) -> dict[str, Any] | None:
    """Return the share of the taste words in texts that are of the person's own style, with its 95 % interval.

    Args:
        texts: One text for each example.
        styles: The style of each example's user.
        users: The user of each example.
        samples: Number of resamples of users.
        seed: Seed of the resampling.

    Returns:
        value, ci_low and ci_high (0 to 1) and words (number of taste words); None if the texts have no taste word.
    """
    counts = np.zeros((len(texts), 2))
    for row, (text, style) in enumerate(zip(texts, styles, strict=True)):
        found = [STYLE_OF[word] for word in re.findall(r"[a-z]+", text.lower()) if word in STYLE_OF]
        counts[row] = found.count(style), len(found)
    if not counts[:, 1].any():
        return None
    interval = bootstrap_interval(counts, users, samples=samples, seed=seed)
    return {**interval.columns, "words": int(counts[:, 1].sum())}

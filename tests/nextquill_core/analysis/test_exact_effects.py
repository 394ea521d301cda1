"""Measured effects beside exact ones, on numbers that are easily checked by hand."""

from __future__ import annotations

import math

import pytest

from nextquill_core.analysis.exact_effects import (
    CHANCE,
    STYLE_OF,
    agreement,
    calibration,
    own_style_share,
    slope,
    word_effects,
)
from nextquill_core.synthetic.truth import TrueWord


def logs(*probabilities: float) -> list[float]:
    return [math.log(one) for one in probabilities]


def test_a_word_of_several_tokens_is_the_product_of_their_probabilities() -> None:
    words = [TrueWord(2, 8, "superb", 0.3), TrueWord(9, 13, "plot", 0.0)]
    tokens = ["a", " sup", "erb", " pl", "ot"]
    found = list(word_effects(words, tokens, logs(0.9, 0.5, 0.8, 0.1, 1.0), logs(0.9, 0.5, 0.2, 0.1, 1.0)))
    assert found == [(pytest.approx(0.4 - 0.1), 0.3), (pytest.approx(0.0), 0.0)]


def test_a_word_that_the_answer_cuts_is_left_out() -> None:
    words = [TrueWord(2, 8, "superb", 0.3)]
    assert list(word_effects(words, ["a", " sup"], logs(0.9, 0.5), logs(0.9, 0.5))) == []


def test_agreement_by_hand() -> None:
    found = agreement([(0.1, 0.2), (0.3, 0.4), (0.2, 0.0), (0.1, 0.0)], 0.05)
    # Of the four pairs of one above δ and one other: 0.3 beats both, 0.1 loses to 0.2 and ties with 0.1.
    assert found["auc"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    # Around the means 0.175 and 0.15 the products add up to 0.035, the squares to 0.0275 and 0.11.
    assert found["pearson"] == pytest.approx(0.035 / math.sqrt(0.0275 * 0.11))
    assert found["words"] == 4
    assert agreement([(0.5, 0.0), (0.5, 0.3)], 0.05) == {"words": 2, "pearson": 0.0, "auc": 0.5}
    assert agreement([(0.1, 0.2), (0.2, 0.3)], 0.05)["auc"] == 0.5, "nothing to tell apart"


def test_the_slope_says_whether_effects_have_the_right_size() -> None:
    exact = [0.0, 0.1, 0.4]
    assert slope([(one, one) for one in exact]) == pytest.approx(1)
    assert slope([(2 * one + 0.3, one) for one in exact]) == pytest.approx(0.5), "twice too large"
    # Around the means 0.2 and 0.1 the products add up to 0.02, the squares of the estimates to 0.08.
    assert slope([(0.0, 0.1), (0.2, 0.0), (0.4, 0.2)]) == pytest.approx(0.02 / 0.08)
    assert slope([(0.3, 0.1), (0.3, 0.2)]) == 0, "estimates that do not vary"


def test_groups_of_words_by_estimate() -> None:
    """Four words in two groups: the lower estimates 0.1 and 0.2, the higher 0.3 and 0.5."""
    pairs = [(0.5, 0.6), (0.1, 0.0), (0.3, 0.2), (0.2, 0.1)]
    assert calibration(pairs, 2) == [
        (pytest.approx(0.15), pytest.approx(0.05), 2),
        (pytest.approx(0.4), pytest.approx(0.4), 2),
    ]
    assert calibration([(0.1, 0.2)]) == [(0.1, 0.2, 1)]
    assert calibration([]) == []


def test_share_of_words_in_the_own_style() -> None:
    """Three of four taste words are the writer's own; `the` and `plot` belong to no style."""
    assert STYLE_OF["daring"] == "bold"
    assert CHANCE == 0.25
    texts = ["The plot was Daring, fierce and tender.", "moody"]
    found = own_style_share(texts, ["bold", "dark"], ["u1", "u2"], samples=50, seed=1)
    assert found is not None
    assert (found["value"], found["words"]) == (0.75, 4)
    assert found["ci_low"] == pytest.approx(2 / 3)
    assert found["ci_high"] == 1
    assert own_style_share(["nothing to see"], ["bold"], ["u1"], samples=50, seed=1) is None

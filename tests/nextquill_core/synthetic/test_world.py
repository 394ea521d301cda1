"""The exact effects against enumeration by hand, and the text against its spans."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest

from nextquill_core.synthetic import lexicon
from nextquill_core.synthetic.lexicon import Aspect, Style
from nextquill_core.synthetic.world import (
    World,
    compose_review,
    compose_title,
    draw_taste_word,
    marginal_probability,
    style_posterior,
    word_probability,
)

SMALL = World(
    aspects=(
        Aspect(
            "plot", ("the plot {word}",), (Style("a", ("up", "top"), ("down",)), Style("b", ("high",), ("low", "up")))
        ),
        Aspect("drink", ("my {word}",), (Style("tea", ("tea",), ("tea",)), Style("wine", ("wine",), ("wine",)))),
    ),
    shares=(0.3, 0.7),
    p_style=0.8,
    p_praise=(0.1, 0.2, 0.5, 0.7, 0.9),
    aspects_per_review=2,
)
ITEM = {kind: words[0] for kind, words in lexicon.ITEM_WORDS.items()}


def enumerate_words(world: World, aspect: Aspect, style: int, rating: int) -> Counter[str]:
    """Sum over every path of the generative model: polarity, own style or not, then the word.

    Args:
        world: The generative model.
        aspect: What the sentence is about.
        style: The index of the writer's style.
        rating: From 1 to 5.
    """
    total: Counter[str] = Counter()
    for praise, own in product((True, False), (True, False)):
        path = world.p_praise[rating - 1] if praise else 1 - world.p_praise[rating - 1]
        path *= world.p_style if own else 1 - world.p_style
        styles = [aspect.styles[style]] if own else list(aspect.styles)
        words = [word for s in styles for word in (s.praise if praise else s.complaint)]
        for word in words:
            total[word] += path / len(words)
    return total


@pytest.mark.parametrize("world", [SMALL, World()], ids=["small", "default"])
@pytest.mark.parametrize("rating", [1, 3, 5])
def test_effects_equal_enumeration(world: World, rating: int) -> None:
    for aspect in world.aspects:
        by_style = [enumerate_words(world, aspect, k, rating) for k in range(len(aspect.styles))]
        words = set().union(*by_style)
        for word in words:
            marginal = sum(share * table[word] for share, table in zip(world.shares, by_style, strict=True))
            assert marginal_probability(world, aspect, word, rating) == pytest.approx(marginal)
            for k, table in enumerate(by_style):
                assert word_probability(world, aspect, word, k, rating) == pytest.approx(table[word])


def test_draws_follow_the_equation() -> None:
    rng = np.random.default_rng(0)
    aspect = SMALL.aspects[0]
    drawn = Counter(draw_taste_word(SMALL, aspect, 1, 4, rng) for _ in range(20_000))
    for word in drawn:
        assert drawn[word] / 20_000 == pytest.approx(word_probability(SMALL, aspect, word, 1, 4), abs=0.015)


def test_posterior_is_bayes() -> None:
    aspect = SMALL.aspects[0]
    likelihood = [
        word_probability(SMALL, aspect, "top", k, 5) * word_probability(SMALL, aspect, "up", k, 2) for k in (0, 1)
    ]
    joint = [share * value for share, value in zip(SMALL.shares, likelihood, strict=True)]
    seen = [(aspect, "top", 5), (aspect, "up", 2)]
    assert style_posterior(SMALL, seen) == pytest.approx([j / sum(joint) for j in joint])
    assert style_posterior(SMALL, []) == pytest.approx(SMALL.shares)


def test_what_earlier_words_show_equals_enumeration_of_whole_reviews() -> None:
    """P(second | first) = Σ_k π_k P(first | k) P(second | k) / Σ_k π_k P(first | k), over every pair of words."""
    plot, drink = SMALL.aspects
    tables = [(enumerate_words(SMALL, plot, k, 4), enumerate_words(SMALL, drink, k, 4)) for k in (0, 1)]
    for first in tables[0][0]:
        for second in tables[0][1]:
            both = sum(pi * table[0][first] * table[1][second] for pi, table in zip(SMALL.shares, tables, strict=True))
            one = sum(pi * table[0][first] for pi, table in zip(SMALL.shares, tables, strict=True))
            assert marginal_probability(SMALL, drink, second, 4, [(plot, first, 4)]) == pytest.approx(both / one)


def test_the_effect_falls_from_word_to_word() -> None:
    rng = np.random.default_rng(3)
    effects = np.array(
        [
            [span.effect for span in compose_review(World(), 0, ITEM, 5, rng).spans if span.driver == "taste"]
            for _ in range(400)
        ]
    )
    by_position = effects.mean(axis=0)
    assert by_position[0] > 0.1
    assert by_position[0] > 3 * by_position[-1] >= -1e-3


def test_reviews_are_clean_long_enough_and_spans_cover_their_words() -> None:
    rng = np.random.default_rng(1)
    world = World()
    for _ in range(300):
        rating = int(rng.integers(1, 6))
        review = compose_review(world, int(rng.integers(4)), ITEM, rating, rng)
        assert review.text == " ".join(review.text.split())
        assert len(review.text) >= world.min_chars
        assert "{" not in review.text
        assert all(review.text[span.start : span.end] == span.word for span in review.spans)
        assert all(left.end < right.start for left, right in zip(review.spans, review.spans[1:], strict=False))
        of_taste = [span for span in review.spans if span.driver == "taste"]
        assert len({span.source for span in of_taste}) == len(of_taste) == world.aspects_per_review
        assert all(span.effect == 0 for span in review.spans if span.driver != "taste")
        assert "{" not in compose_title(ITEM, rating, rng)

"""The exact effects against enumeration by hand, and the text against its spans."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest

from nextquill_core.synthetic import lexicon
from nextquill_core.synthetic.lexicon import Aspect, Style
from nextquill_core.synthetic.world import (
    WORLDS,
    World,
    compose_review,
    compose_title,
    draw_taste_word,
    known_probability,
    marginal_probability,
    taste_posterior,
    tastes,
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


MIXED = WORLDS["mixed"]


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
    expected = pytest.approx([j / sum(joint) for j in joint])
    assert taste_posterior(SMALL, [seen]) == expected
    assert taste_posterior(SMALL, [seen[:1], seen[1:]]) == expected, "no mood ties the words of a review together"
    assert taste_posterior(SMALL, []) == pytest.approx(SMALL.shares)


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


def bold(second: str = "warm") -> int:
    """Return the taste of the mixed world with the main style bold and this second one."""
    names = [style.name for style in lexicon.STYLES]
    return [(names[one.main], names[one.second or 0]) for one in tastes(MIXED)].index(("bold", second))


def test_tastes_of_the_mixed_world_are_pairs_of_styles() -> None:
    pairs = tastes(MIXED)
    assert len(pairs) == 4 * 3
    assert all(one.main != one.second for one in pairs)
    assert [one.share for one in pairs] == pytest.approx([1 / 12] * 12)
    assert [one.second for one in tastes(World())] == [None] * 4


def test_the_first_effects_of_the_mixed_world_by_hand() -> None:
    """Five stars (praise with 0.95), four words of each of four styles; 15 % of the reviews have common words only.

    A main word: 0.95 · (0.85 · (0.6/4 + 0.2/16) + 0.15/16) = 0.140125, a second one: 0.95 · (0.85 · (0.2/4 + 0.2/16)
    + 0.15/16) = 0.059375, another one: 0.95 · (0.85 · 0.2/16 + 0.15/16) = 0.019. Anybody: 0.95/16 = 0.059375.
    """
    plot = MIXED.aspects[0]
    expected = {"daring": 0.140125, "tender": 0.059375, "clever": 0.019, "moody": 0.019}
    for word, probability in expected.items():
        assert known_probability(MIXED, bold(), plot, word, 5) == pytest.approx(probability)
        assert marginal_probability(MIXED, plot, word, 5) == pytest.approx(0.059375)


def test_effects_of_the_mixed_world_equal_enumeration_over_tastes_and_moods() -> None:
    """P(second | first) by the sum over each taste and mood of the writer, with word tables made by hand."""
    plot, cast = MIXED.aspects[:2]

    def table(taste: int, off: bool, word: str) -> float:
        main, second, _ = tastes(MIXED)[taste]
        total = 0.0
        for praise in (True, False):
            lists = [style.praise if praise else style.complaint for style in lexicon.STYLES]
            shares = {main: 0.6, second: 0.2} if not off else {}
            common = 1 - sum(shares.values())
            share = sum(one * (word in lists[style or 0]) / 4 for style, one in shares.items())
            share += common * sum(word in one for one in lists) / 16
            total += (0.85 if praise else 0.15) * share
        return total

    for first, second in (("daring", "fierce"), ("daring", "moody"), ("noisy", "tender"), ("crisp", "crisp")):
        moods = [(False, 0.85), (True, 0.15)]
        both = [sum(p * table(k, off, first) * table(k, off, second) for off, p in moods) for k in range(12)]
        one = [sum(p * table(k, off, first) for off, p in moods) for k in range(12)]
        seen = [(plot, first, 4)]
        assert marginal_probability(MIXED, cast, second, 4, seen) == pytest.approx(sum(both) / sum(one))
        assert known_probability(MIXED, 5, cast, second, 4, seen) == pytest.approx(both[5] / one[5])


def test_the_mixed_world_s_users_write_59_percent_in_their_main_style() -> None:
    """0.85 · (0.6 + 0.2 · 1/4) + 0.15 · 1/4 = 0.59; later words of a review keep a part of the effect."""
    rng = np.random.default_rng(7)
    own, off, effects = [], 0, []
    for _ in range(1500):
        review = compose_review(MIXED, bold(), ITEM, 5, rng)
        off += review.off
        words = [span for span in review.spans if span.driver == "taste"]
        own += [span.word in (*lexicon.STYLES[0].praise, *lexicon.STYLES[0].complaint) for span in words]
        effects.append([span.effect for span in words])
        assert {span.style for span in words} == {"bold"}
    assert np.mean(own) == pytest.approx(0.59, abs=0.02)
    assert off / 1500 == pytest.approx(0.15, abs=0.03)
    by_position = np.mean(effects, axis=0)
    assert by_position[-1] > by_position[0] / 5, "in the plain world, less than a thirtieth is left"
    assert -0.12 < np.min(effects) < 0 < np.max(effects) < 0.15

"""The generative model of synthetic reviews, and the exact causal effect of the writer's tastes on each word.

Every user holds one style k in all reviews, drawn from the population shares π. The style influences neither which
items a user reviews, nor the rating r, nor the review title, nor which aspects a review mentions: the query x says
nothing about it. A sentence on an aspect draws its word w in three steps:

    s ~ P(s | r)                           polarity: praise or complaint
    own ~ Bernoulli(p)                     p = p_style
    w ~ uniform over L(k, s) if own, else over L(s) = the words of all styles with that polarity

so that, for a reader who knows the words before in the same review,

    P(w | k, x, y_<t) = P(w | k, r)
                      = Σ_s P(s | r) · [ p · 1{w ∈ L(k, s)} / |L(k, s)| + (1 − p) · 1{w ∈ L(s)} / |L(s)| ]  (A)
    P(w | x, y_<t)    = Σ_k P(k | y_<t) · P(w | k, r),  P(k | y_<t) ∝ π_k · Π_{w' in y_<t} P(w' | k, r)       (B)
    effect(w)         = P(w | k, x, y_<t) − P(w | x, y_<t)                                                  (C)

The first taste word of a review has the largest effects; for later ones the history adds less. Words drawn from the
item or from the rating have effect 0 for every writer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import numpy as np

from nextquill_core.synthetic import lexicon
from nextquill_core.synthetic.lexicon import Aspect

T = TypeVar("T")
_BLANK = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class World:
    """The parameters of the generative model.

    Attributes:
        shares: π, the share of the population that holds each style.
        p_style: p, the probability that a taste word comes from the writer's own style.
        p_praise: P(praise | r) for ratings 1 to 5.
        p_item: Probability that an item word is the item's and not any word of its kind.
        aspects_per_review: Number of aspects that a review mentions, each once.
        min_chars: Padding is added until a review has this many characters.
    """

    aspects: tuple[Aspect, ...] = lexicon.ASPECTS
    shares: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)
    p_style: float = 0.85
    p_praise: tuple[float, ...] = (0.05, 0.2, 0.5, 0.85, 0.95)
    p_item: float = 0.9
    aspects_per_review: int = 5
    min_chars: int = 200


@dataclass(frozen=True, slots=True)
class Span:
    """One drawn word of a text, at characters [start, end).

    Attributes:
        source: The aspect, or the kind of item or rating word.
        style: The writer's style; None for a word that no taste drives.
        p_factual: P(word | k, x, y_<t), Eq. A.
        p_counterfactual: P(word | x, y_<t), Eq. B.
    """

    start: int
    end: int
    word: str
    driver: Literal["taste", "item", "rating"]
    source: str
    style: str | None
    p_factual: float
    p_counterfactual: float

    @property
    def effect(self) -> float:
        """Eq. C, a difference of probabilities."""
        return self.p_factual - self.p_counterfactual


@dataclass(frozen=True, slots=True)
class ReviewText:
    """A review and its drawn words, in the order of the text."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class _Draft:
    """Sentences so far; spans count characters from the start of the review."""

    sentences: list[str] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    @property
    def length(self) -> int:
        return sum(map(len, self.sentences)) + max(len(self.sentences) - 1, 0)

    def add(self, frame: str, draw: Callable[[str], Span]) -> None:
        """Append `frame` with every `{name}` replaced by `draw(name)`."""
        start = self.length + 1 if self.sentences else 0
        sentence, used = "", 0
        for blank in _BLANK.finditer(frame):
            sentence += frame[used : blank.start()]
            span = draw(blank.group(1))
            at = start + len(sentence)
            self.spans.append(replace(span, start=at, end=at + len(span.word)))
            sentence += span.word
            used = blank.end()
        self.sentences.append(sentence + frame[used:])


def word_probability(world: World, aspect: Aspect, word: str, style: int, rating: int) -> float:
    """Return P(w | k, r), Eq. A.

    Args:
        world: The generative model.
        aspect: What the sentence is about.
        word: w.
        style: k, the index of the writer's style.
        rating: r, from 1 to 5.
    """
    praise = world.p_praise[rating - 1]
    own = aspect.styles[style]
    total = 0.0
    for share, mine, pool in (
        (praise, own.praise, polarity_words(aspect, praise=True)),
        (1 - praise, own.complaint, polarity_words(aspect, praise=False)),
    ):
        total += share * (
            world.p_style * mine.count(word) / len(mine) + (1 - world.p_style) * pool.count(word) / len(pool)
        )
    return total


def style_posterior(world: World, seen: Sequence[tuple[Aspect, str, int]]) -> tuple[float, ...]:
    """Return P(k | seen) ∝ π_k · Π_i P(w_i | k, r_i), given (aspect, word, rating) triples of the writer."""
    weights = np.array(world.shares, dtype=np.float64)
    for aspect, word, rating in seen:
        weights *= [word_probability(world, aspect, word, k, rating) for k in range(len(world.shares))]
    return tuple(float(weight) for weight in weights / weights.sum())


def marginal_probability(
    world: World, aspect: Aspect, word: str, rating: int, seen: Sequence[tuple[Aspect, str, int]] = ()
) -> float:
    """Return P(w | x, y_<t), Eq. B: for a writer of whom only the taste words in `seen` are known.

    Args:
        world: The generative model.
        aspect: What the sentence is about.
        word: w.
        rating: r, from 1 to 5.
        seen: (aspect, word, rating) triples.
    """
    posterior = style_posterior(world, seen)
    return sum(share * word_probability(world, aspect, word, k, rating) for k, share in enumerate(posterior))


def polarity_words(aspect: Aspect, *, praise: bool) -> tuple[str, ...]:
    """Return L(s): the words of every style with one polarity."""
    return tuple(word for style in aspect.styles for word in (style.praise if praise else style.complaint))


def draw_taste_word(world: World, aspect: Aspect, style: int, rating: int, rng: np.random.Generator) -> str:
    """Draw a word from Eq. A.

    Args:
        world: The generative model.
        aspect: What the sentence is about.
        style: The index of the writer's style.
        rating: From 1 to 5.
        rng: Source of randomness.
    """
    praise = bool(rng.random() < world.p_praise[rating - 1])
    if rng.random() < world.p_style:
        own = aspect.styles[style]
        return pick(own.praise if praise else own.complaint, rng)
    return pick(polarity_words(aspect, praise=praise), rng)


def compose_review(
    world: World, style: int, item_words: dict[str, str], rating: int, rng: np.random.Generator
) -> ReviewText:
    """Write one review: an opening, sentences on aspects and on the item in any order, a closing, padding if short.

    Args:
        world: The generative model.
        style: The index of the writer's style.
        item_words: The item's word of every kind in `lexicon.ITEM_WORDS`.
        rating: Whole stars, 1 to 5.
        rng: Source of randomness.
    """
    seen: list[tuple[Aspect, str, int]] = []

    def taste(_: str) -> Span:
        aspect = world.aspects[index]
        word = draw_taste_word(world, aspect, style, rating, rng)
        factual = word_probability(world, aspect, word, style, rating)
        counterfactual = marginal_probability(world, aspect, word, rating, seen)
        seen.append((aspect, word, rating))
        return Span(0, 0, word, "taste", aspect.name, aspect.styles[style].name, factual, counterfactual)

    def control(kind: str) -> Span:
        return _control_word(world, kind, item_words, rating, rng)

    aspects = rng.permutation(len(world.aspects))[: world.aspects_per_review]
    remark_after = int(rng.integers(len(aspects)))
    draft = _Draft()
    draft.add(pick(lexicon.OPENINGS, rng), control)
    for position, index in enumerate(int(a) for a in aspects):
        draft.add(pick(world.aspects[index].frames, rng), taste)
        if position == remark_after:
            draft.add(pick(lexicon.REMARKS, rng), control)
    draft.add(pick(lexicon.CLOSINGS, rng), control)
    padding = [lexicon.PADDING[int(i)] for i in rng.permutation(len(lexicon.PADDING))]
    while draft.length < world.min_chars:
        # The length is checked after the last drawn word only: a condition on it would change (A).
        padding.append(padding[0])
        draft.add(padding.pop(0), control)
    return ReviewText(" ".join(draft.sentences), tuple(draft.spans))


def compose_title(item_words: dict[str, str], rating: int, rng: np.random.Generator) -> str:
    """Write a review title. It is part of the query, so it depends on the rating and the item only.

    Args:
        item_words: The item's word of every kind.
        rating: Whole stars, 1 to 5.
        rng: Source of randomness.
    """
    words = {kind: pick(of_rating[rating - 1], rng) for kind, of_rating in lexicon.RATING_WORDS.items()}
    title = pick(lexicon.REVIEW_TITLES, rng).format(stars=lexicon.STAR_WORDS[rating - 1], **words, **item_words)
    return title[0].upper() + title[1:]


def _control_word(world: World, kind: str, item_words: dict[str, str], rating: int, rng: np.random.Generator) -> Span:
    """Draw a word that the item or the rating drives; both branches give it the same probability."""
    if kind in lexicon.RATING_WORDS:
        words = lexicon.RATING_WORDS[kind][rating - 1]
        word = pick(words, rng)
        return Span(0, 0, word, "rating", kind, None, 1 / len(words), 1 / len(words))
    pool = lexicon.ITEM_WORDS[kind]
    own = item_words[kind]
    word = own if rng.random() < world.p_item else pick(pool, rng)
    probability = world.p_item * (word == own) + (1 - world.p_item) / len(pool)
    return Span(0, 0, word, "item", kind, None, probability, probability)


def pick(values: Sequence[T], rng: np.random.Generator) -> T:
    """Return one of `values`, all equally likely."""
    return values[int(rng.integers(len(values)))]

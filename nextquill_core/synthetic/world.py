"""The generative model of synthetic reviews, and the exact causal effect of the writer's tastes on each word.

Every user holds one taste k in all reviews, drawn from the population. A taste is a main style and, in a world where
tastes overlap, a second one. The taste influences neither which items a user reviews, nor the rating r, nor the review
title, nor which aspects a review mentions: the query x says nothing about it. A share p_off of the reviews is off-style
(o = 1): it has common words only. A sentence on an aspect draws its word w in three steps:

    s ~ P(s | r)                                    polarity: praise or complaint
    from ~ main, second or common                   with p_style, p_second and the rest; always common if o = 1
    w ~ uniform over L(main, s) or L(second, s), or over L(s) = the words of all styles with that polarity

so that, for a reader who knows the words before in the same review,

    P(w | k, o = 0, r) = Σ_s P(s | r) · [ p_style · 1{w ∈ L(main, s)} / |L(main, s)| + p_second · (the same of second)
                                          + (1 − p_style − p_second) · 1{w ∈ L(s)} / |L(s)| ]                     (A)
    P(w | k, o = 1, r) = Σ_s P(s | r) · 1{w ∈ L(s)} / |L(s)|
    P(w | k, x, y_<t)  = Σ_o P(o | k, y_<t) · P(w | k, o, r)
    P(w | x, y_<t)     = Σ_k Σ_o P(k, o | y_<t) · P(w | k, o, r),
                         P(k, o | y_<t) ∝ π_k · P(o) · Π_{w' in y_<t} P(w' | k, o, r)                             (B)
    effect(w)          = P(w | k, x, y_<t) − P(w | x, y_<t)                                                       (C)

In the world `plain`, tastes have no second style and no review is off-style. The first taste word of a review says so
much that later ones gain little from the history. In the world `mixed`, one word says less, so later words gain too,
and a few past reviews leave a doubt about the taste. Words drawn from the item or from the rating have effect 0 for
every writer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from nextquill_core.synthetic import lexicon
from nextquill_core.synthetic.lexicon import Aspect

T = TypeVar("T")
Seen = tuple[Aspect, str, int]
"""A taste word with its aspect and the rating of its review."""
_BLANK = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity, because it is the key of caches
class World:
    """The parameters of the generative model.

    Attributes:
        shares: The share of the population that has each style as its main one.
        p_style: The probability that a taste word comes from the writer's main style.
        p_second: The probability that it comes from the writer's second style; 0 in a world without second styles.
        p_off: The share of the reviews that are off-style.
        p_praise: P(praise | r) for ratings 1 to 5.
        p_item: Probability that an item word is the item's and not any word of its kind.
        aspects_per_review: Number of aspects that a review mentions, each once.
        min_chars: Padding is added until a review has this many characters.
    """

    aspects: tuple[Aspect, ...] = lexicon.ASPECTS
    shares: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)
    p_style: float = 0.85
    p_second: float = 0.0
    p_off: float = 0.0
    p_praise: tuple[float, ...] = (0.05, 0.2, 0.5, 0.85, 0.95)
    p_item: float = 0.9
    aspects_per_review: int = 5
    min_chars: int = 200


WORLDS: Mapping[str, World] = MappingProxyType(
    {"plain": World(), "mixed": World(p_style=0.6, p_second=0.2, p_off=0.15)}
)
"""The worlds by name."""


class Taste(NamedTuple):
    """A taste: the indices of its main and its second style (None for no second one), and its share π_k."""

    main: int
    second: int | None
    share: float


@lru_cache
def tastes(world: World) -> tuple[Taste, ...]:
    """Return the tastes of a world; k is an index into them. The second style is any other, by the styles' shares."""
    if not world.p_second:
        return tuple(Taste(main, None, share) for main, share in enumerate(world.shares))
    return tuple(
        Taste(main, second, share * other / (sum(world.shares) - share))
        for main, share in enumerate(world.shares)
        for second, other in enumerate(world.shares)
        if second != main
    )


@dataclass(frozen=True, slots=True)
class Span:
    """One drawn word of a text, at characters [start, end).

    Attributes:
        source: The aspect, or the kind of item or rating word.
        style: The writer's main style; None for a word that no taste drives.
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
    """A review, its drawn words in the order of the text, and whether it is off-style."""

    text: str
    spans: tuple[Span, ...]
    off: bool = False


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


def word_probability(world: World, aspect: Aspect, word: str, taste: int, rating: int, *, off: bool = False) -> float:
    """Return P(w | k, o, r), Eq. A.

    Args:
        world: The generative model.
        aspect: What the sentence is about.
        word: w.
        taste: k, the index of the writer's taste.
        rating: r, from 1 to 5.
        off: o, whether the review is off-style.
    """
    main, second, _ = tastes(world)[taste]
    p_main, p_second = (0.0, 0.0) if off else (world.p_style, world.p_second)
    p_praise = world.p_praise[rating - 1]
    total = 0.0
    for praise, share in ((True, p_praise), (False, 1 - p_praise)):
        own, pool = _words(aspect, main, praise=praise), polarity_words(aspect, praise=praise)
        drawn = p_main * own.count(word) / len(own)
        if second is not None:
            other = _words(aspect, second, praise=praise)
            drawn += p_second * other.count(word) / len(other)
        total += share * (drawn + (1 - p_main - p_second) * pool.count(word) / len(pool))
    return total


def known_probability(
    world: World, taste: int, aspect: Aspect, word: str, rating: int, seen: Sequence[Seen] = ()
) -> float:
    """Return P(w | k, x, y_<t): for a writer whose taste is known.

    Args:
        world: The generative model.
        taste: k, the index of the writer's taste.
        aspect: What the sentence is about.
        word: w.
        rating: r, from 1 to 5.
        seen: The taste words before in the same review.
    """
    known = [float(k == taste) for k in range(len(tastes(world)))]
    return marginal_probability(world, aspect, word, rating, seen, prior=known)


def marginal_probability(
    world: World,
    aspect: Aspect,
    word: str,
    rating: int,
    seen: Sequence[Seen] = (),
    *,
    prior: Sequence[float] | None = None,
) -> float:
    """Return P(w | x, y_<t), Eq. B: for a writer of whom only the taste words in `seen` are known.

    Args:
        world: The generative model.
        aspect: What the sentence is about.
        word: w.
        rating: r, from 1 to 5.
        seen: The taste words before in the same review.
        prior: P(k) before this review, for a reader who knows more of the writer, such as `taste_posterior` of past
            reviews; π by default.
    """
    states = _state_posterior(world, seen, prior)
    return sum(float(share * p) for share, p in zip(states.flat, _table(world, aspect, word, rating).flat, strict=True))


def taste_posterior(world: World, reviews: Sequence[Sequence[Seen]]) -> tuple[float, ...]:
    """Return P(k | reviews of the writer), given the taste words of each review."""
    belief: Sequence[float] | None = None
    for seen in reviews:
        belief = [float(share) for share in _state_posterior(world, seen, belief).sum(axis=1)]
    return tuple(belief if belief is not None else (taste.share for taste in tastes(world)))


def _state_posterior(world: World, seen: Sequence[Seen], prior: Sequence[float] | None) -> np.ndarray:
    """Return P(k, o | seen in one review), shape (tastes, 1), or (tastes, 2) where reviews can be off-style."""
    belief = np.array([taste.share for taste in tastes(world)] if prior is None else prior, dtype=np.float64)
    moods = np.array([1 - world.p_off, world.p_off] if world.p_off else [1.0])
    weights = belief[:, None] * moods
    for aspect, word, rating in seen:
        weights = weights * _table(world, aspect, word, rating)
    normalised: np.ndarray = weights / weights.sum()
    return normalised


@lru_cache(maxsize=4096)
def _table(world: World, aspect: Aspect, word: str, rating: int) -> np.ndarray:
    """Return P(w | k, o, r) of every state, in the shape of `_state_posterior`."""
    moods = (False, True) if world.p_off else (False,)
    return np.array(
        [
            [word_probability(world, aspect, word, k, rating, off=off) for off in moods]
            for k in range(len(tastes(world)))
        ]
    )


def polarity_words(aspect: Aspect, *, praise: bool) -> tuple[str, ...]:
    """Return L(s): the words of every style with one polarity."""
    return tuple(word for style in aspect.styles for word in (style.praise if praise else style.complaint))


def _words(aspect: Aspect, style: int, *, praise: bool) -> tuple[str, ...]:
    """Return L(style, s)."""
    return aspect.styles[style].praise if praise else aspect.styles[style].complaint


def draw_taste_word(
    world: World, aspect: Aspect, taste: int, rating: int, rng: np.random.Generator, *, off: bool = False
) -> str:
    """Draw a word from Eq. A.

    Args:
        world: The generative model.
        aspect: What the sentence is about.
        taste: The index of the writer's taste.
        rating: From 1 to 5.
        rng: Source of randomness.
        off: Whether the review is off-style.
    """
    main, second, _ = tastes(world)[taste]
    praise = bool(rng.random() < world.p_praise[rating - 1])
    chance = 1.0 if off else rng.random()
    if chance < world.p_style:
        return pick(_words(aspect, main, praise=praise), rng)
    if second is not None and chance < world.p_style + world.p_second:
        return pick(_words(aspect, second, praise=praise), rng)
    return pick(polarity_words(aspect, praise=praise), rng)


def compose_review(
    world: World, taste: int, item_words: dict[str, str], rating: int, rng: np.random.Generator
) -> ReviewText:
    """Write one review: an opening, sentences on aspects and on the item in any order, a closing, padding if short.

    Args:
        world: The generative model.
        taste: The index of the writer's taste.
        item_words: The item's word of every kind in `lexicon.ITEM_WORDS`.
        rating: Whole stars, 1 to 5.
        rng: Source of randomness.
    """
    seen: list[Seen] = []
    off = bool(world.p_off) and bool(rng.random() < world.p_off)

    def drawn(_: str) -> Span:
        aspect = world.aspects[index]
        word = draw_taste_word(world, aspect, taste, rating, rng, off=off)
        factual = known_probability(world, taste, aspect, word, rating, seen)
        counterfactual = marginal_probability(world, aspect, word, rating, seen)
        seen.append((aspect, word, rating))
        style = aspect.styles[tastes(world)[taste].main].name
        return Span(0, 0, word, "taste", aspect.name, style, factual, counterfactual)

    def control(kind: str) -> Span:
        return _control_word(world, kind, item_words, rating, rng)

    aspects = rng.permutation(len(world.aspects))[: world.aspects_per_review]
    remark_after = int(rng.integers(len(aspects)))
    draft = _Draft()
    draft.add(pick(lexicon.OPENINGS, rng), control)
    for position, index in enumerate(int(a) for a in aspects):
        draft.add(pick(world.aspects[index].frames, rng), drawn)
        if position == remark_after:
            draft.add(pick(lexicon.REMARKS, rng), control)
    draft.add(pick(lexicon.CLOSINGS, rng), control)
    padding = [lexicon.PADDING[int(i)] for i in rng.permutation(len(lexicon.PADDING))]
    while draft.length < world.min_chars:
        # The length is checked after the last drawn word only: a condition on it would change (A).
        padding.append(padding[0])
        draft.add(padding.pop(0), control)
    return ReviewText(" ".join(draft.sentences), tuple(draft.spans), off)


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

"""The perfect reader: what the shown reviews say about a writer's taste, and how likely that makes the next words.

A reader who knows the rules of the world and sees H past reviews expects

    P(w | h, x, y_<t) = Σ_k P(k | h, y_<t) · P(w | k, y_<t),  P(k | h) ∝ π_k · Π_{reviews in h} P(their words | k)

No model that sees the same reviews can know more, so its agreement with the exact effects, which know the taste itself,
is the most that a model can reach.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nextquill_core.synthetic.truth import TrueWord
from nextquill_core.synthetic.world import Seen, World, marginal_probability, taste_posterior


@dataclass(frozen=True, slots=True)
class ReadReview:
    """A review as the reader sees it: its taste words in the order of the text, and its stars."""

    words: Sequence[TrueWord]
    rating: int


@dataclass(frozen=True, slots=True)
class ReadWord:
    """What the perfect reader expects of a taste word: its probability with the history and without."""

    p_with: float
    p_without: float

    @property
    def effect(self) -> float:
        """The effect of the history, a difference of probabilities."""
        return self.p_with - self.p_without

    @property
    def gain(self) -> float:
        """How much likelier the history makes the word, in nats."""
        return math.log(self.p_with / self.p_without)


def read_words(world: World, history: Sequence[ReadReview], review: ReadReview) -> list[ReadWord]:
    """Return what the perfect reader expects of each taste word of a review.

    Args:
        world: The generative model.
        history: The past reviews of the writer that are shown.
        review: The review.
    """
    belief = taste_posterior(world, [_seen(world, past) for past in history])
    words = _seen(world, review)
    found = []
    for number, (aspect, word, rating) in enumerate(words):
        before = words[:number]
        found.append(
            ReadWord(
                marginal_probability(world, aspect, word, rating, before, prior=belief),
                marginal_probability(world, aspect, word, rating, before),
            )
        )
    return found


def _seen(world: World, review: ReadReview) -> list[Seen]:
    aspects = {aspect.name: aspect for aspect in world.aspects}
    return [(aspects[one.aspect], one.word, review.rating) for one in review.words]

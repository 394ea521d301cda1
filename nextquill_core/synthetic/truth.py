"""The ground truth of a synthetic category, as JSON records."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from nextquill_core.synthetic import lexicon
from nextquill_core.synthetic.people import Person, WrittenReview
from nextquill_core.synthetic.world import Span, World


def user_truth(world: World, person: Person) -> dict[str, Any]:
    """A user's kind, and the style they hold in everything they write."""
    return {"user_id": person.user_id, "kind": person.kind, "style": world.aspects[0].styles[person.style].name}


def review_truth(review: WrittenReview) -> dict[str, Any]:
    """The drawn words of one review: those of taste with their exact effects, and those of item and rating."""
    return {
        "user_id": review.person.user_id,
        "parent_asin": review.item.asin,
        "timestamp": review.timestamp_ms,
        "spans": [_taste_word(span) for span in review.body.spans if span.driver == "taste"],
        "controls": [_control_word(span) for span in review.body.spans if span.driver != "taste"],
    }


def world_truth(world: World, users: int, seed: int) -> dict[str, Any]:
    """Everything the category was made from."""
    return {
        "seed": seed,
        "users": users,
        **asdict(world),
        "item_words": lexicon.ITEM_WORDS,
        "rating_words": lexicon.RATING_WORDS,
        "effect": "P(word | style, x, words before) - P(word | x, words before)",
    }


def _taste_word(span: Span) -> dict[str, Any]:
    return {
        "start": span.start,
        "end": span.end,
        "word": span.word,
        "aspect": span.source,
        "style": span.style,
        "p_factual": span.p_factual,
        "p_counterfactual": span.p_counterfactual,
        "effect": span.effect,
    }


def _control_word(span: Span) -> dict[str, Any]:
    return {
        "start": span.start,
        "end": span.end,
        "word": span.word,
        "driver": span.driver,
        "source": span.source,
        "effect": span.effect,
    }

"""Reviewers: their styles follow the population, and they review different items, oldest first."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from nextquill_core.synthetic.catalog import make_catalog
from nextquill_core.synthetic.reviewers import COLD_REVIEWS, REGULAR_REVIEWS, make_reviewers, write_reviews
from nextquill_core.synthetic.world import World


@pytest.mark.parametrize(("regular", "cold"), [(40, 8), (7, 0), (1, 3)])
def test_styles_follow_the_population_in_each_group(regular: int, cold: int) -> None:
    world = World(shares=(0.5, 0.25, 0.125, 0.125))
    reviewers = make_reviewers(world, regular, cold, np.random.default_rng(0))
    assert [reviewer.kind for reviewer in reviewers] == ["regular"] * regular + ["cold"] * cold
    assert len({reviewer.user_id for reviewer in reviewers}) == regular + cold
    for group in (reviewers[:regular], reviewers[regular:]):
        styles = Counter(reviewer.taste for reviewer in group)
        assert all(abs(styles[style] - share * len(group)) < 1 for style, share in enumerate(world.shares))


def test_a_reviewer_reviews_different_items_oldest_first() -> None:
    rng = np.random.default_rng(1)
    world, catalog = World(), make_catalog(40, rng)
    for reviewer in make_reviewers(world, 3, 3, rng):
        reviews = list(write_reviews(world, reviewer, catalog, np.full(40, 1 / 40), rng))
        low, high = REGULAR_REVIEWS if reviewer.kind == "regular" else COLD_REVIEWS
        assert low <= len(reviews) <= high
        assert len({review.item.asin for review in reviews}) == len(reviews)
        times = [review.timestamp_ms for review in reviews]
        assert times == sorted(set(times))
        assert all(1 <= review.rating <= 5 for review in reviews)

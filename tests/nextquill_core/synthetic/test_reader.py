"""The perfect reader knows as much as the shown reviews say, and no more."""

from __future__ import annotations

import numpy as np
import pytest

from nextquill_core.synthetic import lexicon
from nextquill_core.synthetic.reader import ReadReview, read_words
from nextquill_core.synthetic.truth import TrueWord
from nextquill_core.synthetic.world import WORLDS, compose_review

ITEM = {kind: words[0] for kind, words in lexicon.ITEM_WORDS.items()}


def reviews(world: str, taste: int, count: int, seed: int) -> list[ReadReview]:
    """Return reviews of one writer, all with five stars."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        spans = compose_review(WORLDS[world], taste, ITEM, 5, rng).spans
        words = [TrueWord(s.start, s.end, s.word, s.effect, "", s.source) for s in spans if s.driver == "taste"]
        found.append(ReadReview(words, 5))
    return found


def test_without_a_history_there_is_no_effect() -> None:
    (review,) = reviews("mixed", 0, 1, seed=1)
    assert [word.effect for word in read_words(WORLDS["mixed"], [], review)] == [0] * 5
    assert [word.gain for word in read_words(WORLDS["mixed"], [], review)] == [0] * 5


def test_one_word_is_bayes_by_hand() -> None:
    """In the plain world a five-star `daring` of a past review: its style has P = 0.85/4 + 0.15/16, others 0.15/16."""
    past = ReadReview([TrueWord(0, 6, "daring", 0.0, "", "plot")], 5)
    own, other = 0.85 / 4 + 0.15 / 16, 0.15 / 16
    bold = own / (own + 3 * other)
    (read,) = read_words(WORLDS["plain"], [past], ReadReview([TrueWord(0, 6, "fierce", 0.0, "", "cast")], 5))
    assert read.p_without == pytest.approx(0.95 / 16)
    assert read.p_with == pytest.approx(0.95 * (bold * own + (1 - bold) * other))


@pytest.mark.parametrize(("world", "least", "most"), [("plain", 0.99, 1.0), ("mixed", 0.88, 0.98)])
def test_four_reviews_leave_a_doubt_in_the_mixed_world_alone(world: str, least: float, most: float) -> None:
    pairs, long = [], []
    for seed in range(80):
        *history, review = reviews(world, seed % 4, 41, seed)
        exact = [word.effect for word in review.words]
        pairs += zip((word.effect for word in read_words(WORLDS[world], history[:4], review)), exact, strict=True)
        long += zip((word.effect for word in read_words(WORLDS[world], history, review)), exact, strict=True)
    assert least <= np.corrcoef(*np.array(pairs).T)[0, 1] <= most + 1e-9
    assert np.corrcoef(*np.array(long).T)[0, 1] > 0.99, "forty reviews leave none"

"""Retrieval: BM25 by its formula, vectors by hand, and the best k in time order."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nextquill_core.errors import UserError
from nextquill_core.methods.registry import Method
from nextquill_core.methods.retrieval import (
    bm25_scores,
    dense_scores,
    query_text,
    review_text,
    with_best,
    with_selected,
)
from nextquill_core.schemas import Example, Item, Review
from tests.conftest import review

FOX = Review(Item("Red fox", ""), 1.0, "", "Quick!")
SLOW = Review(Item("Fox", ""), 2.0, "", "slow, SLOW")
OWL = Review(Item("Green owl", ""), 3.0, "", "wise")
WANTED = Review(Item("A fox", "so slow"), 4.0, "Owl", "the wise and quick text is never read")


def example(*history: Review, target: Review = WANTED, name: str = "C:u:0") -> Example:
    return Example(name, "u", "C", "test", target, history)


def test_texts_hold_the_fields_as_the_prompt_names_them() -> None:
    past = Review(Item("Persuasion", "Another."), 4.0, "Late love", "I wept.")
    assert query_text(example(past)) == "Item: A fox\nDescription: so slow\nRating: 4\nTitle: Owl"
    assert review_text(past) == (
        "Item: Persuasion\nDescription: Another.\nRating: 4\nTitle: Late love\nReview:\nI wept."
    )


def test_bm25_by_hand() -> None:
    # Four words each, so that the length part is 1: f = 1 gives 1/2.5, f = 2 gives 2/3.5. "fox" is in 2 of 3 reviews:
    # log(1 + 1.5/2.5); "slow" and "owl" in one: log(1 + 2.5/1.5). "4", "a" and "so" are in none.
    fox, rare = math.log(1.6), math.log(8 / 3)
    assert bm25_scores(example(FOX, SLOW, OWL)) == pytest.approx([fox / 2.5, fox / 2.5 + rare * 2 / 3.5, rare / 2.5])


def slow_bm25(query: list[str], documents: list[list[str]]) -> list[float]:
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in query:
            holding = sum(word in other for other in documents)
            often = document.count(word)
            idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            score += idf * often / (often + 1.5 * (0.25 + 0.75 * len(document) / mean))
        scores.append(score)
    return scores


def words(past: Review, *, query: bool = False) -> list[str]:
    parts = [past.item.title, past.item.description, str(int(past.rating)), past.title, "" if query else past.text]
    return re.findall(r"[a-z0-9]+", " ".join(parts).lower())


def test_bm25_equals_the_formula() -> None:
    for size in range(1, 9):
        asked = example(*(review(size * 20 + past, 5 + 3 * past) for past in range(size)), target=review(size, 9))
        expected = slow_bm25(words(asked.target, query=True), [words(past) for past in asked.history])
        assert bm25_scores(asked) == pytest.approx(expected, rel=1e-5)


def test_the_review_to_be_written_is_not_searched_for() -> None:
    assert bm25_scores(example(FOX, SLOW, OWL)) == bm25_scores(
        example(FOX, SLOW, OWL, target=replace(WANTED, text="owl owl owl"))
    )


def test_without_a_known_word_the_newest_win() -> None:
    unknown = example(FOX, SLOW, OWL, target=Review(Item("Ночь", "\U0001f989"), 5.0, "ليل", ""))
    assert bm25_scores(unknown) == [0.0, 0.0, 0.0]
    assert with_best(unknown, bm25_scores(unknown), 2).history == (SLOW, OWL)
    assert bm25_scores(example()) == []


def test_any_script_is_words_and_emoji_are_none() -> None:
    hebrew = Review(Item("ספר", ""), 1.0, "", "שלום \U0001f600")
    cafe = Review(Item("", ""), 2.0, "", "un cafe\u0301 noir")  # e and a combining accent
    nothing = Review(Item("\U0001f469\u200d\U0001f469\u200d\U0001f467", ""), 3.0, "…", "\U0001f600\U0001f600")
    asked = example(hebrew, cafe, nothing, target=Review(Item("שלום", "CAFÉ"), 9.0, "\U0001f600", ""))
    first, second, third = bm25_scores(asked)
    assert first > 0
    assert second > 0
    assert third == 0


def test_a_history_without_a_single_word_is_no_trouble() -> None:
    # A rating is always a word, so the least that a review can be is one.
    blank = Review(Item("", ""), 4.0, "", "")
    assert bm25_scores(example(blank, blank)) == pytest.approx([math.log(1.2) / 2.5] * 2)


class ByHand:
    """An encoder that knows its vectors: how often `o` and `e` stand in the text."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, texts: Sequence[str], advance: Callable[[int], None]) -> Tensor:
        self.calls.append(list(texts))
        for _ in texts:
            advance(1)
        return torch.tensor([[float(text.count("o")), float(text.count("e"))] for text in texts])


def test_dense_scores_are_inner_products_and_no_text_is_encoded_twice() -> None:
    first, empty = example(FOX, OWL), example(name="C:u:1")
    second = example(FOX, SLOW, target=FOX, name="C:u:2")
    encoder: Any = ByHand()
    heard: list[int] = []
    scores = dense_scores([first, empty, second], encoder, heard.append)

    def vector(text: str) -> tuple[int, int]:
        return text.count("o"), text.count("e")

    for asked, found in zip((first, empty, second), scores, strict=True):
        o, e = vector(query_text(asked))
        expected = [o * vector(review_text(past))[0] + e * vector(review_text(past))[1] for past in asked.history]
        assert found == expected
    (texts,) = encoder.calls
    assert sorted(texts) == sorted({*map(query_text, (first, second)), *map(review_text, (FOX, OWL, SLOW))})
    assert sum(heard) == 3


def test_dense_scores_of_nothing() -> None:
    heard: list[int] = []
    encoder: Any = ByHand()
    assert dense_scores([], encoder) == []
    assert dense_scores([example(), example()], encoder, heard.append) == [[], []]
    assert sum(heard) == 2


def test_the_best_stay_in_time_order_and_ties_go_to_the_newer() -> None:
    past = tuple(review(number) for number in range(5))
    asked = example(*past)
    scores = [3.0, 1.0, 2.0, 1.0, 0.5]
    assert with_best(asked, scores, 3).history == (past[0], past[2], past[3])
    assert with_best(asked, scores, 1).history == past[:1]
    assert with_best(asked, scores, 9) == asked
    assert with_best(asked, scores, 0).history == ()
    assert with_best(asked, [-1.0, -3.0, -2.0, -9.0, -9.0], 2).history == (past[0], past[2])
    with pytest.raises(ValueError, match="4 scores for 5 past reviews"):
        with_best(asked, scores[:4], 3)


def test_a_method_selects_past_reviews_in_order_without_seeing_the_text_to_be_written() -> None:
    asked = example(FOX, SLOW, OWL)
    seen: list[Example] = []

    def selected(*chosen: Review) -> Example:
        def select(one: Example, _count: int) -> Sequence[Review]:
            seen.append(one)
            return chosen

        return with_selected(Method("mine", "", "mine", select=select), asked, 2)

    assert selected(FOX, OWL) == replace(asked, history=(FOX, OWL))
    assert (seen[0].target.text, seen[0].target.item) == ("", WANTED.item)
    for wrong in ((FOX, SLOW, OWL), (OWL, FOX), (FOX, FOX), (WANTED,)):
        with pytest.raises(UserError, match="method `mine` does not select up to 2 past reviews of C:u:0, oldest"):
            selected(*wrong)
    nothing: Any = lambda *_: None  # noqa: E731 - short
    with pytest.raises(UserError, match="fix `select` in its package"):
        with_selected(Method("mine", "", "mine", select=nothing), asked, 2)

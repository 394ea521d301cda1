"""Prompts within a limit: whole where they fit, else with all texts cut to the greatest common length that fits."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from nextquill_core.errors import ModelError
from nextquill_core.methods.fitted_prompts import FittedPrompts, cut_review, cut_text
from nextquill_core.prompts import Template
from nextquill_core.records import Item, Review

TEXTS = ("a quiet book about rivers that never ends and never begins", "warm", "slow but bright and always dull")
DIGITS = ("271828182845904523536028747135", "42", "31415926535897")
"""The small vocabulary has no token of several digits, so a longer text always has more tokens."""


def build(length: int | None, texts: tuple[str, ...] = TEXTS) -> str:
    return "Read:\n" + "\n".join(cut_text(text, length) for text in texts) + "\nSay:\n"


def test_texts_and_reviews_are_cut_at_their_ends() -> None:
    assert cut_text("a quiet book", 2) == "a"
    assert cut_text("a quiet book", None) == "a quiet book"
    review = Review(Item("Emma", "A novel."), 4.0, "Late", "I wept.", 7)
    assert cut_review(review, 3) == Review(Item("Emm", "A n"), 4.0, "Lat", "I w", 7)
    assert cut_review(review, None) is review


def test_a_prompt_that_is_cut_fits(tiny_tokenizer: Any) -> None:
    # A longer text can have fewer tokens, so that a length beyond the one that is found may fit too.
    sizes = {length: len(tiny_tokenizer(build(length))["input_ids"]) for length in range(len(TEXTS[0]) + 1)}
    for limit in range(sizes[0], sizes[len(TEXTS[0])] + 1):
        ids, clipped = FittedPrompts(tiny_tokenizer, limit).encode(build, len(TEXTS[0]), "it", "cut it")
        greatest = max(length for length, size in sizes.items() if size <= limit)
        assert clipped == (limit < sizes[len(TEXTS[0])])
        assert len(ids) <= limit
        assert tiny_tokenizer.decode(ids) in {build(length) for length in range(greatest + 1)} | {build(None)}


def test_the_greatest_length_that_fits_beside_trying_all(tiny_tokenizer: Any) -> None:
    build_digits, longest = partial(build, texts=DIGITS), len(DIGITS[0])
    sizes = [len(tiny_tokenizer(build_digits(length))["input_ids"]) for length in range(longest + 1)]
    assert sizes == sorted(set(sizes)), "each digit is a token"
    for limit in range(sizes[0], sizes[-1] + 1):
        ids, clipped = FittedPrompts(tiny_tokenizer, limit).encode(build_digits, longest, "it", "cut it")
        greatest = max(length for length, size in enumerate(sizes) if size <= limit)
        assert tiny_tokenizer.decode(ids) == build_digits(greatest)
        assert clipped == (greatest < longest)


def test_a_template_stands_around_the_text(tiny_tokenizer: Any) -> None:
    template = Template("chat", "OPEN ", " CLOSE")
    ids, _ = FittedPrompts(tiny_tokenizer, 500, template).encode(build, 60, "it", "cut it")
    assert tiny_tokenizer.decode(ids) == f"OPEN {build(None)} CLOSE"


def test_what_never_fits_says_what_to_change(tiny_tokenizer: Any) -> None:
    with pytest.raises(ModelError) as caught:
        FittedPrompts(tiny_tokenizer, 3).encode(build, 60, "a profile", "lower evaluate.profiles.compared")
    assert "the prompt for a profile needs" in str(caught.value)
    assert str(caught.value).endswith("raise it above 3, or lower evaluate.profiles.compared")

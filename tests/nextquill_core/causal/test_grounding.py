"""Grounded weights by hand, and against a reference that looks at one character at a time."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextquill_core.causal.grounding import FUNCTION_WORDS, folded, grounded_tokens, is_name, words
from nextquill_core.causal.weights import weights_table
from nextquill_core.errors import UserError
from nextquill_core.records import Example, Item, Review, ShownAnswer
from nextquill_core.schemas import EFFECTS
from nextquill_core.tokens import PairEncoder, token_texts
from tests.conftest import review, text
from tests.effort import trials

NOTHING = frozenset[str]()


def past(text: str, title: str = "", item: str = "") -> Review:
    return Review(Item(item, item), 5.0, title, text)


def answer(pieces: Sequence[str], *history: Review, example_id: str = "C:u:0") -> ShownAnswer:
    """Return an answer whose tokens have these texts, and a stop token."""
    ends = [sum(map(len, pieces[: place + 1])) for place in range(len(pieces))]
    spans = [*zip([0, *ends], ends, strict=False), (ends[-1], ends[-1])]
    return ShownAnswer(example_id, "".join(pieces), [7] * len(spans), spans, history)


def marks(*pieces: str, history: Sequence[Review], ignored: frozenset[str] = NOTHING) -> str:
    """Return one sign for each token, `x` where it is grounded."""
    return "".join("-x"[flag] for flag in grounded_tokens(answer(pieces, *history), ignored, words))


@pytest.mark.parametrize(
    ("pieces", "history", "expected"),
    [
        # A word of two tokens counts for both; the full stop and the stop token do not.
        (["I", " ad", "ore", " rivers", "."], [past("They adore it.")], "-xx---"),
        # In any case, in the title of a review too, but not in what the shop says about its item.
        (["QUIET", " Rivers", " and", " banks"], [past("a RIVERS", title="Quiet", item="banks and")], "xx---"),
        # A part of a word is not the word.
        (["river", " rivers"], [past("riverside river")], "x--"),
        # A token that ends one word and begins another counts for either.
        (["good", "-nat", "ured"], [past("natured")], "-xx-"),
        (["good-", "natured"], [past("good")], "x--"),
        # Digits are words, punctuation is none.
        (["5", " stars", "!!!"], [past("5!!!")], "x---"),
        # Folding may change the number of letters, and marks belong to the letter before them.
        (["die", " STRASSE"], [past("Straße")], "-x-"),
        (["cafe\u0301", " cafe"], [past("CAFÉ")], "x--"),
        (["word"], [], "--"),
    ],
)
def test_by_hand(pieces: list[str], history: list[Review], expected: str) -> None:
    assert marks(*pieces, history=history) == expected


def test_function_words_are_left_out_unless_they_are_asked_for() -> None:
    history = [past("I don't like the plot")]
    pieces = ["I", " like", " the", " plot", ",", " don", "'t", " you"]
    assert marks(*pieces, history=history) == "xxxx-xx--"
    assert marks(*pieces, history=history, ignored=FUNCTION_WORDS) == "-x-x-----"
    assert {folded(word) for word in FUNCTION_WORDS} == set(FUNCTION_WORDS), "they are compared as they stand"


def test_names_and_numbers() -> None:
    words = ["Emma", "iPhone", "USB", "1984", "5s", "4K", "McCartney", "ΣΩΚ", "Élan"]
    others = ["emma", "I", "It", "5", "a", "élan", "河川"]
    assert [word for word in (*words, *others) if is_name(word)] == words


def test_names_and_numbers_of_the_whole_input() -> None:
    """The control of MIRROR-F: names and numbers alone, and those of the item and the review's title too."""
    shown = answer(["Emma", " loves", " the", " Nile", " 1984", " That", "."], past("emma loves THAT"))
    shown = replace(shown, about=("The Nile", "Of 1984.", "a title"))

    def found(**settings: bool) -> str:
        return "".join("-x"[flag] for flag in grounded_tokens(shown, FUNCTION_WORDS, words, **settings))

    assert found() == "xx------"
    assert found(names=True) == "x-------"
    assert found(item=True) == "xx-xx---"
    assert found(names=True, item=True) == "x--xx---"


def test_what_the_prompt_says_of_the_item_is_what_it_shows(tiny_tokenizer: Any) -> None:
    target = Review(Item("Book", "long " * 400), 5.0, "Title", "alpha")
    encoder = PairEncoder(tiny_tokenizer, max_history=2, max_prompt_tokens=200, max_target_tokens=9)
    (shown,) = encoder.shown_answers([Example("C:u:0", "u", "C", "train", target, ())])
    title, description, own = shown.about
    assert (title, own) == ("Book", "Title")
    assert 0 < len(description) < len(target.item.description)
    assert target.item.description.startswith(description)


def stored(answers: Sequence[ShownAnswer]) -> pa.Table:
    """Return stored effects of answers, which grounded weights do not read."""
    return pa.table(
        {
            "example_id": [one.example_id for one in answers],
            "target_ids": [one.target_ids for one in answers],
            **{name: [[0.5] * len(one.spans) for one in answers] for name in EFFECTS.names[2:]},
        },
        schema=EFFECTS,
    )


def test_weights_by_hand_and_a_slice_is_a_part_of_the_whole() -> None:
    shown = {
        one.example_id: one
        for one in (
            answer(["the", " plot"], past("the plot"), example_id="a"),
            answer(["slow", " plot"], past("slow"), example_id="b"),
            answer(["slow"], example_id="c"),
        )
    }
    table = stored(list(shown.values()))

    def derive(table: pa.Table, **options: float) -> list[list[float]]:
        settings = {"high": 2.0, "low": 0.5, **options}
        found = weights_table(table, lambda ids: [shown[one] for one in ids], policy="grounded", **settings)
        return list(found["weight"].to_pylist())

    assert derive(table) == [[0.5, 2.0, 0.5], [2.0, 0.5, 0.5], [0.5, 0.5]]
    assert derive(table, function_words=1.0) == [[2.0, 2.0, 0.5], [2.0, 0.5, 0.5], [0.5, 0.5]]
    assert [derive(table.slice(place, 1))[0] for place in range(3)] == derive(table)
    assert derive(table.slice(0, 0)) == []
    assert derive(table, names=1.0) == [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0.5, 0.5]]
    for name in ("function_words", "names", "item"):
        with pytest.raises(UserError, match=rf"weights\.options: {name} is 0\.5; set it to 0 or 1"):
            derive(table, **{name: 0.5})


def slow_words(text: str) -> list[tuple[str, int, int]]:
    """Return word, begin and end, one character at a time: letters and digits, and marks after them."""
    found: list[list[Any]] = []
    for place, sign in enumerate(text):
        kind = unicodedata.category(sign)[0]
        if found and found[-1][2] == place and kind in "LNM":
            found[-1][0] += sign
            found[-1][2] += 1
        elif kind in "LN":
            found.append([sign, place, place + 1])
    return [(word, begin, end) for word, begin, end in found]


def slow_fold(word: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", word).casefold())


def slow_marks(text: str, pieces: Sequence[str], history: Sequence[Review]) -> list[bool]:
    """Return for each piece of the text whether one of its letters lies in a word of the history."""
    known = {slow_fold(word) for one in history for field in (one.title, one.text) for word, *_ in slow_words(field)}
    inside = [False] * len(text)
    for word, begin, end in slow_words(text):
        inside[begin:end] = [slow_fold(word) in known - FUNCTION_WORDS] * (end - begin)
    found, begin = [], 0
    for piece in pieces:
        found.append(any(inside[begin : begin + len(piece)]))
        begin += len(piece)
    return found


signs = st.sampled_from([*"aAbZ5_ .'-\n", "the", "plot ", "Plot", "ß", "é", "e\u0301", "☀", "河", "ﬁ", "İ"])
strings = st.lists(signs, max_size=8).map("".join)


@given(
    pieces=st.lists(strings.filter(bool), min_size=1, max_size=6),
    history=st.lists(st.builds(past, strings, strings, strings), max_size=3),
)
def test_as_one_character_at_a_time(pieces: list[str], history: list[Review]) -> None:
    found = grounded_tokens(answer(pieces, *history), FUNCTION_WORDS, words)
    assert found == [*slow_marks("".join(pieces), pieces, history), False]


@settings(max_examples=trials(60), deadline=None)
@given(seeds=st.lists(st.integers(0, 400), min_size=1, max_size=4), limit=st.sampled_from([120, 200, 4096]))
def test_tokens_of_a_tokenizer_as_decoded(tiny_tokenizer: Any, seeds: list[int], limit: int) -> None:
    """What the encoder says of its tokens, against the text that each token decodes to."""
    target, *earlier = [review(seed, 9 + seed % 20) for seed in seeds]
    example = Example("C:u:0", "u", "C", "train", target, tuple(earlier))
    encoder = PairEncoder(tiny_tokenizer, max_history=2, max_prompt_tokens=limit, max_target_tokens=64)
    (shown,) = encoder.shown_answers([example])
    decoded = token_texts(tiny_tokenizer, shown.target_ids)
    assert decoded[-1] == tiny_tokenizer.eos_token
    expected = [*slow_marks(target.text, decoded[:-1], shown.history), False]
    assert grounded_tokens(shown, FUNCTION_WORDS, words) == expected


def test_only_reviews_that_the_prompt_shows_count(tiny_tokenizer: Any) -> None:
    """Four reviews that each have one word of the answer: the limits of the prompt decide which words are grounded."""
    target = Review(Item("Book", ""), 5.0, "", "alpha beta gamma delta")
    names = ("alpha", "beta", "gamma", "delta")
    history = tuple(Review(Item("", ""), None, "", f"{text(seed, 30)} {name}") for seed, name in enumerate(names))
    example = Example("C:u:0", "u", "C", "train", target, history)

    def found(reviews: int, tokens: int) -> list[str]:
        encoder = PairEncoder(tiny_tokenizer, max_history=reviews, max_prompt_tokens=tokens, max_target_tokens=99)
        (shown,) = encoder.shown_answers([example])
        flags = grounded_tokens(shown, FUNCTION_WORDS, words)
        inside = "".join(
            target.text[begin:end] if flag else " " * (end - begin)
            for flag, (begin, end) in zip(flags, shown.spans, strict=True)
        )
        return inside.split()

    assert found(4, 4096) == list(names)
    assert found(2, 4096) == ["gamma", "delta"]
    assert found(0, 4096) == []
    length = len(PairEncoder(tiny_tokenizer, max_history=1, max_prompt_tokens=4096, max_target_tokens=9)
                 .encode([example])[0].factual)  # fmt: skip
    assert found(4, length) == ["delta"]
    assert found(4, length - 1) == [], "the last word of the only review that fits is cut"

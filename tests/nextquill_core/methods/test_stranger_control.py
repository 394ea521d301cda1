"""The stranger control: another user's history, in any order of examples, that reveals nothing of the target."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from nextquill_core.errors import DataError
from nextquill_core.methods.stranger_control import with_strangers_history
from nextquill_core.schemas import Example, Item, Review
from tests.conftest import review, text


def person(number: int, category: str = "C", split: str = "test", past: int = 3, target: int = 0) -> Example:
    """Return a user whose past reviews are recognised by their times, which contain the user's number."""
    history = tuple(review(1000 * (number + 1) + place) for place in range(past))
    name = f"{category}:u{number}:{split}:{target}"
    wanted = replace(review(500 + number), text=f"what user {number} writes", timestamp_ms=target)
    return Example(name, f"u{number}", category, split, wanted, history)


def givers(examples: list[Example]) -> dict[str, set[int]]:
    """By example: the numbers of the users whose reviews it shows."""
    return {example.example_id: {past.timestamp_ms // 1000 - 1 for past in example.history} for example in examples}


@pytest.mark.parametrize("users", [2, 3, 10])
@pytest.mark.parametrize("seed", range(5))
def test_everybody_gets_one_others_and_everybodys_is_given(users: int, seed: int) -> None:
    examples = [person(number) for number in range(users)]
    found = with_strangers_history(examples, seed)
    shown = [giver for givers_of in givers(found).values() for giver in givers_of]
    assert sorted(shown) == list(range(users))
    for number, (before, after) in enumerate(zip(examples, found, strict=True)):
        (giver,) = givers(found)[after.example_id]
        assert giver != number
        assert after == replace(before, history=examples[giver].history)


def test_the_seed_decides_and_the_order_does_not() -> None:
    examples = [person(number, category) for category in "CD" for number in range(12)]
    found = with_strangers_history(examples, 7)
    mixed = random.Random(0).sample(examples, len(examples))
    by_id = {example.example_id: example for example in with_strangers_history(mixed, 7)}
    assert [by_id[example.example_id] for example in examples] == found
    assert with_strangers_history(examples, 8) != found


def test_strangers_are_of_the_same_category_and_split() -> None:
    examples = [
        replace(person(10 * place + number, category, split), example_id=f"{category}:{split}:{number}")
        for place, (category, split) in enumerate([("C", "val"), ("C", "test"), ("D", "test")])
        for number in range(4)
    ]
    for before, after in zip(examples, with_strangers_history(examples, 1), strict=True):
        (giver,) = givers([after])[after.example_id]
        (own,) = givers([before])[before.example_id]
        assert giver // 10 == own // 10
        assert giver != own


def test_several_examples_of_a_user_take_the_strangers_in_turn() -> None:
    early, late = person(0, past=2, target=1), person(0, past=4, target=2)
    other = [person(1, past=3, target=5), person(1, past=5, target=6), person(1, past=6, target=7)]
    found = {example.example_id: example for example in with_strangers_history([late, other[2], *other[:2], early], 0)}
    assert found[early.example_id].history == other[0].history
    assert found[late.example_id].history == other[1].history
    assert [found[example.example_id].history for example in other] == [early.history, late.history, late.history]


def test_reviews_of_the_same_item_and_copies_of_the_text_are_left_out() -> None:
    target = Review(Item("Emma", "A novel."), 5.0, "t", text(3, 40))
    same_item = Review(Item("EMMA ", "Another edition."), 1.0, "t", "poor")
    quoting = Review(Item("Other", ""), 1.0, "t", f"As someone said: {target.text}!")
    copied = Review(Item("Third", ""), 1.0, "t", f" {target.text}")
    harmless = review(4)
    giver = replace(person(1), history=(same_item, harmless, quoting, copied))
    found = with_strangers_history([replace(person(0), target=target), giver], 0)
    assert found[0].history == (harmless,)
    assert found[1].history == person(0).history


@pytest.mark.parametrize("description", ["", "A lamp of brass."])
def test_items_without_a_title_are_told_apart_by_their_descriptions(description: str) -> None:
    target = Review(Item("", description), 5.0, "t", text(3, 40))
    same_item = Review(Item("", description.upper()), 1.0, "t", "poor")
    other_item = Review(Item("", "A chair."), 1.0, "t", "good")
    giver = replace(person(1), history=(same_item, other_item))
    shown = with_strangers_history([replace(person(0), target=target), giver], 0)[0].history
    assert shown == ((other_item,) if description else (same_item, other_item))


def test_a_text_of_one_character_is_not_found_in_everything() -> None:
    target = replace(review(7), text="a")
    copy = replace(review(8), text="A")
    giver = replace(person(1), history=(review(1), copy))
    assert with_strangers_history([replace(person(0), target=target), giver], 0)[0].history == (review(1),)


def test_a_strangers_empty_history_and_a_summary_go_too() -> None:
    found = with_strangers_history([replace(person(0), summary="Likes owls. \U0001f989"), person(1, past=0)], 0)
    assert found[0].history == ()
    assert found[0].summary == ""
    assert len(found[1].history) == 3


def test_a_category_of_one_user_is_one_clear_line() -> None:
    with pytest.raises(DataError, match=r"^D, split test: the stranger control needs a second user") as raised:
        with_strangers_history([person(0), person(1), person(2, "D"), person(2, "D", target=9)], 0)
    assert "\n" not in str(raised.value)


def test_no_examples() -> None:
    assert with_strangers_history([], 0) == []

"""Differences to other users: who is compared, word for word what the model reads, and what becomes of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nextquill_core.generation.decoding import GREEDY
from nextquill_core.generation.engines import CUT, STOPPED, Generation, Request
from nextquill_core.generation.local_engine import TransformersEngine
from nextquill_core.methods.differences import (
    Comparison,
    build_difference_prompt,
    build_profile_prompt,
    compare_reviews,
    difference_revision,
    representatives,
)
from nextquill_core.prompts import REVIEW, WORDINGS, Wording
from nextquill_core.records import Item, Review
from nextquill_core.schemas import Example
from tests.conftest import review
from tests.nextquill_core.methods.test_summaries import Scripted

EMMA = Item("Emma", "A novel.")
MINE = Review(EMMA, 4.0, "Late love", "I wept.")
THEIRS = Review(EMMA, 2.0, "Slow", "Nothing happens.")
UNTITLED = Review(EMMA, None, "", "Fine.")


def points(*places: tuple[float, float]) -> NDArray[np.float64]:
    return np.array(places, dtype=np.float64)


def test_representatives_by_hand() -> None:
    """Three clusters: one around the user's own review, one at (10, 0) and one at (0, 10)."""
    own = np.array([0.0, 0.0])
    others = points((0.1, 0.0), (10.0, 0.0), (10.0, 0.9), (10.0, 1.1), (0.0, 10.0), (0.2, 10.0), (0.3, 10.0))
    # The centres are (10, 2/3) and (1/6, 10): nearest are the third and the sixth of the others.
    assert representatives(own, others, 2) == [2, 5]
    assert representatives(own, others[:2], 2) == [0, 1], "with no more than asked for, all are taken"
    assert representatives(own, others[:0], 2) == []


def test_equal_reviews_are_one_representative() -> None:
    own, others = np.array([0.0, 0.0]), points((5.0, 5.0), (5.0, 5.0), (5.0, 5.0))
    assert representatives(own, others, 2) == [0]
    assert representatives(np.array([5.0, 5.0]), others, 2) == [], "all write as the user does"


@pytest.mark.parametrize("seed", range(5))
def test_representatives_beside_a_loop_over_clusters(seed: int) -> None:
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(seed)
    own, others = rng.normal(size=3), rng.normal(size=(12, 3))
    whole = [own, *others]
    found = KMeans(n_clusters=5, random_state=42, n_init=1).fit(np.array(whole))
    expected = []
    for cluster in set(found.labels_.tolist()) - {int(found.labels_[0])}:
        of = [place for place in range(13) if found.labels_[place] == cluster]
        centre = sum(whole[place] for place in of) / len(of)
        distances = {place: round(float(np.linalg.norm(whole[place] - centre)), 9) for place in of}
        expected.append(min(of, key=distances.__getitem__) - 1)
    assert representatives(own, others, 4) == sorted(expected)


def test_a_comparison_word_for_word() -> None:
    assert build_difference_prompt(MINE, (THEIRS, UNTITLED)) == (
        "Below is one user's review, and then reviews of the same item by other users.\n\n"
        "This user:\nItem: Emma\nDescription: A novel.\nRating: 4\nTitle: Late love\nReview:\nI wept.\n\n"
        "Another user:\nRating: 2\nTitle: Slow\nReview:\nNothing happens.\n\n"
        "Another user:\nReview:\nFine.\n\n"
        "Say how this user's review differs from the others, in three respects. Writing: words and sentences. "
        "Emotion: how positive or negative it is. Content: how much it says, and how well it holds together.\n\n"
        "Differences:\n"
    )


def test_a_profile_word_for_word() -> None:
    """An item is shown whole; where it has no title, the title of the review says what it is about."""
    unnamed = Review(Item("", "A tale."), 3.0, "Brief", "Hm.")
    known = [(MINE, "Weeps."), (unnamed, "Shrugs."), (replace(UNTITLED, item=Item("", "")), "Short.")]
    assert build_profile_prompt(known, (MINE,)) == (
        "Below is how reviews by one user differ from reviews of the same item by other users.\n\n"
        "Item: Emma\nDescription: A novel.\nHow this user's review differs:\nWeeps.\n\n"
        "Description: A tale.\nTitle: Brief\nHow this user's review differs:\nShrugs.\n\n"
        "How this user's review differs:\nShort.\n\n"
        "Below are reviews by the same user, oldest first.\n\n"
        "Item: Emma\nDescription: A novel.\nRating: 4\nTitle: Late love\nReview:\nI wept.\n\n"
        "In a few sentences, say what this user likes, what this user dislikes, and how the user writes.\n\n"
        "Summary:\n"
    )
    alone = build_profile_prompt([], (MINE,))
    assert alone.startswith("Below are reviews by one user, oldest first.\n\nItem: Emma\n")


def test_a_topic_to_write_about_is_not_an_item_to_review() -> None:
    mine, theirs = (Review(Item("", ""), None, "My dog", text) for text in ("Woof.", "Meow."))
    post = WORDINGS["post"]
    assert build_difference_prompt(mine, (theirs,), post) == (
        "Below is one user's post, and then posts on the same topic by other users.\n\n"
        "This user:\nTopic: My dog\nPost:\nWoof.\n\n"
        "Another user:\nTopic: My dog\nPost:\nMeow.\n\n"
        "Say how this user's post differs from the others, in three respects. Writing: words and sentences. "
        "Emotion: how positive or negative it is. Content: how much it says, and how well it holds together.\n\n"
        "Differences:\n"
    )
    assert build_profile_prompt([(mine, "Barks.")], (mine,), post) == (
        "Below is how posts by one user differ from posts on the same topic by other users.\n\n"
        "Topic: My dog\nHow this user's post differs:\nBarks.\n\n"
        "Below are posts by the same user, oldest first.\n\n"
        "Topic: My dog\nPost:\nWoof.\n\n"
        "In a few sentences, say what this user likes, what this user dislikes, and how the user writes.\n\n"
        "Summary:\n"
    )


@pytest.mark.parametrize("wording", WORDINGS.values(), ids=lambda wording: wording.name)
def test_every_kind_of_text_has_its_own_words_and_revision(wording: Wording, tiny_tokenizer: Any) -> None:
    example = of("a", 2)
    engine = Scripted(tiny_tokenizer, lambda prompt: Generation("Short.", 1, STOPPED))
    run([example], [compared(example, 0)], engine, wording=wording)
    prompts = [tiny_tokenizer.decode(request.prompt) for call in engine.calls for request in call]
    one = compared(example, 0)[0]
    assert prompts == [
        build_difference_prompt(one.own, one.others, wording),
        build_profile_prompt([(one.own, "Short.")], example.history[-1:], wording),
    ]
    assert all(("review" in prompt.lower()) == (wording is REVIEW) for prompt in prompts)
    same = [other.name for other in WORDINGS.values() if difference_revision(other) == difference_revision(wording)]
    assert same == [wording.name]


def of(user: str, past: int) -> Example:
    history = tuple(review(number) for number in range(past))
    return Example(f"C:{user}:0", user, "C", "test", review(99), history)


def compared(example: Example, *positions: int) -> list[Comparison]:
    return [
        Comparison(place, example.history[place], (replace(example.history[place], text="another"),))
        for place in positions
    ]


def run(examples: Sequence[Example], comparisons: Sequence[Sequence[Comparison]], engine: Any, **options: Any) -> Any:
    settings = {"max_prompt_tokens": 2048, "difference_tokens": 5, "profile_tokens": 7} | options
    reviews = [example.history[-1:] for example in examples]
    return compare_reviews(examples, comparisons, reviews, engine, engine.tokenizer, **settings)


def test_differences_of_all_examples_come_first_and_then_the_profiles(tiny_tokenizer: Any) -> None:
    def rule(prompt: str) -> Generation:
        if not prompt.endswith("Differences:\n"):
            return Generation(f"profile of\n{prompt.count('How this')} ", 3, STOPPED)
        return Generation("", 0, STOPPED) if "Book 1\n" in prompt else Generation("It\ndiffers. ", 2, CUT)

    engine = Scripted(tiny_tokenizer, rule)
    examples = [of("a", 4), of("b", 0), of("c", 2)]
    heard: list[int] = []
    differences, profiles, counts = run(
        examples, [compared(examples[0], 0, 1), [], compared(examples[2], 1)], engine, advance=heard.append
    )
    assert differences == [["It differs.", ""], [], [""]]
    assert profiles == ["profile of 1", "", "profile of 0"]
    assert counts == {"differences": 3, "profiles": 2, "empty": 2, "cut": 1, "prompts_clipped": 0}
    assert [[(request.key, request.limit) for request in call] for call in engine.calls] == [
        [("C:a:0/difference-0", 5), ("C:a:0/difference-1", 5), ("C:c:0/difference-1", 5)],
        [("C:a:0/profile", 7), ("C:c:0/profile", 7)],
    ]
    assert sum(heard) == 5
    first = compared(examples[0], 0)[0]
    assert tiny_tokenizer.decode(engine.calls[0][0].prompt) == build_difference_prompt(first.own, first.others)
    assert tiny_tokenizer.decode(engine.calls[1][0].prompt) == build_profile_prompt(
        [(examples[0].history[0], "It differs.")], examples[0].history[-1:]
    )


def test_too_long_prompts_lose_the_ends_of_their_longest_texts(tiny_tokenizer: Any) -> None:
    example = Example("C:u:0", "u", "C", "test", review(99), (review(1, 400),))
    engine = Scripted(tiny_tokenizer, lambda prompt: Generation("Short.", 1, STOPPED))
    _, _, counts = run([example], [compared(example, 0)], engine, max_prompt_tokens=450)
    assert counts["prompts_clipped"] == 2
    assert all(len(request.prompt) <= 450 for call in engine.calls for request in call)


def test_a_real_models_profiles_are_its_answers_one_by_one(tiny_model: Any, tiny_tokenizer: Any) -> None:
    engine = TransformersEngine(tiny_model, tiny_tokenizer, GREEDY, max_new_tokens=12, batch_tokens=10_000)
    examples = [of("a", 3), of("b", 2)]
    comparisons = [compared(examples[0], 0, 2), compared(examples[1], 1)]
    differences, profiles, _ = run(examples, comparisons, engine)
    for example, chosen, texts, profile in zip(examples, comparisons, differences, profiles, strict=True):
        known = []
        for one, text in zip(chosen, texts, strict=True):
            ids = tiny_tokenizer(build_difference_prompt(one.own, one.others))["input_ids"]
            (answer,) = engine.generate([Request("alone", ids, limit=5)])
            assert text == " ".join(answer.text.split())
            known += [(one.own, text)] if text else []
        ids = tiny_tokenizer(build_profile_prompt(known, example.history[-1:]))["input_ids"]
        (answer,) = engine.generate([Request("alone", ids, limit=7)])
        assert profile == " ".join(answer.text.split())

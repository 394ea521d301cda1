"""Words of preference tokens: where they stand, how often they count, and which are typical of a group."""

from __future__ import annotations

from collections.abc import Sequence

from nextquill_core.analysis.example_view import ExplainedExample, TargetToken
from nextquill_core.analysis.preferred_words import WordCount, token_words, typical_words, word_counts
from nextquill_core.schemas import Example, Item, Review


def example(tokens: Sequence[tuple[str, bool]], text: str = "") -> ExplainedExample:
    """Return a review of these tokens, of which some are preferred; its text is that of the tokens by default."""
    review = Review(Item("", ""), 5.0, "", text or "".join(token for token, _ in tokens), 1)
    found = tuple(TargetToken(token, 0.5, 0.4, 0.1, 0.9, preferred) for token, preferred in tokens)
    return ExplainedExample(Example("C:u:0", "u", "C", "test", review, ()), "i", (), (), found, {}, {}, 0.0)


def test_a_word_is_preferred_where_one_of_its_tokens_is() -> None:
    tokens = [
        ("War", False),
        ("m", True),
        (" and", True),
        (" warm", False),
        (", a", True),
        (" slow", True),
        (".", True),
    ]
    one = example(tokens)
    assert token_words(one) == ["warm", "warm", "", "warm", "", "slow", ""]
    assert word_counts([one]) == [WordCount("slow", 1, 1), WordCount("warm", 1, 2)]


def test_words_are_counted_over_reviews_and_ordered_by_number_share_and_alphabet() -> None:
    reviews = [
        example([("dull", True), (" dull", True), (" plot", True), (" rivers", True)]),
        example([("plot", False), (" rivers", True), (" bright", True), (" zeal", True), (" the", True)]),
    ]
    counts = word_counts(reviews)
    assert [(one.word, one.preferred, one.places) for one in counts] == [
        ("dull", 2, 2), ("rivers", 2, 2), ("bright", 1, 1), ("zeal", 1, 1), ("plot", 1, 2),
    ]  # fmt: skip
    assert counts[-1].share == 0.5
    assert word_counts([]) == []


def test_what_the_review_does_not_contain_is_no_word() -> None:
    one = example([("slow", True), ("<|endoftext|>", True)], text="slow")
    assert token_words(one) == ["slow", ""]


def test_tokens_without_text_belong_to_no_word() -> None:
    assert token_words(example([("", True), ("slow", True), ("", True)])) == ["", "slow", ""]
    assert token_words(example([])) == []


def test_typical_words_are_frequent_in_their_group_and_rare_in_others() -> None:
    groups = [0, 0, 0, 0, 0, 1, 1, 1, 1]
    words = ["plot", "plot", "plot", "warm", "warm", "plot", "plot", "plot", ""]
    first, second = typical_words(groups, words, 2)
    assert first == [WordCount("warm", 2, 2), WordCount("plot", 3, 6)], "2 · 2/2 before 3 · 3/6"
    assert second == [WordCount("plot", 3, 6)]
    assert typical_words(groups, words, 1)[0] == first[:1]
    assert typical_words([], [], 3) == []

"""The prompt's exact text, and that the one without history mentions none."""

from __future__ import annotations

import pytest

from nextquill_core.prompts import (
    PLAIN,
    SUMMARY_REVISION,
    Template,
    build_prompt,
    query_section,
    resolve_template,
    review_section,
)
from nextquill_core.schemas import Item, Review

BOOK = Item("Emma", "A novel.")
PAST = Review(Item("Persuasion", "Another."), 4.0, "Late love", "I wept.")


def test_with_history() -> None:
    assert build_prompt(BOOK, 5.0, "Clever", (PAST,), template=PLAIN) == (
        "Write a review of the item below.\n\n"
        "Item: Emma\nDescription: A novel.\n\n"
        "Past reviews by the same user, oldest first:\n\n"
        "Item: Persuasion\nDescription: Another.\nRating: 4\nTitle: Late love\nReview:\nI wept.\n\n"
        "Rating: 5\nTitle: Clever\nReview:\n"
    )


def test_without_history_nothing_mentions_one() -> None:
    prompt = build_prompt(BOOK, 4.5, "Clever", (), template="plain")
    assert prompt == (
        "Write a review of the item below.\n\nItem: Emma\nDescription: A novel.\n\n"
        "Rating: 4.5\nTitle: Clever\nReview:\n"
    )
    assert not {"past", "history", "previous", "none", "user"} & set(prompt.lower().replace(":", " ").split())


def test_a_summary_stands_between_item_and_history() -> None:
    assert build_prompt(BOOK, 5.0, "Clever", (PAST,), summary="Short and kind. ❤") == (
        "Write a review of the item below.\n\n"
        "Item: Emma\nDescription: A novel.\n\n"
        "What this user's reviews are like:\nShort and kind. ❤\n\n"
        "Past reviews by the same user, oldest first:\n\n"
        "Item: Persuasion\nDescription: Another.\nRating: 4\nTitle: Late love\nReview:\nI wept.\n\n"
        "Rating: 5\nTitle: Clever\nReview:\n"
    )


def test_a_summary_needs_no_history() -> None:
    assert build_prompt(BOOK, 5.0, "Clever", (), summary="Kind.", template=Template("chat", "<", ">")) == (
        "<Write a review of the item below.\n\n"
        "Item: Emma\nDescription: A novel.\n\n"
        "What this user's reviews are like:\nKind.\n\n"
        "Rating: 5\nTitle: Clever\nReview:\n>"
    )


def test_an_empty_summary_changes_no_prompt() -> None:
    for history in ((PAST,), ()):
        without = build_prompt(BOOK, 5.0, "Clever", history)
        assert build_prompt(BOOK, 5.0, "Clever", history, summary="") == without


def test_prompts_without_summary_keep_their_revision() -> None:
    assert PLAIN.revision == "de995b11e36270bc"
    assert PLAIN.revision != SUMMARY_REVISION


def test_sections_are_those_of_the_prompt() -> None:
    assert query_section(BOOK, 4.5, "Clever") == "Item: Emma\nDescription: A novel.\nRating: 4.5\nTitle: Clever"
    assert review_section(PAST) == (
        "Item: Persuasion\nDescription: Another.\nRating: 4\nTitle: Late love\nReview:\nI wept."
    )


def test_both_branches_share_their_beginning() -> None:
    shared = "Write a review of the item below.\n\nItem: Emma\nDescription: A novel.\n\n"
    assert build_prompt(BOOK, 5, "t", (PAST,)).startswith(shared)
    assert build_prompt(BOOK, 5, "t", ()).startswith(shared)


def test_an_item_without_description_has_no_empty_line_for_it() -> None:
    assert "Description" not in build_prompt(Item("Emma", ""), 5, "t", ())


def test_template_stands_around_the_text() -> None:
    chat = Template("chat", "<user>", "<assistant>")
    assert build_prompt(BOOK, 5, "t", (), template=chat) == f"<user>{build_prompt(BOOK, 5, 't', ())}<assistant>"
    assert chat.revision != PLAIN.revision


@pytest.mark.parametrize(
    ("setting", "name", "expected"),
    [
        ("auto", "Qwen/Qwen2.5-3B", "plain"),
        ("auto", "Qwen/Qwen2.5-3B-Instruct", "chat"),
        ("auto", "google/gemma-2-2b-it", "chat"),
        ("auto", "/models/chat/Qwen2.5-3B/", "plain"),
        ("plain", "Qwen/Qwen2.5-3B-Instruct", "plain"),
        ("chat", "tiny", "chat"),
    ],
)
def test_auto_template_goes_by_what_the_model_was_trained_for(setting: str, name: str, expected: str) -> None:
    assert resolve_template(setting, name) == expected

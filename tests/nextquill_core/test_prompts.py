"""The prompt's exact text, and that the one without history mentions none."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from nextquill_core.prompts import (
    PLAIN,
    REVIEW,
    WORDINGS,
    Template,
    build_prompt,
    chat_template,
    query_section,
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
    assert PLAIN.revision == REVIEW.revision == "103462f9383db10c"
    assert REVIEW.summary_revision == "450699eea219d75a"


def test_a_topic_to_write_about_is_not_an_item_to_review() -> None:
    nothing = Item("", "")
    past = Review(nothing, None, "My cat", "It sleeps.")
    assert build_prompt(nothing, None, "My dog", (past,), summary="Short.", wording=WORDINGS["post"]) == (
        "Write a post on the topic below.\n\n"
        "What this user's posts are like:\nShort.\n\n"
        "Past posts by the same user, oldest first:\n\n"
        "Topic: My cat\nPost:\nIt sleeps.\n\n"
        "Topic: My dog\nPost:\n"
    )
    paper = Item("", "1. ferries 2. sisters")
    assert build_prompt(paper, None, "On ferries", (), wording=WORDINGS["abstract"]) == (
        "Write the abstract of the paper below.\n\nPoints: 1. ferries 2. sisters\n\nTitle: On ferries\nAbstract:\n"
    )


def test_every_wording_has_its_own_revision_and_no_word_of_reviews() -> None:
    assert len({wording.revision for wording in WORDINGS.values()}) == len(WORDINGS)
    assert len({wording.summary_revision for wording in WORDINGS.values()}) == len(WORDINGS)
    for wording in WORDINGS.values():
        text = build_prompt(BOOK, 5.0, "Clever", (PAST,), summary="Kind.", wording=wording)
        assert ("review" in text.lower()) == (wording is REVIEW)


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


def test_what_is_not_known_is_left_out_with_its_label() -> None:
    assert build_prompt(BOOK, None, "Clever", ()) == (
        "Write a review of the item below.\n\nItem: Emma\nDescription: A novel.\n\nTitle: Clever\nReview:\n"
    )
    assert build_prompt(Item("", "A novel."), None, "", (Review(Item("", ""), None, "", "I wept."),)) == (
        "Write a review of the item below.\n\nDescription: A novel.\n\n"
        "Past reviews by the same user, oldest first:\n\nReview:\nI wept.\n\nReview:\n"
    )
    assert build_prompt(Item("", ""), 0.0, "", ()) == "Write a review.\n\nRating: 0\nReview:\n"
    assert query_section(Item("", ""), None, "Clever") == "Title: Clever"
    assert query_section(Item("", ""), None, "") == ""
    assert review_section(Review(Item("Emma", ""), None, "", "I wept.")) == "Item: Emma\nReview:\nI wept."


DATED = (
    "{% set today = strftime_now('%d %b %Y') if strftime_now is defined else 'no clock' %}"
    "{{ date_string | default('no date') }}, {{ today }}, {{ strftime_now('%Y-%m-%dT%H:%M:%S') }}, "
    "{{ strftime_now('%-d. %B, %A') }}\n"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
)


@pytest.mark.parametrize("clock", [datetime(2025, 3, 1, 14, 5), datetime(2031, 12, 24)])
def test_a_chat_template_prints_the_same_date_under_every_clock(
    clock: datetime, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import chat_template_utils

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return clock

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    monkeypatch.setattr(tiny_tokenizer, "chat_template", DATED)
    user = [{"role": "user", "content": "x"}]
    assert clock.strftime("%d %b %Y") in tiny_tokenizer.apply_chat_template(user, tokenize=False)
    assert chat_template(tiny_tokenizer).opening == (
        "26 Jul 2024, 26 Jul 2024, 2024-07-26T00:00:00, 26. July, Friday\n<|user|>"
    )


@pytest.mark.parametrize("beginning", ["  {% if true %}a{% endif %}", "\n\nb", "{# c #}\n d"])
def test_a_fixed_date_changes_nothing_else_of_a_template(
    beginning: str, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = "{% for m in messages %}{{ m.content }}{% endfor %}{# no strftime #}"
    monkeypatch.setattr(tiny_tokenizer, "chat_template", beginning + rest.replace("strftime", "clock"))
    without = chat_template(tiny_tokenizer)
    monkeypatch.setattr(tiny_tokenizer, "chat_template", beginning + rest.replace("strftime", "strftime_now"))
    assert chat_template(tiny_tokenizer) == without


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        # Qwen: a base model with ChatML, whose end-of-sequence token is another one
        ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}", "<|im_end|>"),
        # Gemma
        (
            "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
            "{{ m.content | trim }}<end_of_turn>\n{% endfor %}",
            "<end_of_turn>",
        ),
        # Phi-3
        ("{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}", "<|end|>"),
        # Llama 2: a blank before the token
        ("{% for m in messages %}{{ m.content }} {{ eos_token }}{% endfor %}", "<|endoftext|>"),
        # Alpaca: nothing but text
        ("{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}", ""),
        # single questions only
        ("{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}"
         "{% endfor %}", ""),
    ],
)  # fmt: skip
def test_an_answer_ends_as_the_template_ends_a_turn(template: str, expected: str, tiny_folder: Any) -> None:
    from transformers import AutoTokenizer

    from nextquill_core.tokens import stop_id

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokens = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    tokenizer.chat_template = template
    found = chat_template(tokenizer)
    assert found.stop == expected
    assert stop_id(tokenizer, found) == tokenizer.convert_tokens_to_ids(expected or "<|endoftext|>")
    assert stop_id(tokenizer, PLAIN) == tokenizer.eos_token_id

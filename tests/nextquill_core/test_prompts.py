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
ITEM = "Write a review of the item below.\n\nItem: Emma\nDescription: A novel.\n\n"
HISTORY = (
    "Past reviews by the same user, oldest first:\n\n"
    "Item: Persuasion\nDescription: Another.\nRating: 4\nTitle: Late love\nReview:\nI wept.\n\n"
)


@pytest.mark.parametrize(
    ("history", "summary", "shown"),
    [
        ((PAST,), "", HISTORY),
        ((PAST,), "Short and kind. ❤", f"What this user's reviews are like:\nShort and kind. ❤\n\n{HISTORY}"),
        ((), "Kind.", "What this user's reviews are like:\nKind.\n\n"),
    ],
)
def test_summary_and_history_stand_between_item_and_query(
    history: tuple[Review, ...], summary: str, shown: str
) -> None:
    expected = f"{ITEM}{shown}Rating: 5\nTitle: Clever\nReview:\n"
    assert build_prompt(BOOK, 5.0, "Clever", history, summary=summary, template=PLAIN) == expected
    chat = Template("chat", "<", ">")
    assert build_prompt(BOOK, 5.0, "Clever", history, summary=summary, template=chat) == f"<{expected}>"


def test_without_history_nothing_mentions_one() -> None:
    prompt = build_prompt(BOOK, 4.5, "Clever", (), template="plain")
    assert prompt == f"{ITEM}Rating: 4.5\nTitle: Clever\nReview:\n"
    assert not {"past", "history", "previous", "none", "user"} & set(prompt.lower().replace(":", " ").split())


def test_prompts_without_summary_keep_their_revision() -> None:
    assert PLAIN.revision == REVIEW.revision == "103462f9383db10c" != Template("chat", "<", ">").revision
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


def test_what_is_not_known_is_left_out_with_its_label() -> None:
    assert build_prompt(BOOK, None, "Clever", ()) == f"{ITEM}Title: Clever\nReview:\n"
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

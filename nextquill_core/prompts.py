"""Prompts: the text that the model reads before it writes a review, and the template around it.

First comes what both branches share (task, item), then the user's history (a summary, past reviews), then what the
review must match. The prompt without history has no history section and does not mention one. A field that the data do
not have (a rating, a title, anything about the item) is left out with its label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from nextquill_core.records import Item, Review
from storage.fingerprint import fingerprint

TASK = "Write a review of the item below."
TASK_WITHOUT_ITEM = "Write a review."
SUMMARY_HEADING = "What this user's reviews are like:"
HISTORY_HEADING = "Past reviews by the same user, oldest first:"
TEXT_LABEL = "Review:\n"
TEMPLATE_DATE = date(2024, 7, 26)
"""The date that chat templates print instead of today's; Llama 3's templates print it when they have no clock."""


@dataclass(frozen=True, slots=True)
class Template:
    """Text around a prompt: none for base models, the chat markup for instruct models.

    Attributes:
        name: `plain` or `chat`.
        opening: Text before the prompt.
        closing: Text after the prompt.
        stop: Text of the token that ends an answer; empty for the tokenizer's end-of-sequence token.
    """

    name: Literal["plain", "chat"]
    opening: str = ""
    closing: str = ""
    stop: str = ""

    @property
    def revision(self) -> str:
        """Fingerprint of the text of prompts without summary; see `SUMMARY_REVISION` for the others."""
        probes = [
            build_prompt(target.item, target.rating, target.title, history, template=self)
            for target in (_PROBE, *_PARTIAL_PROBES)
            for history in ((_PROBE, *_PARTIAL_PROBES), ())
        ]
        return fingerprint(probes)


PLAIN = Template("plain")
_PROBE = Review(Item("item", "description"), 4.5, "title", "text")
_PARTIAL_PROBES = (Review(Item("", ""), None, "", "text"), Review(Item("", "description"), None, "title", "text"))


def chat_template(tokenizer: Any) -> Template:
    """Return the tokenizer's chat markup around one user turn, up to the start of the answer.

    Raises:
        ValueError: The tokenizer has no chat template, or one that rewrites the user's text.
    """
    mark, answer = "\u241e", "\u241f"
    source = _without_clock(tokenizer.get_chat_template())
    user = {"role": "user", "content": mark}
    options: dict[str, Any] = {"tokenize": False, "chat_template": source}
    if "date_string" in source:
        options["date_string"] = TEMPLATE_DATE.strftime("%d %b %Y")
    rendered = tokenizer.apply_chat_template([user], add_generation_prompt=True, **options)
    if rendered.count(mark) != 1:
        raise ValueError("the chat template does not keep the user's text as it is")
    opening, closing = rendered.split(mark)
    return Template("chat", opening, closing, _stop_token(tokenizer, user, answer, options))


def _without_clock(source: str) -> str:
    """Return the template with `strftime_now` replaced by a macro that prints `TEMPLATE_DATE` at midnight.

    transformers provides this function to templates and accepts no replacement; a macro of the same name hides it.
    """
    if "strftime_now" not in source:
        return source
    text = "format"
    for code in "YymdBbhAaHIMSpjeFDTR":
        text += f" | replace('%{code}', '{_dated(code)}')"
        text += f" | replace('%-{code}', '{_dated(code).lstrip('0') or '0'}')"
    # trim_blocks removes the line break, so the template itself begins on a separate line.
    return "{% macro strftime_now(format) %}{{ " + text + " }}{% endmacro %}\n" + source


def _dated(code: str) -> str:
    return TEMPLATE_DATE.strftime(f"%{code}")


def _stop_token(tokenizer: Any, user: dict[str, str], answer: str, options: dict[str, Any]) -> str:
    """Return the added token that a chat template writes after an answer, or "" if it writes text or nothing there."""
    from jinja2 import TemplateError

    try:
        turns = [user, {"role": "assistant", "content": answer}]
        after = tokenizer.apply_chat_template(turns, **options).rpartition(answer)[2].lstrip()
    except TemplateError:  # a template for single questions
        return ""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    return max((token for token in added if token and after.startswith(token)), key=len, default="")


def build_prompt(
    item: Item,
    rating: float | None,
    review_title: str,
    history: Sequence[Review],
    *,
    summary: str = "",
    template: Template | Literal["plain"] = PLAIN,
) -> str:
    """Return the prompt for one review; `history=()` and no summary give the prompt without history.

    Args:
        item: The item to review.
        rating: Rating of the review to write; None if it is unknown.
        review_title: Title of the review to write; empty if it is unknown.
        history: The user's past reviews to show, oldest first.
        summary: Summary of the user's reviews; empty for none.
        template: Text around the prompt; "plain" for none.
    """
    shown_item = _item_lines(item)
    sections = [TASK, shown_item] if shown_item else [TASK_WITHOUT_ITEM]
    if summary:
        sections.append(f"{SUMMARY_HEADING}\n{summary}")
    if history:
        sections += [HISTORY_HEADING, *map(review_section, history)]
    # The line break before the text is a token boundary for every BPE, so prompt and answer can be encoded separately.
    sections.append(_lines(_review_lines(rating, review_title), TEXT_LABEL))
    text = "\n\n".join(sections)
    around = PLAIN if template == "plain" else template
    return f"{around.opening}{text}{around.closing}"


def query_section(item: Item, rating: float | None, review_title: str) -> str:
    """Return the section of a prompt that describes the review to write.

    Args:
        item: The item to review.
        rating: Rating of the review; None if it is unknown.
        review_title: Title of the review; empty if it is unknown.
    """
    return _lines(_item_lines(item), _review_lines(rating, review_title))


def review_section(review: Review) -> str:
    """Return the section of a prompt that shows a past review with its item."""
    return _lines(query_section(review.item, review.rating, review.title), f"{TEXT_LABEL}{review.text}")


def _item_lines(item: Item) -> str:
    return _lines(
        f"Item: {item.title}" if item.title else "", f"Description: {item.description}" if item.description else ""
    )


def _review_lines(rating: float | None, title: str) -> str:
    return _lines("" if rating is None else f"Rating: {rating:g}", f"Title: {title}" if title else "")


def _lines(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


def _summary_revision() -> str:
    probes = [
        build_prompt(_PROBE.item, _PROBE.rating, _PROBE.title, history, summary="summary")
        for history in ((_PROBE,), ())
    ]
    return fingerprint(probes)


SUMMARY_REVISION = _summary_revision()
"""Fingerprint of the text of prompts with a summary, for methods that show one."""

"""Prompts: the text that the model reads before it writes, and the template around it.

First comes what both branches share (task, item), then the user's history (a summary, past texts), then what the text
must match. The prompt without history has no history section and does not mention one. A field that the data do not
have (a rating, a title, anything about the item) is left out with its label.

A `Wording` has the words of one kind of text: a topic to write about is not an item to review.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

from nextquill_core.records import Item, Review, TextKind
from storage.fingerprint import fingerprint

TEMPLATE_DATE = date(2024, 7, 26)
"""The date that chat templates print instead of today's; Llama 3's templates print it when they have no clock."""


@dataclass(frozen=True)
class Wording:
    """The words of prompts for one kind of text.

    Attributes:
        name: Kind of the text, as in `prompt.writes`.
        task: The task where something is known about what the text is about.
        task_alone: The task otherwise; empty for the same.
        item: Label of the title of what the text is about.
        description: Label of its description.
        title: Label of the text's own title.
        same: What texts on one thing share, as in "reviews of the same item".
    """

    name: TextKind
    task: str
    task_alone: str = ""
    item: str = "Item"
    description: str = "Description"
    title: str = "Title"
    same: str = "of the same item"

    @property
    def label(self) -> str:
        """Label of the text."""
        return self.name.capitalize()

    @property
    def texts(self) -> str:
        """What several such texts are called."""
        return f"{self.name}s"

    @property
    def summary_heading(self) -> str:
        """Heading of the summary."""
        return f"What this user's {self.texts} are like:"

    @property
    def history_heading(self) -> str:
        """Heading of the shown history."""
        return f"Past {self.texts} by the same user, oldest first:"

    @property
    def text_label(self) -> str:
        """Label before the text itself, with its line break."""
        return f"{self.label}:\n"

    @cached_property
    def revision(self) -> str:
        """Fingerprint of the text of prompts without summary; see `summary_revision` for the others."""
        return fingerprint(_probes(PLAIN, self))

    @cached_property
    def summary_revision(self) -> str:
        """Fingerprint of the text of prompts with a summary, for methods that show one."""
        probes = [
            build_prompt(_PROBE.item, _PROBE.rating, _PROBE.title, history, summary="summary", wording=self)
            for history in ((_PROBE,), ())
        ]
        return fingerprint(probes)


REVIEW = Wording("review", "Write a review of the item below.", "Write a review.")
_WORDINGS = (
    REVIEW,
    Wording("post", "Write a post on the topic below.", item="About", title="Topic", same="on the same topic"),
    Wording(
        "abstract",
        "Write the abstract of the paper below.",
        item="Paper",
        description="Points",
        same="of the same paper",
    ),
    Wording("article", "Write the article for the headline below.", title="Headline", same="for the same headline"),
    Wording("email", "Write the email with the subject below.", title="Subject", same="with the same subject"),
    Wording("text", "Write a text about what is below.", "Write a text.", item="About", same="about the same thing"),
)
WORDINGS: Mapping[TextKind, Wording] = MappingProxyType({wording.name: wording for wording in _WORDINGS})
"""The words of prompts by kind of text."""


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
        """Fingerprint of the text of prompts for reviews without summary."""
        return fingerprint(_probes(self, REVIEW))


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
    wording: Wording = REVIEW,
) -> str:
    """Return the prompt for one review; `history=()` and no summary give the prompt without history.

    Args:
        item: The item to review.
        rating: Rating of the review to write; None if it is unknown.
        review_title: Title of the review to write; empty if it is unknown.
        history: The user's past reviews to show, oldest first.
        summary: Summary of the user's reviews; empty for none.
        template: Text around the prompt; "plain" for none.
        wording: Words for the kind of text.
    """
    shown_item = _item_lines(item, wording)
    sections = [wording.task, shown_item] if shown_item else [wording.task_alone or wording.task]
    if summary:
        sections.append(f"{wording.summary_heading}\n{summary}")
    if history:
        sections += [wording.history_heading, *(review_section(past, wording) for past in history)]
    # The line break before the text is a token boundary for every BPE, so prompt and answer can be encoded separately.
    sections.append(_lines(_review_lines(rating, review_title, wording), wording.text_label))
    text = "\n\n".join(sections)
    around = PLAIN if template == "plain" else template
    return f"{around.opening}{text}{around.closing}"


def query_section(item: Item, rating: float | None, review_title: str, wording: Wording = REVIEW) -> str:
    """Return the section of a prompt that describes the review to write.

    Args:
        item: The item to review.
        rating: Rating of the review; None if it is unknown.
        review_title: Title of the review; empty if it is unknown.
        wording: Words for the kind of text.
    """
    return _lines(_item_lines(item, wording), _review_lines(rating, review_title, wording))


def review_section(review: Review, wording: Wording = REVIEW) -> str:
    """Return the section of a prompt that shows a past review with its item."""
    return _lines(
        query_section(review.item, review.rating, review.title, wording), f"{wording.text_label}{review.text}"
    )


def _item_lines(item: Item, wording: Wording) -> str:
    return _lines(
        f"{wording.item}: {item.title}" if item.title else "",
        f"{wording.description}: {item.description}" if item.description else "",
    )


def _review_lines(rating: float | None, title: str, wording: Wording) -> str:
    return _lines("" if rating is None else f"Rating: {rating:g}", f"{wording.title}: {title}" if title else "")


def _lines(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


def _probes(template: Template, wording: Wording) -> list[str]:
    """Return prompts that contain every word of a wording and a template, with and without each field."""
    return [
        build_prompt(target.item, target.rating, target.title, history, template=template, wording=wording)
        for target in (_PROBE, *_PARTIAL_PROBES)
        for history in ((_PROBE, *_PARTIAL_PROBES), ())
    ]

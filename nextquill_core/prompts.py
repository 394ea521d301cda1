"""Text in, prompt out: what the model reads before it writes a review.

The field order puts what both branches share first (task, item), then what is known of the user (a summary, past
reviews), then what the review must match. The prompt without history leaves out those sections and every mention of
one; it is not told of "none".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nextquill_core.records import Item, Review
from storage.fingerprint import fingerprint

TASK = "Write a review of the item below."
SUMMARY_HEADING = "What this user's reviews are like:"
HISTORY_HEADING = "Past reviews by the same user, oldest first:"
TEXT_LABEL = "Review:\n"


@dataclass(frozen=True, slots=True)
class Template:
    """What stands around the prompt's text: nothing for base models, the chat markup for instruct models."""

    name: Literal["plain", "chat"]
    opening: str = ""
    closing: str = ""

    @property
    def revision(self) -> str:
        """Changes whenever the text of a prompt without summary would; see `SUMMARY_REVISION` for the others."""
        probe = build_prompt(_PROBE.item, _PROBE.rating, _PROBE.title, (_PROBE,), template=self)
        return fingerprint([probe, build_prompt(_PROBE.item, _PROBE.rating, _PROBE.title, (), template=self)])


PLAIN = Template("plain")
_PROBE = Review(Item("item", "description"), 4.5, "title", "text")


def chat_template(tokenizer: Any) -> Template:
    """The tokenizer's own chat markup around one user turn, up to where the answer starts.

    Raises:
        ValueError: The tokenizer has no chat template, or one that rewrites the user's text.
    """
    mark = "\u241e"
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
    )
    if rendered.count(mark) != 1:
        raise ValueError("the chat template does not keep the user's text as it is")
    opening, closing = rendered.split(mark)
    return Template("chat", opening, closing)


def resolve_template(setting: str, model_name: str) -> Literal["plain", "chat"]:
    """`auto` is chat for models whose name says that they follow instructions, and plain for base models.

    A base model's tokenizer may carry a chat template whose tokens the model never learned (Qwen2.5 does), so the
    template's existence proves nothing.
    """
    if setting != "auto":
        return "chat" if setting == "chat" else "plain"
    words = model_name.rstrip("/").rpartition("/")[2].lower().replace("_", "-").split("-")
    return "chat" if {"instruct", "chat", "it"} & set(words) else "plain"


def build_prompt(
    item: Item,
    rating: float,
    review_title: str,
    history: Sequence[Review],
    *,
    summary: str = "",
    template: Template | Literal["plain"] = PLAIN,
) -> str:
    """The prompt for one review; `history=()` and no summary give the prompt without history.

    Args:
        item: The item to review.
        rating: The rating that the review gives, 1 to 5.
        review_title: The title of the review to write.
        history: The user's past reviews to show, oldest first.
        summary: What the user's reviews are like, in words; empty for none.
        template: What stands around the text; "plain" for nothing.
    """
    sections = [TASK, _item_lines(item)]
    if summary:
        sections.append(f"{SUMMARY_HEADING}\n{summary}")
    if history:
        sections += [HISTORY_HEADING, *map(review_section, history)]
    # The line break before the text is a token boundary for every BPE, so prompt and answer can be encoded apart.
    sections.append(f"{_review_lines(rating, review_title)}\n{TEXT_LABEL}")
    text = "\n\n".join(sections)
    around = PLAIN if template == "plain" else template
    return f"{around.opening}{text}{around.closing}"


def query_section(item: Item, rating: float, review_title: str) -> str:
    """What is known of a review before it is written, as the prompt names it."""
    return f"{_item_lines(item)}\n{_review_lines(rating, review_title)}"


def review_section(review: Review) -> str:
    """A past review with its item, as the prompt shows it."""
    return f"{query_section(review.item, review.rating, review.title)}\n{TEXT_LABEL}{review.text}"


def _item_lines(item: Item) -> str:
    title = f"Item: {item.title}"
    return f"{title}\nDescription: {item.description}" if item.description else title


def _review_lines(rating: float, title: str) -> str:
    return f"Rating: {rating:g}\nTitle: {title}"


def _summary_revision() -> str:
    probes = [
        build_prompt(_PROBE.item, _PROBE.rating, _PROBE.title, history, summary="summary")
        for history in ((_PROBE,), ())
    ]
    return fingerprint(probes)


SUMMARY_REVISION = _summary_revision()
"""Changes whenever the text of a prompt with a summary would, for what shows one."""

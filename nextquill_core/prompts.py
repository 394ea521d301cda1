"""Text in, prompt out: what the model reads before it writes a review.

The field order puts what both branches share first (task, item), then the history, then what the review must match.
The prompt without history leaves out the history section and every mention of one; it is not told of "none".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nextquill_core.schemas import Item, Review
from storage.fingerprint import fingerprint

TASK = "Write a review of the item below."
HISTORY_HEADING = "Past reviews by the same user, oldest first:"


@dataclass(frozen=True, slots=True)
class Template:
    """What stands around the prompt's text: nothing for base models, the chat markup for instruct models."""

    name: Literal["plain", "chat"]
    opening: str = ""
    closing: str = ""

    @property
    def revision(self) -> str:
        """Changes whenever the text of a prompt would."""
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
    template: Template | Literal["plain"] = PLAIN,
) -> str:
    """The prompt for one review; `history=()` gives the prompt without history.

    Args:
        item: The item to review.
        rating: The rating that the review gives, 1 to 5.
        review_title: The title of the review to write.
        history: The user's past reviews to show, oldest first.
        template: What stands around the text; "plain" for nothing.
    """
    sections = [TASK, _item_lines(item)]
    if history:
        sections.append(HISTORY_HEADING)
        sections += [
            f"{_item_lines(past.item)}\n{_review_lines(past.rating, past.title)}{past.text}" for past in history
        ]
    sections.append(_review_lines(rating, review_title))
    text = "\n\n".join(sections)
    around = PLAIN if template == "plain" else template
    return f"{around.opening}{text}{around.closing}"


def _item_lines(item: Item) -> str:
    title = f"Item: {item.title}"
    return f"{title}\nDescription: {item.description}" if item.description else title


def _review_lines(rating: float, title: str) -> str:
    # The line break before the text is a token boundary for every BPE, so prompt and answer can be encoded apart.
    return f"Rating: {rating:g}\nTitle: {title}\nReview:\n"

"""Running summaries of a user's older reviews (LLM-TRSR, Zheng et al. 2024, arXiv 2403.03536).

summary_i = LLM(summary_{i−1}, block_i): the history without its newest reviews is cut into blocks, oldest first, and
each summary is made from the previous one and the next block. The prompt for the review then shows the last summary and
the newest reviews. Step i of all examples is one batch for the engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from nextquill_core.generation.engines import Engine, Request, no_progress
from nextquill_core.methods.fitted_prompts import FittedPrompts, cut_review, cut_text, taken, texts_of
from nextquill_core.prompts import PLAIN, REVIEW, Template, Wording, review_section
from nextquill_core.records import Example, Item, Review
from storage.fingerprint import fingerprint

FIRST = "Below are {texts} by one user, oldest first."
LATER = "Below are a summary of what one user's {texts} are like, and newer {texts} by the same user, oldest first."
SUMMARY_SO_FAR = "Summary so far:"
ORDER = "In a few sentences, say what this user likes, what this user dislikes, and how the user writes."
ORDER_LATER = "Bring the summary up to date. " + ORDER
ANSWER = "Summary:\n"


def blocks(history: Sequence[Review], newest: int, size: int) -> list[tuple[Review, ...]]:
    """Return the history without its newest reviews in blocks, oldest first.

    Args:
        history: Reviews, oldest first.
        newest: Number of newest reviews to leave out.
        size: Number of reviews in a block; the last block may have fewer.
    """
    older = history[: max(0, len(history) - newest)]
    return [tuple(older[start : start + size]) for start in range(0, len(older), size)]


def with_summary(example: Example, summary: str, newest: int) -> Example:
    """Return the example with a summary in place of its older reviews.

    Args:
        example: An example with its whole history.
        summary: The summary of its older reviews.
        newest: Number of newest reviews to keep.
    """
    return replace(example, history=example.history[max(0, len(example.history) - newest) :], summary=summary)


def build_summary_prompt(summary: str, block: Sequence[Review], wording: Wording = REVIEW) -> str:
    """Return the prompt for the next summary.

    Args:
        summary: The previous summary; empty for the first.
        block: The reviews to add, oldest first.
        wording: Words for the kind of text.
    """
    later = [LATER.format(texts=wording.texts), f"{SUMMARY_SO_FAR}\n{summary}"]
    opening = later if summary else [FIRST.format(texts=wording.texts)]
    shown = (review_section(review, wording) for review in block)
    sections = [*opening, *shown, ORDER_LATER if summary else ORDER, ANSWER]
    return "\n\n".join(sections)


def summarize(
    examples: Sequence[Example],
    engine: Engine,
    tokenizer: Any,
    *,
    newest: int,
    block: int,
    max_tokens: int,
    max_prompt_tokens: int,
    template: Template = PLAIN,
    wording: Wording = REVIEW,
    advance: Callable[[int], None] = no_progress,
) -> tuple[list[str], Counter[str]]:
    """Summarise each example's older reviews.

    A summary is put on one line, so that nothing in it looks like a section of a prompt. Where the engine generates
    nothing, the previous summary stays.

    Args:
        examples: Examples whose histories are summarised, each separately.
        engine: Generates the summaries; its own limit must not be below `max_tokens`.
        tokenizer: Tokenizer of the engine's model.
        newest: Number of newest reviews that are not summarised.
        block: Number of reviews in a step.
        max_tokens: Maximum number of tokens in a summary.
        max_prompt_tokens: Maximum number of tokens in a prompt; in a longer one the texts are cut to a common length.
        template: Opening and closing around a prompt's text.
        wording: Words for the kind of text.
        advance: Receives how many more summaries are finished; in all as many as the `blocks` of all examples.

    Returns:
        The last summaries in the order of the examples, "" where there is no older review; and how many were generated
        (`summaries`), were empty (`empty`), ended at the length limit (`cut`), or came from a prompt with cut texts
        (`prompts_clipped`).

    Raises:
        ModelError: A prompt is too long even with all texts cut to nothing.
    """
    steps = [blocks(example.history, newest, block) for example in examples]
    summaries = [""] * len(examples)
    counts: Counter[str] = Counter(summaries=0, empty=0, cut=0, prompts_clipped=0)
    prompts = FittedPrompts(tokenizer, max_prompt_tokens, template)
    for step in range(max(map(len, steps), default=0)):
        rows = [row for row in range(len(examples)) if step < len(steps[row])]
        requests = []
        for row in rows:
            ids, clipped = _encoded(prompts, summaries[row], steps[row][step], wording)
            counts["prompts_clipped"] += clipped
            requests.append(Request(f"{examples[row].example_id}/summary-{step}", ids, limit=max_tokens))
        for row, answer in zip(rows, engine.generate(requests, advance), strict=True):
            summaries[row] = taken(answer, counts, "summaries") or summaries[row]
    return summaries, counts


def _encoded(prompts: FittedPrompts, summary: str, block: Sequence[Review], wording: Wording) -> tuple[list[int], bool]:
    def build(length: int | None) -> str:
        shown = [cut_review(review, length) for review in block]
        return build_summary_prompt(cut_text(summary, length), shown, wording)

    longest = max(map(len, [summary, *(text for review in block for text in texts_of(review))]))
    return prompts.encode(build, longest, f"a summary of {len(block)} reviews", "lower evaluate.summaries.block")


def prompt_revision(wording: Wording) -> str:
    """Return the fingerprint of the text of prompts for summaries of one kind of text."""
    probe = Review(Item("item", "description"), 4.5, "title", "text")
    return fingerprint([build_summary_prompt(summary, (probe,), wording) for summary in ("", "summary")])

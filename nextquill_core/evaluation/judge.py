"""The judge metric: how well a text covers what matters to its user, by a rubric for each user (as in LaMP-QA).

A judge first writes the rubric of a user from past reviews: aspects, each with a reason and a quotation. Then it scores
a text on one aspect at a time, 0 (not covered), 1 (somewhat) or 2 (very well), and the metric is the share of all
points (Salemi and Zamani 2025, arXiv 2506.00137):

    judge(text) = Σ over the aspects of score / (2 · number of aspects)

In LaMP-QA the aspects come from what the asker wrote beside the question. A review has no such text, so they come from
the user's other reviews, and the true review is scored too, as the ceiling. Questions have the words of the kind of
text that is judged, such as a post. An answer that cannot be read is asked for again at a higher temperature; an aspect
that stays without a score is left out, and is counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nextquill_core.evaluation.significance import Floats
from nextquill_core.generation.engines import Generation
from nextquill_core.generation.openai_chat import ChatRequest
from nextquill_core.prompts import REVIEW, Wording, query_section, review_section
from nextquill_core.records import Example, Item, Review
from storage.fingerprint import fingerprint

Ask = Callable[[Sequence[ChatRequest]], list[Generation]]
"""From questions to answers in the same order, such as `ChatEngine.generate`."""

POINTS = 2
"""Highest score of an aspect."""
TEMPERATURES = (0.0, 0.5, 1.0)
"""Temperature of each attempt at an answer that can be read."""

RUBRIC = "Below are {texts} by one user, oldest first."
REVIEWING = "in how this user reviews things, whatever the item: what the user looks for, and how the user writes"
WRITING = "in {texts} by this user, whatever they are about: what the user looks for, and how the user writes"
RUBRIC_ORDER = (
    "Name the {count} aspects that matter most {place}. Answer with a JSON list of {count} objects and nothing else. "
    "Each has `aspect` (a few words), `reason` (one sentence on why it matters to this user) and `evidence` (a short "
    "quotation from {one})."
)
JUDGED_REVIEW = "Below are an item, a review of it, and one aspect"
JUDGED = "Below are what {one} had to be about, the {text}, and one aspect"
MATTERS = "that matters to the user for whom the {text} was written."
ASPECT, REASON, EVIDENCE = "Aspect:", "Why it matters to this user:", "In the user's own words:"
JUDGED_ORDER = (
    "How well does the {text} cover this aspect? 0: it does not. 1: somewhat. 2: very well. Answer with a JSON object "
    'such as {{"score": 1}} and nothing else.'
)
_OPENING = re.compile(r"[\[{]")
_DECODER = json.JSONDecoder(strict=False)


@dataclass(frozen=True, slots=True)
class Aspect:
    """One aspect of a user's rubric, with the reason and a quotation from a review."""

    aspect: str
    reason: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A question to the judge with its answer.

    Attributes:
        example_id: The example.
        aspect: Number of the aspect in the user's rubric; -1 for the rubric itself.
        prompt: The question.
        answer: The last answer.
        score: Points; None where no answer could be read, and for a rubric.
    """

    example_id: str
    aspect: int
    prompt: str
    answer: str
    score: int | None = None


def rubric_prompt(reviews: Sequence[Review], count: int, wording: Wording = REVIEW) -> str:
    """Return the question for a user's rubric.

    Args:
        reviews: Past reviews of the user, oldest first.
        count: Number of aspects.
        wording: Words for the kind of text.
    """
    place = _worded(REVIEWING if wording == REVIEW else WRITING, wording)
    order = RUBRIC_ORDER.format(count=count, place=place, one=_one(wording))
    return "\n\n".join([_worded(RUBRIC, wording), *(review_section(past, wording) for past in reviews), order])


def score_prompt(target: Review, text: str, aspect: Aspect, wording: Wording = REVIEW) -> str:
    """Return the question how well a text covers an aspect.

    Args:
        target: The review that was to be written; its text is not shown.
        text: The text to judge.
        aspect: The aspect.
        wording: Words for the kind of text.
    """
    judged = JUDGED_REVIEW if wording == REVIEW else JUDGED
    return "\n\n".join(
        [
            _worded(f"{judged} {MATTERS}", wording),
            query_section(target.item, target.rating, target.title, wording),
            f"{wording.text_label}{text}",
            f"{ASPECT} {aspect.aspect}\n{REASON} {aspect.reason}\n{EVIDENCE} {aspect.evidence}",
            _worded(JUDGED_ORDER, wording),
        ]
    )


def _worded(sentence: str, wording: Wording) -> str:
    return sentence.format(text=wording.label.lower(), texts=wording.texts, one=_one(wording))


def _one(wording: Wording) -> str:
    name = wording.label.lower()
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def read_rubric(answer: str, count: int) -> list[Aspect] | None:
    """Return the aspects in an answer, at most `count`; None where it holds none.

    Args:
        answer: A JSON list, perhaps with other text around it; of several lists with aspects, the last one counts.
        count: Number of aspects that were asked for.
    """
    found: list[Aspect] = []
    for entries in _json_values(answer):
        aspects = [
            Aspect(*(_line(entry.get(name)) for name in ("aspect", "reason", "evidence")))
            for entry in (entries if isinstance(entries, list) else ())
            if isinstance(entry, dict) and _line(entry.get("aspect"))
        ]
        found = aspects or found
    return found[:count] or None


def read_score(answer: str) -> int | None:
    """Return the points in an answer, 0 to 2; None where there are none. Of several objects, the last one counts."""
    scores = [found["score"] for found in _json_values(answer) if isinstance(found, dict) and "score" in found]
    score = scores[-1] if scores else None
    if isinstance(score, str):
        return {str(points): points for points in range(POINTS + 1)}.get(score.strip())
    if isinstance(score, bool) or not isinstance(score, int | float) or score not in range(POINTS + 1):
        return None
    return int(score)


def ask_rubrics(
    examples: Sequence[Example],
    ask: Ask,
    *,
    reviews: int,
    count: int,
    wording: Wording = REVIEW,
) -> tuple[list[Asked], list[list[Aspect]]]:
    """Let the judge write a rubric for the user of each example.

    Args:
        examples: The examples; those without history get no rubric.
        ask: Asks the judge.
        reviews: Number of newest past reviews to show.
        count: Number of aspects.
        wording: Words for the kind of text.

    Returns:
        The questions with their answers, of the examples with history; and the aspects of each example, possibly none.
    """
    prompts = {
        (example.example_id, -1): rubric_prompt(example.history[-reviews:], count, wording)
        for example in examples
        if example.history
    }
    answers, read = _answers(ask, prompts, lambda answer: read_rubric(answer, count))
    found = [Asked(*key, prompt, answers[key]) for key, prompt in prompts.items()]
    return found, [read.get((example.example_id, -1)) or [] for example in examples]


def ask_scores(
    examples: Sequence[Example],
    texts: Sequence[str],
    rubrics: Sequence[Sequence[Aspect]],
    ask: Ask,
    wording: Wording = REVIEW,
) -> list[Asked]:
    """Let the judge score a text for each example on each aspect of its user's rubric; an empty text scores 0 unasked.

    Args:
        examples: The examples.
        texts: One text for each.
        rubrics: The aspects of each.
        ask: Asks the judge.
        wording: Words for the kind of text.

    Returns:
        The questions with their answers and scores, aspect by aspect.
    """
    prompts: dict[tuple[str, int], str] = {}
    empty: list[Asked] = []
    for example, text, rubric in zip(examples, texts, rubrics, strict=True):
        for number, aspect in enumerate(rubric):
            key = example.example_id, number
            if text.strip():
                prompts[key] = score_prompt(example.target, text, aspect, wording)
            else:
                empty.append(Asked(*key, "", "", 0))
    answers, read = _answers(ask, prompts, read_score)
    return [*(Asked(*key, prompt, answers[key], read.get(key)) for key, prompt in prompts.items()), *empty]


def judged_statistics(example_ids: Sequence[str], scores: Sequence[tuple[str, int | None]]) -> Floats:
    """Return the statistics of the metric, shape (n, 2): the share of the points and 1, or 0 and 0 without a score.

    Args:
        example_ids: The examples.
        scores: The example and the points of each aspect, None for one that could not be read.
    """
    points: dict[str, list[int]] = {}
    for example, score in scores:
        if score is not None:
            points.setdefault(example, []).append(score)
    rows = [points.get(example) for example in example_ids]
    return np.array([[sum(of) / (POINTS * len(of)), 1.0] if of else [0.0, 0.0] for of in rows]).reshape(-1, 2)


def _answers(
    ask: Ask, prompts: dict[tuple[str, int], str], read: Callable[[str], Any]
) -> tuple[dict[tuple[str, int], str], dict[tuple[str, int], Any]]:
    """Return the last answer to each question, and what was read of those that could be read.

    Args:
        ask: Asks the judge.
        prompts: The questions by example and number of the aspect; -1 for a rubric.
        read: Reads an answer; None where it cannot be read.
    """
    answers: dict[tuple[str, int], str] = {}
    found: dict[tuple[str, int], Any] = {}
    for attempt, temperature in enumerate(TEMPERATURES):
        missing = [key for key in prompts if key not in found]
        requests = []
        for example, aspect in missing:
            name = f"{example}/rubric" if aspect < 0 else f"{example}/aspect-{aspect}"
            text = prompts[example, aspect]
            requests.append(ChatRequest(f"{name}#{attempt}", [], text=text, temperature=temperature))
        for key, answer in zip(missing, ask(requests), strict=True):
            answers[key] = answer.text
            understood = read(answer.text)
            if understood is not None:
                found[key] = understood
    return answers, found


def _json_values(answer: str) -> Iterator[Any]:
    """Yield the JSON lists and objects in an answer, which may stand in other text, such as a model's reasoning."""
    start = 0
    while opening := _OPENING.search(answer, start):
        try:
            value, start = _DECODER.raw_decode(answer, opening.start())
        except RecursionError:
            return
        except ValueError:
            start = opening.end()
        else:
            yield value


def _line(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""


def judge_revision(wording: Wording) -> str:
    """Return the fingerprint of the text of both questions for one kind of text."""
    probe = Review(Item("item", "description"), 4.5, "title", "text")
    aspect = Aspect("aspect", "reason", "evidence")
    return fingerprint([rubric_prompt([probe], 3, wording), score_prompt(probe, "text", aspect, wording)])

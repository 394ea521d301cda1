"""Recurrent summaries: which reviews go into which step, the prompts word for word, and what is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from nextquill_core.errors import ModelError
from nextquill_core.generation.engines import CUT, STOPPED, Generation, Request, Usage, no_progress
from nextquill_core.methods.summaries import blocks, build_summary_prompt, summarize, with_summary
from nextquill_core.schemas import Example, Item, Review
from tests.conftest import review

EMMA = Review(Item("Emma", "A novel."), 4.0, "Late love", "I wept.")
JANE = Review(Item("Jane", ""), 2.5, "No", "Cold \U0001f600 ومملة")


class Scripted:
    """Answers by a rule on the prompt's text, and remembers what it was asked."""

    def __init__(self, tokenizer: Any, rule: Callable[[str], Generation]) -> None:
        self.usage = Usage()
        self.tokenizer = tokenizer
        self.rule = rule
        self.calls: list[list[Request]] = []

    def generate(self, requests: Sequence[Request], advance: Callable[[int], None] = no_progress) -> list[Generation]:
        self.calls.append(list(requests))
        advance(len(requests))
        return [self.rule(self.tokenizer.decode(request.prompt)) for request in requests]


def titles(prompt: str) -> Generation:
    """The summary so far and the titles of the block's items, on a line each."""
    before = prompt.partition("Summary so far:\n")[2].partition("\n")[0]
    seen = [line.removeprefix("Item: ") for line in prompt.splitlines() if line.startswith("Item: ")]
    return Generation("\n".join([before, *seen]).strip(), 3, STOPPED)


def run(examples: Sequence[Example], engine: Scripted, **options: Any) -> tuple[list[str], dict[str, int]]:
    settings: dict[str, Any] = {"newest": 1, "block": 2, "max_tokens": 7, "max_prompt_tokens": 4096}
    summaries, counts = summarize(examples, engine, engine.tokenizer, **(settings | options))
    return summaries, dict(counts)


def of(size: int, name: str = "u", words: int = 12) -> Example:
    return Example(f"C:{name}:0", name, "C", "test", review(99), tuple(review(past, words) for past in range(size)))


def test_the_first_prompt_word_for_word() -> None:
    assert build_summary_prompt("", (EMMA, JANE)) == (
        "Below are reviews by one user, oldest first.\n\n"
        "Item: Emma\nDescription: A novel.\nRating: 4\nTitle: Late love\nReview:\nI wept.\n\n"
        "Item: Jane\nRating: 2.5\nTitle: No\nReview:\nCold \U0001f600 ومملة\n\n"
        "In a few sentences, say what this user likes, what this user dislikes, and how the user writes.\n\n"
        "Summary:\n"
    )


def test_a_later_prompt_word_for_word() -> None:
    assert build_summary_prompt("Weeps.", (JANE,)) == (
        "Below are a summary of what one user's reviews are like, and newer reviews by the same user, oldest "
        "first.\n\n"
        "Summary so far:\nWeeps.\n\n"
        "Item: Jane\nRating: 2.5\nTitle: No\nReview:\nCold \U0001f600 ومملة\n\n"
        "Bring the summary up to date. In a few sentences, say what this user likes, what this user dislikes, and how "
        "the user writes.\n\n"
        "Summary:\n"
    )


def test_blocks_leave_the_newest_out_and_begin_with_the_oldest() -> None:
    past = tuple(review(number) for number in range(7))
    assert blocks(past, 2, 2) == [past[:2], past[2:4], past[4:5]]
    assert blocks(past, 0, 4) == [past[:4], past[4:]]
    assert blocks(past, 7, 3) == []
    assert blocks(past, 9, 3) == []
    assert blocks((), 0, 3) == []


def test_an_example_shows_the_summary_and_the_newest() -> None:
    example = of(5)
    assert with_summary(example, "Kind.", 2) == replace(example, history=example.history[-2:], summary="Kind.")
    assert with_summary(example, "Kind.", 0).history == ()
    assert with_summary(example, "", 9) == example


def test_each_summary_takes_in_the_one_before_and_the_next_block(tiny_tokenizer: Any) -> None:
    engine = Scripted(tiny_tokenizer, titles)
    heard: list[int] = []
    examples = [of(6, "a"), of(1, "b"), of(3, "c"), of(0, "d")]
    summaries, counts = run(examples, engine, advance=heard.append)
    assert summaries == ["Book 0 Book 1 Book 2 Book 3 Book 4", "", "Book 0 Book 1", ""]
    assert counts == {"summaries": 4, "empty": 0, "cut": 0, "prompts_clipped": 0}
    assert [[request.key for request in call] for call in engine.calls] == [
        ["C:a:0/summary-0", "C:c:0/summary-0"],
        ["C:a:0/summary-1"],
        ["C:a:0/summary-2"],
    ]
    assert {request.limit for call in engine.calls for request in call} == {7}
    assert sum(heard) == sum(len(blocks(example.history, 1, 2)) for example in examples)
    past = examples[0].history
    assert [tiny_tokenizer.decode(call[0].prompt) for call in engine.calls] == [
        build_summary_prompt("", past[:2]),
        build_summary_prompt("Book 0 Book 1", past[2:4]),
        build_summary_prompt("Book 0 Book 1 Book 2 Book 3", past[4:5]),
    ]


def test_an_empty_answer_keeps_the_summary_before(tiny_tokenizer: Any) -> None:
    def rule(prompt: str) -> Generation:
        return Generation(" \n", 0, STOPPED) if "Book 2\n" in prompt else replace(titles(prompt), finish_reason=CUT)

    engine = Scripted(tiny_tokenizer, rule)
    summaries, counts = run([of(6)], engine)
    assert summaries == ["Book 0 Book 1 Book 4"]
    assert counts == {"summaries": 3, "empty": 1, "cut": 2, "prompts_clipped": 0}
    assert run([of(4)], Scripted(tiny_tokenizer, lambda prompt: Generation("", 0, STOPPED)))[0] == [""]


def test_nobody_to_summarise(tiny_tokenizer: Any) -> None:
    engine = Scripted(tiny_tokenizer, titles)
    assert run([], engine)[0] == []
    assert run([of(1)], engine)[0] == [""]
    assert engine.calls == []


@pytest.mark.parametrize("limit", [150, 200, 250, 300])
def test_too_long_prompts_lose_the_ends_of_their_longest_texts(tiny_tokenizer: Any, limit: int) -> None:
    long, short = review(1, 200), review(2, 3)
    example = Example("C:u:0", "u", "C", "test", review(99), (long, short))
    engine = Scripted(tiny_tokenizer, titles)
    _, counts = run([example], engine, newest=0, max_prompt_tokens=limit)
    assert counts["prompts_clipped"] == 1
    ids = engine.calls[0][0].prompt
    assert limit - 8 < len(ids) <= limit
    prompt = tiny_tokenizer.decode(ids)
    first, second = prompt.split("Review:\n")[1:]
    kept = first.partition("\n\n")[0]
    assert long.text.startswith(kept)
    assert 0 < len(kept) < len(long.text)
    assert short.text == second.partition("\n\n")[0] or len(short.text) > len(kept)
    assert prompt.endswith("and how the user writes.\n\nSummary:\n")


def test_a_prompt_that_fits_exactly_is_whole(tiny_tokenizer: Any) -> None:
    example = of(2)
    length = len(tiny_tokenizer(build_summary_prompt("", example.history))["input_ids"])
    for limit, clipped in ((length, 0), (length - 1, 1)):
        _, counts = run([example], Scripted(tiny_tokenizer, titles), newest=0, max_prompt_tokens=limit)
        assert counts["prompts_clipped"] == clipped


def test_a_limit_that_nothing_can_meet_names_the_key(tiny_tokenizer: Any) -> None:
    with pytest.raises(ModelError, match=r"prompt\.max_prompt_tokens"):
        run([of(4)], Scripted(tiny_tokenizer, titles), max_prompt_tokens=20)


def test_a_real_models_summaries_are_its_own_answers_one_by_one(tiny_model: Any, tiny_tokenizer: Any) -> None:
    from nextquill_core.generation.decoding import GREEDY
    from nextquill_core.generation.local_engine import TransformersEngine

    engine = TransformersEngine(tiny_model, tiny_tokenizer, GREEDY, max_new_tokens=12, batch_tokens=10_000)
    examples = [of(5, "a"), of(2, "b"), of(3, "c")]
    summaries, counts = summarize(
        examples, engine, tiny_tokenizer, newest=1, block=2, max_tokens=8, max_prompt_tokens=1024
    )
    for example, summary in zip(examples, summaries, strict=True):
        expected = ""
        for block in blocks(example.history, 1, 2):
            ids = tiny_tokenizer(build_summary_prompt(expected, block))["input_ids"]
            (answer,) = engine.generate([Request("alone", ids, limit=8)])
            expected = " ".join(answer.text.split()) or expected
        assert summary == expected
    assert counts["summaries"] == 4

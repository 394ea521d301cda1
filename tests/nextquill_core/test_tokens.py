"""Token pairs: one answer in both branches, limits that spare the prompt's end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nextquill_core.errors import ModelError
from nextquill_core.prompts import Template, build_prompt, chat_template
from nextquill_core.schemas import Example, Item
from nextquill_core.tokens import PairEncoder
from tests.conftest import review, text


def encoder(tokenizer: Any, prompt: int = 4096, target: int = 512, **options: Any) -> PairEncoder:
    return PairEncoder(tokenizer, max_history=4, max_prompt_tokens=prompt, max_target_tokens=target, **options)


def test_prompts_and_answer_decode_to_their_texts(tiny_tokenizer: Any, examples: list[Example]) -> None:
    for example, pair in zip(examples, encoder(tiny_tokenizer).encode(examples), strict=True):
        target, shown = example.target, example.history[-4:]
        assert tiny_tokenizer.decode(pair.factual) == build_prompt(target.item, target.rating, target.title, shown)
        assert tiny_tokenizer.decode(pair.counterfactual) == build_prompt(target.item, target.rating, target.title, ())
        assert tiny_tokenizer.decode(pair.target[:-1]) == target.text
        assert pair.target[-1] == tiny_tokenizer.eos_token_id
        assert pair.has_history == bool(example.history)
        lengths = [len(pair.factual) + len(pair.target) - 1, len(pair.counterfactual) + len(pair.target) - 1]
        assert pair.tokens == sum(lengths if example.history else lengths[:1])


@pytest.mark.parametrize("limit", [72, 90, 120, 150, 200, 300])
def test_too_long_prompts_lose_old_reviews_first_and_never_their_end(tiny_tokenizer: Any, limit: int) -> None:
    example = Example("C:u:0", "u", "C", "train", review(50), tuple(review(past, 30) for past in range(6)))
    pairs = encoder(tiny_tokenizer, prompt=limit)
    pair = pairs.encode([example])[0]
    assert len(pair.factual) <= limit
    assert len(pair.counterfactual) <= limit
    shown = tiny_tokenizer.decode(pair.factual)
    ending = build_prompt(Item("", ""), example.target.rating, example.target.title, ()).partition("Item: ")[2].strip()
    for branch in (pair.factual, pair.counterfactual):
        assert tiny_tokenizer.decode(branch).rstrip().endswith(ending)
    kept = [past for past in range(2, 6) if f"Book {past}\n" in shown]
    assert kept == list(range(6 - len(kept), 6))
    assert kept, "the newest past review stays, clipped if need be"
    assert pairs.truncation["past_reviews_dropped"] == 4 - len(kept)


def item_of(tokenizer: Any, prompt: list[int]) -> str:
    """Everything between the task and what follows the item."""
    shown: str = tokenizer.decode(prompt).partition("\n\n")[2].partition("\n\n")[0]
    return shown


@pytest.mark.parametrize("limit", [96, 150, 400, 4096])
@pytest.mark.parametrize("words", [5, 60, 300])
def test_all_methods_show_the_same_item(tiny_tokenizer: Any, limit: int, words: int) -> None:
    target = replace(review(1), item=Item("Book", text(3, words)))
    past = tuple(review(number, 30) for number in range(2, 6))
    example = Example("C:u:0", "u", "C", "train", target, past)
    own = encoder(tiny_tokenizer, prompt=limit).encode([example])[0]
    without = PairEncoder(tiny_tokenizer, max_history=0, max_prompt_tokens=limit, max_target_tokens=512)
    others = [
        encoder(tiny_tokenizer, prompt=limit).encode([other])[0].factual
        for other in (
            replace(example, history=past[:1]),  # retrieved
            replace(example, history=tuple(review(number, 90) for number in range(20, 24))),  # a stranger's
            replace(example, summary=text(9, 60)),
            replace(example, history=()),
        )
    ]
    alone = without.encode([example])[0]
    assert alone.factual == alone.counterfactual == own.counterfactual
    shown = item_of(tiny_tokenizer, own.factual)
    assert all(item_of(tiny_tokenizer, prompt) == shown for prompt in (own.counterfactual, *others))
    assert f"Item: Book\nDescription: {target.item.description}".startswith(shown)
    fits = len(encoder(tiny_tokenizer).encode([example])[0].counterfactual) <= limit - limit // 2
    assert (len(alone.factual) <= limit - limit // 2) == (shown.endswith(target.item.description) == fits)
    assert own.has_history, "a long item leaves room for the history"
    assert without.truncation["items_clipped"] == (not fits)


def test_an_item_may_take_more_than_half_where_there_is_nothing_to_cut(tiny_tokenizer: Any) -> None:
    target = replace(review(1), title=text(4, 30), item=Item("Book", text(3, 40)))
    example = Example("C:u:0", "u", "C", "train", target, (review(2),))
    bare = len(encoder(tiny_tokenizer).encode([replace(example, target=replace(target, item=Item("", "")))])[0].factual)
    pair = encoder(tiny_tokenizer, prompt=bare + 4).encode([example])[0]
    assert len(pair.counterfactual) <= bare + 4
    assert tiny_tokenizer.decode(pair.counterfactual).startswith("Write a review.\n\nRating")


def test_the_answer_ends_with_the_templates_token(tiny_folder: Any, examples: list[Example]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    pairs = encoder(tokenizer, template=Template("chat", "[", "]", "<|im_end|>")).encode(examples)
    assert {pair.target[-1] for pair in pairs} == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert not any(tokenizer.eos_token_id in pair.target for pair in pairs)


def test_a_summary_is_in_the_prompt_with_history_alone(tiny_tokenizer: Any, examples: list[Example]) -> None:
    summed = [replace(example, summary="likes rivers, writes \U0001f600 and שלום") for example in examples]
    pairs = encoder(tiny_tokenizer)
    for example, plain, pair in zip(summed, pairs.encode(examples), pairs.encode(summed), strict=True):
        target, shown = example.target, example.history[-4:]
        expected = build_prompt(target.item, target.rating, target.title, shown, summary=example.summary)
        assert tiny_tokenizer.decode(pair.factual) == expected
        assert pair.counterfactual == plain.counterfactual
        assert pair.has_history
    assert not pairs.truncation


def test_past_reviews_go_before_a_long_summary_is_clipped(tiny_tokenizer: Any) -> None:
    past = tuple(review(number, 30) for number in range(4))
    example = Example("C:u:0", "u", "C", "val", review(50), past, text(9, 60))
    whole = len(encoder(tiny_tokenizer).encode([replace(example, history=past[-1:])])[0].factual)

    pairs = encoder(tiny_tokenizer, prompt=whole)
    (pair,) = pairs.encode([example])
    assert f"{example.summary}\n\n" in tiny_tokenizer.decode(pair.factual)
    assert pairs.truncation["past_reviews_dropped"] == 3
    assert pairs.truncation["prompts_with_clipped_text"] == 0

    pairs = encoder(tiny_tokenizer, prompt=whole - 1)
    (pair,) = pairs.encode([example])
    assert len(pair.factual) < whole
    shown = tiny_tokenizer.decode(pair.factual)
    clipped = shown.partition("What this user's reviews are like:\n")[2].partition("\n")[0]
    assert clipped
    assert example.summary.startswith(clipped)
    assert len(clipped) < len(example.summary)
    assert past[-1].text in shown
    assert pairs.truncation["prompts_with_clipped_text"] == 1


def test_a_limit_that_nothing_can_meet_names_the_key(tiny_tokenizer: Any, examples: list[Example]) -> None:
    with pytest.raises(ModelError, match=r"prompt\.max_prompt_tokens"):
        encoder(tiny_tokenizer, prompt=10).encode(examples)


def test_long_answers_are_cut_without_a_stop_token(tiny_tokenizer: Any, examples: list[Example]) -> None:
    pairs = encoder(tiny_tokenizer, target=5)
    assert all(len(pair.target) == 5 for pair in pairs.encode(examples))
    assert all(pair.target[-1] != tiny_tokenizer.eos_token_id for pair in pairs.encode(examples))
    assert pairs.truncation["targets_cut"] == 2 * len(examples)


def test_an_answer_of_exactly_the_limit_is_not_cut(tiny_tokenizer: Any, examples: list[Example]) -> None:
    length = len(encoder(tiny_tokenizer).encode(examples[:1])[0].target)
    assert encoder(tiny_tokenizer, target=length).encode(examples[:1])[0].target[-1] == tiny_tokenizer.eos_token_id


def test_a_beginning_marker_opens_plain_prompts_and_not_chat_ones(tiny_folder: Any, examples: list[Example]) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder, bos_token="<|pad|>")
    marker = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|pad|> $A", special_tokens=[("<|pad|>", marker)]
    )
    assert encoder(tokenizer).encode(examples)[1].factual[0] == marker
    chat = Template("chat", "[", "]")
    assert encoder(tokenizer, template=chat).encode(examples)[1].factual[0] != marker


def test_a_tokenizer_that_cannot_stop_is_refused(tiny_folder: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="end-of-sequence"):
        encoder(tokenizer)


def test_chat_template_is_split_around_the_users_text(tiny_tokenizer: Any) -> None:
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    try:
        assert chat_template(tiny_tokenizer) == Template("chat", "<|user|>\n", "\n<|assistant|>\n")
        tiny_tokenizer.chat_template = "nothing of the user"
        with pytest.raises(ValueError, match="does not keep"):
            chat_template(tiny_tokenizer)
    finally:
        tiny_tokenizer.chat_template = None
